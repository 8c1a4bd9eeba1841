"""What gold is worth, patient by patient."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from students.curve_plot import curve_plot
from students.findings import Taught
from students.gold_curve import CurveStudent, FullSupervision, Scored, gold_curve

card = runpy.run_path(str(Path(__file__).with_name("test_outcome.py")))["card"]  # tests are no package

PATIENT = {f"c{n}": f"p{n}" for n in range(8)}


def scored(taught: Taught, patients: int, seed: int, dice: float) -> Scored:
    student = CurveStudent(taught=taught, patients=patients, seed=seed, path=Path("x"))
    dices = {(case, 3): dice + 0.01 * n for n, case in enumerate(PATIENT)}
    return Scored(student=student, name=f"{taught}-{patients}-{seed}", gold_cases=patients, dices=dices)


def test_mixed_is_held_against_gold_alone_of_as_many_patients_over_the_seeds_both_have() -> None:
    runs = [scored("gold", 1, 0, 0.5), scored("gold", 1, 1, 0.6), scored("mixed", 1, 0, 0.7), scored("gold", 3, 0, 0.65)]
    found = gold_curve(runs, PATIENT)
    assert found is not None
    assert [(row.patients, row.taught) for row in found.rows] == [(1, "gold"), (1, "mixed"), (3, "gold")]
    alone, mixed, three = found.rows
    assert alone.dice.mean == pytest.approx(0.585)
    assert alone.between_seeds == pytest.approx(0.0707107, abs=1e-6)
    assert mixed.between_seeds is None
    assert mixed.minus_gold is not None
    assert mixed.minus_gold.mean == pytest.approx(0.2), "seed 0 alone, which both have"
    assert mixed.p == pytest.approx(2 / 2**8)
    assert three.minus_gold is None
    assert found.seeds == (0, 1)


def test_seeds_are_averaged_before_anything_is_said_about_patients() -> None:
    one = gold_curve([scored("gold", 1, 0, 0.5)], PATIENT)
    three = gold_curve([scored("gold", 1, seed, 0.5) for seed in range(3)], PATIENT)
    assert one is not None
    assert three is not None
    assert one.rows[0].dice == three.rows[0].dice, "three times the same student is no more evidence"


def test_full_supervision_is_what_the_share_is_of() -> None:
    full = {(case, 3): 0.9 for case in PATIENT}
    found = gold_curve([scored("gold", 1, 0, 0.5)], PATIENT, FullSupervision(dices=full))
    assert found is not None
    assert found.rows[0].share_of_full is not None
    assert found.rows[0].share_of_full.mean == pytest.approx(0.535 / 0.9, abs=1e-6)


def test_cases_without_a_dice_are_left_out_and_counted() -> None:
    mixed, alone = scored("mixed", 1, 0, 0.7), scored("gold", 1, 0, 0.5)
    empty = {("c7", 3): float("nan")}
    found = gold_curve([replace(mixed, dices={**mixed.dices, **empty}), alone], PATIENT)
    assert found is not None
    gold, row = found.rows
    assert (gold.dice.excluded, row.dice.excluded, row.dice.patients) == (0, 1, 7)
    assert row.minus_gold is not None
    assert (row.minus_gold.patients, row.minus_gold.excluded) == (7, 1)


def test_where_nobody_asked_there_is_no_curve_and_what_is_missing_is_said() -> None:
    assert gold_curve([], PATIENT) is None
    found = gold_curve([], PATIENT, missing=["few-gold-9: only 5 patients"])
    assert found is not None
    assert found.missing == ("few-gold-9: only 5 patients",)
    assert curve_plot(found, {"teacher": 0.8}) == ""


def test_the_plot_has_a_line_and_a_band_for_each_way_and_names_its_references() -> None:
    found = gold_curve([scored("gold", n, 0, 0.5 + n / 20) for n in (1, 3)] + [scored("mixed", 1, 0, 0.8)], PATIENT)
    assert found is not None
    drawn = curve_plot(found, {"teacher <bundled>": 0.75})
    assert drawn.count('class="line gold"') == 2, "the line and its legend"
    assert drawn.count('<polygon class="band') == 2
    assert "teacher &lt;bundled&gt;: 0.750" in drawn
    assert "nan" not in drawn.lower()


def test_a_class_that_one_side_has_no_dice_for_counts_for_neither_and_is_counted() -> None:
    """Gold alone paints nothing right of class 4, which is empty for the mixed student: the difference is that of class 3 alone."""
    mixed, alone = scored("mixed", 1, 0, 0.7), scored("gold", 1, 0, 0.5)
    mixed = replace(mixed, dices={**mixed.dices, **{(case, 4): float("nan") for case in PATIENT}})
    alone = replace(alone, dices={**alone.dices, **{(case, 4): 0.0 for case in PATIENT}})
    found = gold_curve([alone, mixed], PATIENT, FullSupervision(dices=alone.dices))
    assert found is not None
    gold, row = found.rows
    assert row.minus_gold is not None
    assert row.share_of_full is not None
    assert row.minus_gold.mean == pytest.approx(0.2)
    assert row.share_of_full.mean == pytest.approx(0.735 / 0.535, abs=1e-6)
    assert (gold.unpaired, row.unpaired) == (0, 8)


def test_rows_whose_trainings_had_unequal_steps_say_so() -> None:
    few, many = card(steps=1200), card(steps=47200)
    runs = [replace(scored("gold", 1, 0, 0.5), card=few), replace(scored("mixed", 1, 0, 0.7), card=many)]
    found = gold_curve(runs, PATIENT, FullSupervision(dices={(case, 3): 0.03 for case in PATIENT}, card=few))
    assert found is not None
    gold, mixed = found.rows
    assert (gold.note, gold.minus_note) == ("", "")
    assert gold.share_of_full is not None
    assert mixed.share_of_full is not None
    assert gold.share_of_full.mean is not None
    assert mixed.share_of_full.mean is None
    assert mixed.note == "all-gold had 1,200 steps, mixed-1-0 47,200, as time was up"
    assert mixed.minus_note == "gold-1-0 had 1,200 steps, mixed-1-0 47,200, as time was up"
