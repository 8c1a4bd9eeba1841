"""Students that never saw a case say whether its mask is of what they know."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distill.unknown import UNASKED
from storage import Archive, ClassInfo, LabelHistory
from students import out_of_fold
from students.errors import TrainingError
from students.folds import FoldPlan, folds_of
from students.out_of_fold import judge_out_of_fold, train_folds
from students.spec import StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)
QUICK = StudentSpec(name="witness", budget_seconds=None, steps=40, width=4, threads=1, validation_fraction=0.0, mixed_precision=False)


def plan_in(folder: Path, steps: int = 40) -> FoldPlan:
    return FoldPlan(classes=CLASSES, spec=QUICK.model_copy(update={"steps": steps}), workdir=folder / "witnesses")


def test_folds_are_even_and_do_not_depend_on_order_or_repetition() -> None:
    patients = [f"p{n}" for n in range(11)]
    dealt = folds_of(patients, 2)
    assert sorted(np.bincount(list(dealt.values())).tolist()) == [5, 6]
    assert folds_of([*reversed(patients), "p3"], 2) == dealt


def test_every_patient_is_judged_by_students_that_never_saw_it(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive, plan = make_archive(tmp_path), plan_in(tmp_path, steps=1)
    students = train_folds(archive, plan)
    seen = [set(student.card.training_patients) for student in students]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == {record.patient for record in archive.cases(part="archive")}
    judged = dict(judge_out_of_fold(archive, plan, students, lambda case, _: archive[case].labels("teacher/r1").read() == 3))
    assert set(judged) == {record.id for record in archive.cases()}
    assert all(list(scores) == ["oof_dice/3"] for scores in judged.values())


def test_a_mask_of_something_else_agrees_less_than_any_right_one(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive, plan = make_archive(tmp_path, train=8), plan_in(tmp_path)
    wrong = "test1"

    def mask_of(case: str, _: int) -> np.ndarray:
        mask = archive[case].labels("teacher/r1").read() == 3
        return np.asarray(np.roll(mask, mask.shape[1] // 2, axis=1)) if case == wrong else mask

    judged = dict(judge_out_of_fold(archive, plan, train_folds(archive, plan), mask_of))
    assert judged[wrong]["oof_dice/3"] < min(scores["oof_dice/3"] for case, scores in judged.items() if case != wrong)


def test_a_case_that_every_student_has_seen_is_marked_as_not_judged(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive, plan = make_archive(tmp_path), plan_in(tmp_path, steps=1)
    one, _ = train_folds(archive, plan)
    seen = set(one.card.training_patients)
    judged = dict(judge_out_of_fold(archive, plan, [one], lambda case, _: archive[case].labels("teacher/r1").read() == 3))
    unknown = {record.id for record in archive.cases() if record.patient in seen}
    assert unknown
    assert {case for case, scores in judged.items() if np.isnan(scores["oof_dice/3"])} == unknown


def leave_open(archive: Archive, case: str, beyond: int, *, said: bool) -> None:
    """Have the teacher be asked about the first slices only, and say so or not; its fingerprint stays."""
    labels = archive[case].labels("teacher/r1")
    ids, unknown, history = labels.read(), np.zeros(labels.ids.shape, np.uint8), labels.history
    ids[beyond:], unknown[beyond:] = 0, UNASKED
    again = LabelHistory(label_set="teacher/r1", classes=CLASSES, made_by="test", fingerprint=history.fingerprint)
    archive[case].write_labels(again, ids, maps={"unknown": unknown} if said else None)


@pytest.mark.parametrize("said", [True, False], ids=["left open", "said to be background"])
def test_a_mask_is_not_held_against_slices_that_nobody_asked_about(
    tmp_path: Path, make_archive: Callable[..., Archive], monkeypatch: pytest.MonkeyPatch, said: bool
) -> None:
    archive = make_archive(tmp_path)
    for record in archive.cases():
        leave_open(archive, record.id, 6, said=said)
    gold = (archive[record.id].labels("gold").read() for record in archive.cases(with_labels="teacher/r1"))
    monkeypatch.setattr(out_of_fold, "_together", lambda *_: next(gold))
    stranger: Any = SimpleNamespace(card=SimpleNamespace(training_patients=()))

    def mask_of(case: str, _: int) -> np.ndarray:
        mask = archive[case].labels("gold").read() == 3
        mask[6:] = False
        return np.asarray(mask)

    agreed = [scores["oof_dice/3"] for _, scores in judge_out_of_fold(archive, plan_in(tmp_path), [stranger], mask_of)]
    assert (min(agreed) == 1.0) is said
    assert (max(agreed) < 0.9) is not said


def test_students_are_trained_anew_once_their_labels_say_what_nobody_knows(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive, plan = make_archive(tmp_path), plan_in(tmp_path, steps=1)
    first = [student.card.fingerprint for student in train_folds(archive, plan)]
    for record in archive.cases(part="archive"):
        leave_open(archive, record.id, 6, said=True)
    assert not set(first) & {student.card.fingerprint for student in train_folds(archive, plan)}


def test_students_that_are_there_are_not_trained_again(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive, plan = make_archive(tmp_path), plan_in(tmp_path, steps=1)
    first = [(student.path / "model.safetensors").stat().st_mtime_ns for student in train_folds(archive, plan)]
    assert [(student.path / "model.safetensors").stat().st_mtime_ns for student in train_folds(archive, plan)] == first


def test_a_class_that_nobody_drew_is_not_judged(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive, plan = make_archive(tmp_path), plan_in(tmp_path, steps=1)
    assert list(judge_out_of_fold(archive, plan, train_folds(archive, plan), lambda *_: None)) == []


def test_too_few_patients_are_told_with_the_cure(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    with pytest.raises(TrainingError, match=r"at least 4 patients .* but there are 3\. Leave 'student' out"):
        train_folds(make_archive(tmp_path, train=3), plan_in(tmp_path))
