"""Students as witnesses: trained on one half of the patients, asked about the other.

A teacher that drew the neighbouring organ is sure of it each time it is asked. A student that learnt from other patients' masks, most of which
are right, does not see that organ as the class, whatever prompt there was. Each patient is asked about by students that never saw it
(two folds, by patient); patients that no student learns from, those of the calibration and test parts, by all of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from distill.quality import dice
from distill.unknown import unknown_map
from storage import Archive, Case, CaseRecord
from students.compact import train
from students.errors import TrainingError
from students.folds import FoldPlan, folds_of
from students.predict import Student
from students.spec import TrainProgress

LEAST_PATIENTS = 4
"""Two for each fold: a student of one patient says nothing about others."""

MaskOf = Callable[[str, int], np.ndarray | None]
"""Case and class id -> the ``(z, y, x)`` bool mask to be judged; None where there is none."""


def train_folds(archive: Archive, plan: FoldPlan, progress: Callable[[int, TrainProgress], None] | None = None) -> list[Student]:
    """Train a student without each fold of the archive part; what is trained already is loaded, what was interrupted goes on.

    Args:
        archive: whose archive cases carry the plan's label set.
        plan: what to train.
        progress: called with the fold and what its training says.

    Raises:
        TrainingError: if there are too few patients to leave some out.
    """
    records = _learnt_from(archive, plan)
    fold = folds_of([record.patient for record in records], plan.folds)
    if len(fold) < LEAST_PATIENTS:
        message = (
            f"students that never saw a case need masks of at least {LEAST_PATIENTS} patients in the archive part, but there are "
            f"{len(fold)}. Leave 'student' out of refine.semantic."
        )
        raise TrainingError(message)
    return [
        _trained(archive, plan, [r for r in records if fold[r.patient] != left_out], left_out, progress) for left_out in range(plan.folds)
    ]


def _learnt_from(archive: Archive, plan: FoldPlan) -> list[CaseRecord]:
    wanted = None if plan.cases is None else {*plan.cases, *plan.gold}
    named = {record.id: record for record in archive.cases(part="archive", with_labels=plan.label_set)}
    named |= {case: archive[case].record for case in plan.gold}
    return [record for case, record in sorted(named.items()) if wanted is None or case in wanted]


def _trained(
    archive: Archive, plan: FoldPlan, records: list[CaseRecord], left_out: int, progress: Callable[[int, TrainProgress], None] | None
) -> Student:
    done = train(
        archive,
        label_set=plan.label_set,
        classes=plan.classes,
        spec=plan.spec.model_copy(update={"name": plan.student_name(left_out)}),
        workdir=plan.workdir,
        cases=[record.id for record in records if record.id not in plan.gold],
        gold=[record.id for record in records if record.id in plan.gold],
        progress=None if progress is None else lambda now: progress(left_out, now),
    )
    return Student.load(done.path, device=plan.spec.device)


def judge_out_of_fold(
    archive: Archive, plan: FoldPlan, students: Sequence[Student], mask_of: MaskOf
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each case with its agreement with students that never saw its patient, as ``oof_dice/CLASSID``.

    Args:
        archive: where the cases are.
        plan: as the students were trained.
        students: one per fold, in order.
        mask_of: what they are compared with, except where the label set says that nobody knows (``distill.unknown``). Where mask and student are both empty, the score is NaN; so is it where every student has seen the
            patient, lest what earlier students said stay as if these had said it.
    """
    seen = [frozenset(student.card.training_patients) for student in students]
    for record in archive.cases(with_labels=plan.label_set):
        strangers = [student for student, patients in zip(students, seen, strict=True) if record.patient not in patients]
        masks = {info.id: mask_of(record.id, info.id) for info in plan.classes}
        if all(mask is None for mask in masks.values()):
            continue
        if not strangers:
            yield record.id, {f"oof_dice/{key}": math.nan for key, mask in masks.items() if mask is not None}
            continue
        labels = archive[record.id].labels(plan.label_set)
        answer = _together(strangers, archive[record.id])
        scores = {
            key: dice(np.asarray(mask, bool), answer == key, unknown_map(labels, key) > 0)
            for key, mask in masks.items()
            if mask is not None
        }
        yield record.id, {f"oof_dice/{key}": value for key, value in scores.items()}


def _together(students: Sequence[Student], stored: Case) -> np.ndarray:
    """Return the class ids ``(z, y, x)`` of the students' mean probability."""
    return ids_of(students[0], mean_probability(students, stored))


def mean_probability(students: Sequence[Student], stored: Case) -> Float32[np.ndarray, "k z y x"]:
    """Return the students' mean probability of each class in a case, in the order of their cards; each is shown the channels in its own order."""
    each = [student.predict(student.image_of(stored), stored.spacing_zyx_mm).probability for student in students]
    return np.asarray(np.mean(each, axis=0), np.float32)


def ids_of(student: Student, probability_kzyx: Float32[np.ndarray, "k z y x"]) -> UInt8[np.ndarray, "z y x"]:
    """Return the likeliest class of each voxel, by the ids of the student's classes."""
    ids = np.asarray([0, *(info.id for info in student.card.classes)], np.uint8)
    background = 1 - probability_kzyx.sum(axis=0, keepdims=True)
    return np.asarray(ids[np.concatenate([background, probability_kzyx]).argmax(axis=0)])
