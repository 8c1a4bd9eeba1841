"""Answers of students that never saw a case become a label set that refinement can read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distill.mean_labels import promised_dice
from distill.refine import RefinePlan, refine_archive
from storage import Archive, ClassInfo
from students.fold_answers import answer_out_of_fold
from students.folds import FoldPlan
from students.out_of_fold import train_folds
from students.spec import StudentSpec

CLASSES = (ClassInfo(id=3, name="kernel"),)
QUICK = StudentSpec(name="witness", budget_seconds=None, steps=1, width=4, threads=1, validation_fraction=0.0, mixed_precision=False)


def test_a_sure_mask_promises_more_than_an_unsure_one() -> None:
    sure, unsure = np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.float32)
    sure[0, :2], unsure[0, :2], unsure[0, 2:] = 1.0, 0.6, 0.4
    assert promised_dice(sure, sure > 0.5) == pytest.approx(1.0)
    assert promised_dice(unsure, unsure > 0.5) == pytest.approx(2 * 8 * 0.6 / (8 + 8 * 0.6 + 8 * 0.4))
    assert promised_dice(sure, np.zeros((1, 4, 4), bool)) == 0


def test_only_strangers_answer_and_their_answers_can_be_refined(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive = make_archive(tmp_path)
    cases = tuple(record.id for record in archive.cases(part="archive"))
    plan = FoldPlan(classes=CLASSES, spec=QUICK, workdir=tmp_path / "witnesses", label_set="pseudo/r1", cases=cases[1:])
    students = train_folds(archive, plan)
    assert not any(cases[0] in student.card.training_cases for student in students)
    asked = [record.id for record in archive.cases() if record.part != "test"]
    worked = answer_out_of_fold(archive, plan, students, asked, into="folds/r2", number=2)
    assert set(worked.done) == set(asked)
    for case in asked:
        history = archive[case].labels("folds/r2").history
        seen = [student.name for student in students if archive[case].record.patient in student.card.training_patients]
        assert not any(name in str(history.parameters["students"]) for name in seen)
        assert "," not in str(history.parameters["students"]), "calibration cases get what archive cases get: one student's answer"
        assert (history.round, history.parents) == (2, ("pseudo/r1",))
    assert not answer_out_of_fold(archive, plan, students, asked, into="folds/r2", number=2).done
    summary = refine_archive(archive, RefinePlan(classes=CLASSES, source="folds/r2", target="pseudo/r2"))
    assert summary.done == len(asked)


def test_gold_is_learnt_by_the_students_that_do_not_answer_for_it(tmp_path: Path, make_archive: Callable[..., Archive]) -> None:
    archive = make_archive(tmp_path)
    plan = FoldPlan(classes=CLASSES, spec=QUICK, workdir=tmp_path / "witnesses", label_set="pseudo/r1", gold=("train1",))
    students = train_folds(archive, plan)
    assert [student.card.gold_cases for student in students].count(("train1",)) == 1
