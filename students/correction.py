"""Pseudo-labels corrected by students of the gold: what the teacher drew of other patients, as experts would have drawn it.

A handful of gold cases teaches two small students. One sees the image alone. The other, the corrector, also sees what the teacher believes of each
voxel, and so learns where this teacher errs and in which way: too wide here, a tail cut off there. Together they answer for every case that they have
never seen, and their mean is the corrected label: it knows what experts mean by the organ, as the teacher does not, and where in this patient
somebody has said it is, as a student of a few cases often does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from distill.quality import dice_per_class
from distill.unknown import believed_ids
from storage import Archive, Case, LabelHistory, fingerprint
from students.errors import TrainingError
from students.predict import Student, answer_fingerprint

_VERSION = "1"
"""Raised whenever the same labels and students give other corrected labels."""

_TOP = 255
"""uint8 code of certainty in the archive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corrected:
    """What came of correcting labels."""

    cases: tuple[str, ...]
    """Cases that carry the corrected label set now."""
    changed: dict[str, float]
    """Of each case, one minus the Dice of its label before and after, mean over classes; NaN where both are empty."""


def write_corrected(
    archive: Archive,
    students: Sequence[Student],
    cases: Sequence[str],
    *,
    label_set: str,
    into: str,
    progress: Callable[[int, int], None] | None = None,
) -> Corrected:
    """Write what students of the gold answer together, beside the labels that they correct; what is there already is not made again.

    Args:
        archive: Read from and written to.
        students: Who learnt from gold, with or without hints; all of the same classes.
        cases: Whose labels are corrected.
        label_set: Of these labels: what the change is measured from, and the parent of the new ones.
        into: The new label set, with probabilities.
        progress: Called with how many of how many cases are done.

    Labels of patients that a student has seen are copied as they are: it would only repeat what it learnt.

    Raises:
        TrainingError: if there is no student, or their classes differ.
    """
    _check(students)
    marks, changed = [answer_fingerprint(student) for student in students], {}
    for number, case in enumerate(cases, start=1):
        changed[case] = _correct(archive[case], students, label_set, into, marks)
        if progress:
            progress(number, len(cases))
    return Corrected(cases=tuple(cases), changed=changed)


def on_calibration(archive: Archive, students: Sequence[Student], label_set: str) -> tuple[float, float, int]:
    """Return what correction does to labels whose gold none of these students has seen: that of calibration cases.

    Returns:
        Mean Dice with gold before and after correction, over patients, and how many these are; NaN where there are none.
    """
    _check(students)
    found: dict[str, list[tuple[float, float]]] = {}
    learnt_from = {patient for student in students for patient in student.card.training_patients}
    seen = {label_set, *(student.card.spec.hints for student in students if student.card.spec.hints)}
    for record in archive.cases(part="calibration", with_labels="gold"):
        stored = archive[record.id]
        if record.patient in learnt_from or not seen <= set(stored.label_sets()):
            continue
        gold, order = stored.labels("gold").read(), [info.id for info in students[0].card.classes]
        before, after = (
            dice_per_class(ids, gold, order) for ids in (believed_ids(stored.labels(label_set)), _answered(stored, students)[0])
        )
        known = [(before[each], after[each]) for each in order if not np.isnan([before[each], after[each]]).any()]
        found.setdefault(record.patient, []).extend(known)
    means = [np.mean(each, axis=0) for each in found.values() if each]
    old, new = np.mean(means, axis=0) if means else (float("nan"), float("nan"))
    return float(old), float(new), len(means)


def _check(students: Sequence[Student]) -> None:
    if not students or any(student.card.classes != students[0].card.classes for student in students):
        message = f"labels are corrected by one or more students of the same classes, but these were given: {', '.join(each.name for each in students) or 'none'}."
        raise TrainingError(message)


def _correct(stored: Case, students: Sequence[Student], label_set: str, into: str, marks: Sequence[str]) -> float:
    """Write one case's corrected labels; return how much they changed."""
    labels = stored.labels(label_set)
    unit = fingerprint(labels=labels.history.fingerprint, students=list(marks), version=_VERSION)
    if into in stored.label_sets() and (there := stored.labels(into)).history.fingerprint == unit:
        return there.scores.get("changed", float("nan"))
    classes, before = students[0].card.classes, believed_ids(labels)
    if any(stored.record.patient in student.card.training_patients for student in students):
        ids, coded = before, None if labels.probability is None else np.asarray(labels.probability[:])
    else:
        ids, coded = _answered(stored, students)
    known = [value for value in dice_per_class(ids, before, [info.id for info in classes]).values() if not np.isnan(value)]
    changed = 1 - float(np.mean(known)) if known else float("nan")
    own = labels.history
    history = LabelHistory(
        label_set=into,
        classes=own.classes if coded is None or ids is before else classes,
        made_by="students.correction",
        teacher=own.teacher,
        prompt_source=own.prompt_source,
        parameters={"students": ", ".join(student.name for student in students)},
        parents=tuple(dict.fromkeys([label_set, *(student.card.spec.hints for student in students if student.card.spec.hints), "gold"])),
        round=own.round,
        fingerprint=unit,
    )
    stored.write_labels(history, ids, probability_kzyx=coded, scores={"changed": changed, "accepted": 1.0})
    return changed


def _answered(stored: Case, students: Sequence[Student]) -> tuple[UInt8[np.ndarray, "z y x"], UInt8[np.ndarray, "k z y x"]]:
    """Return class ids and coded probabilities of what students answer together."""
    answer: Float32[np.ndarray, "k z y x"] = np.mean([student.predict_case(stored).probability for student in students], axis=0)
    every = np.concatenate([1 - answer.sum(0, keepdims=True), answer])
    ids = np.asarray([0, *(info.id for info in students[0].card.classes)], np.uint8)[every.argmax(0)]
    return ids, np.rint(np.clip(answer, 0, 1) * _TOP).astype(np.uint8)
