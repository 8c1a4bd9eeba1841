"""A student that is below its gold alone, its teacher or a cheaper arm: the report says so, by how much, how surely, and what to try."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from students.figures import Measured
from students.findings import CurveRow, GoldCurve
from students.promptable.words import lost_doubt
from students.results import Comparison
from students.shortfall import below_arms, below_teacher, curve_shortfall
from students.spec import StudentCard

CASES = [f"p{n}" for n in range(12)]
comparison = runpy.run_path(str(Path(__file__).with_name("scored.py")))["comparison"]  # tests are no package
made_card = runpy.run_path(str(Path(__file__).with_name("test_outcome.py")))["card"]


def line(mean: float, seed: int, *, spread: float = 0.002, name: str = "student - gold", role: str = "student") -> Comparison:
    noise = np.random.default_rng(seed).standard_normal(len(CASES))
    found: Comparison = comparison(dict(zip(CASES, (mean + spread * noise).tolist(), strict=True)), name=name, role=role)
    return found


def card(*, correct: bool = False, gold_cases: tuple[str, ...] = ()) -> StudentCard:
    told: StudentCard = made_card()
    gold = told.spec.learning.gold.model_copy(update={"correct": correct})
    learning = told.spec.learning.model_copy(update={"gold": gold})
    return told.model_copy(update={"gold_cases": gold_cases, "spec": told.spec.model_copy(update={"learning": learning})})


GOLD_ALONE = {"net on gold - gold": "gold-alone"}


def against(mean: float, spread: float = 0.002) -> list[Comparison]:
    return [line(0.87, 0), line(mean, 1, spread=spread, name="net on gold - gold", role="arm")]


def test_a_student_below_its_gold_alone_is_told_by_how_much_and_what_to_try() -> None:
    (said,) = below_arms(against(0.88), GOLD_ALONE, card(), "")
    assert "is below the same net trained on its gold alone (0.88" in said
    assert ": -0.01" in said
    assert "may be chance" not in said
    assert "try student.gold.correct: true" in said
    assert "s-gold-alone" in said


def test_where_the_interval_reaches_zero_it_may_be_chance_and_is_still_said() -> None:
    (said,) = below_arms(against(0.8705, spread=0.02), GOLD_ALONE, card(), "")
    assert "may be chance" in said


def test_a_student_above_its_gold_alone_has_no_warning() -> None:
    assert below_arms(against(0.86), GOLD_ALONE, card(), "") == ()


def test_who_corrects_already_is_not_told_to_correct() -> None:
    (said,) = below_arms(against(0.88), GOLD_ALONE, card(correct=True, gold_cases=("g",)), "")
    assert "witness_budget" in said
    assert "correct: true" not in said


@pytest.mark.parametrize("arm", ["gold-alone", "few-gold", "ellipse-student"])
def test_who_is_to_train_longer_first_is_told_no_cause(arm: str) -> None:
    (said,) = below_arms(against(0.9), {"net on gold - gold": arm}, card(), "Train longer: 9 steps.")
    assert ". Train longer: 9 steps. If it stays below, " in said
    assert "So " not in said


@pytest.mark.parametrize("arm", ["gold-alone", "few-gold", "ellipse-student"])
def test_of_unequal_steps_the_remedy_is_one_budget_for_both(arm: str) -> None:
    (said,) = below_arms(against(0.9), {"net on gold - gold": arm}, card(), "Train longer.", unequal=[arm])
    assert said.endswith(". The two had unequal steps: train both with one budget first.")


def test_full_supervision_and_gold_boxes_are_no_shortfall() -> None:
    for arm in ("all-gold", "teacher-gold-boxes", ""):
        assert below_arms(against(0.95), {"net on gold - gold": arm}, card(), "") == ()


@pytest.mark.parametrize(("teacher", "told"), [(0.9, True), (0.872, True), (0.8701, False), (0.8, False)])
def test_a_student_plainly_below_its_teacher_is_told(teacher: float, told: bool) -> None:
    lines = [line(0.87, 0, spread=0.03), line(teacher, 0, spread=0.03, name="teacher - gold", role="teacher")]
    lines[1] = lines[1] if teacher != 0.8701 else line(teacher, 3, spread=0.03, name="teacher - gold", role="teacher")
    said = below_teacher(lines, card(), "")
    assert bool(said) == told
    assert all("which was given prompts" in each and "student.gold" in each for each in said)


def row(patients: int, mean: float | None) -> CurveRow:
    dice = Measured(mean=0.8, low=0.7, high=0.9, patients=12, excluded=0)
    minus = None if mean is None else Measured(mean=mean, low=mean - 0.01, high=mean + 0.01, patients=12, excluded=0)
    return CurveRow(
        taught="gold" if mean is None else "mixed",
        patients=patients,
        gold_cases=patients,
        students=("s",),
        dice=dice,
        between_seeds=None,
        minus_gold=minus,
    )


def test_the_numbers_of_gold_patients_at_which_pseudo_labels_did_harm_are_named() -> None:
    curve = GoldCurve(rows=(row(1, None), row(1, 0.03), row(3, -0.002), row(10, -0.02)), seeds=(0,))
    (said,) = curve_shortfall(curve)
    assert "3 (-0.002 [-0.012, +0.008], may be chance), 10 (-0.020 [-0.030, -0.010])" in said
    assert curve_shortfall(GoldCurve(rows=(row(1, None), row(1, 0.03)), seeds=(0,))) == ()
    assert curve_shortfall(None) == ()


def test_numbers_of_gold_patients_with_unequal_steps_are_told_apart_and_show_no_harm() -> None:
    rows = (row(1, -0.02), row(3, -0.03).model_copy(update={"minus_note": "gold-3 had 12 steps, mixed-3 472, as time was up"}))
    fair, unfair = curve_shortfall(GoldCurve(rows=rows, seeds=(0,)))
    assert "patients: 1 (" in fair
    assert "Try student.gold.correct" in fair
    assert "patients: 3 (" in unfair
    assert unfair.endswith("The two had unequal steps: train both with one budget first.")


def test_what_a_promptable_student_loses_is_told_with_the_interval() -> None:
    lines = [line(0.8, 0), line(0.9, 1, name="teacher - gold", role="teacher")]
    (said,) = lost_doubt(tuple(lines), "Train longer.")
    assert said.startswith("the student keeps 88.")
    assert "teacher's Dice: kernel -0.10" in said
