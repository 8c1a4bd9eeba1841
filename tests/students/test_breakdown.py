"""Groups of cases: which can be ranked, which is worst, and whether a gap is more than chance."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from distill.quality import TRUSTED_PATIENTS
from distill.subgroups import Banding
from students.breakdown import breakdown

scored = runpy.run_path(str(Path(__file__).with_name("scored.py")))  # tests are no package
ORGAN, comparison = scored["ORGAN"], scored["comparison"]


def dices(count: int, mean: float, name: str, seed: int = 0) -> dict[str, float | None]:
    values = mean + 0.02 * np.random.default_rng(seed).standard_normal(count)
    return {f"{name}{n}": float(value) for n, value in enumerate(values)}


def test_the_worst_group_is_named_with_its_gap_and_the_chance_of_it() -> None:
    good, bad = dices(8, 0.9, "good"), dices(8, 0.7, "bad", 1)
    sex = dict.fromkeys(good, "F") | dict.fromkeys(bad, "M")
    found = breakdown([comparison(good | bad)], [ORGAN], {"sex": sex})
    assert [(row.value, row.worst, row.dice.patients) for row in found.rows] == [("F", False, 8), ("M", True, 8)]
    (gap,) = found.gaps
    assert (gap.worst, gap.best) == ("M", "F")
    assert gap.gap.mean == pytest.approx(np.mean(list(good.values())) - np.mean(list(bad.values())), abs=1e-5)
    assert gap.gap.low is not None
    assert gap.gap.low > 0.15
    assert gap.p is not None
    assert gap.p < 0.01
    assert gap.p_adjusted == gap.p
    whole = np.mean([*good.values(), *bad.values()])
    assert gap.equity_scaled == pytest.approx(whole / (1 + gap.gap.mean), abs=1e-4), (
        "two groups of a size lie half a gap from the mean each"
    )


def test_groups_drawn_at_random_are_worst_and_best_by_chance_only() -> None:
    every = dices(40, 0.8, "p")
    found = breakdown([comparison(every)], [ORGAN], {"vendor": {case: f"v{n % 4}" for n, case in enumerate(every)}})
    assert found.gaps[0].gap.mean is not None
    assert found.gaps[0].gap.mean > 0
    assert found.gaps[0].p is not None
    assert found.gaps[0].p > 0.05


def test_a_group_of_too_few_patients_is_named_and_not_ranked_however_bad_it_is() -> None:
    many, few = dices(12, 0.9, "many"), dices(TRUSTED_PATIENTS - 1, 0.2, "few")
    vendor = {case: f"v{n % 2}" for n, case in enumerate(many)} | dict.fromkeys(few, "rare")
    found = breakdown([comparison(many | few)], [ORGAN], {"vendor": vendor})
    rare = next(row for row in found.rows if row.value == "rare")
    assert "only 4 patients: not ranked" in rare.note
    assert not rare.worst
    assert found.gaps[0].worst in {"v0", "v1"}


def test_many_pictures_of_few_patients_are_few_patients() -> None:
    pictures = {f"p{n % 3}-{n}": 0.5 for n in range(30)} | {f"q{n}": 0.9 for n in range(6)}
    view = {case: "apex" if case.startswith("p") else "base" for case in pictures}
    found = breakdown([comparison(pictures)], [ORGAN], {"view": view})
    assert next(row for row in found.rows if row.value == "apex").dice.patients == 3
    assert found.gaps == ()


def test_a_patient_in_two_groups_is_not_permuted_between_them() -> None:
    pictures = {f"p{n}-{view}": 0.9 if view == "a" else 0.7 for n in range(6) for view in "ab"}
    found = breakdown([comparison(pictures)], [ORGAN], {"view": {case: case[-1] for case in pictures}})
    assert found.gaps[0].gap.mean == pytest.approx(0.2)
    assert found.gaps[0].p is None
    assert "several groups" in found.gaps[0].note


def test_what_is_the_same_for_all_is_said_once_and_the_teacher_stands_beside() -> None:
    every = dices(12, 0.8, "p")
    teacher = comparison(dict.fromkeys(every, 0.6), name="teacher - gold", role="teacher")
    groups = {"modality": dict.fromkeys(every, "MR"), "sex": {case: "FM"[n % 2] for n, case in enumerate(every)}}
    found = breakdown([comparison(every), teacher], [ORGAN], groups)
    assert found.alike == {"modality": "MR"}
    assert {row.attribute for row in found.rows} == {"sex"}
    assert all(row.teacher_dice is not None and row.teacher_dice.mean == pytest.approx(0.6) for row in found.rows)


def test_ages_are_cut_into_thirds_of_the_scored_cases_where_that_is_asked() -> None:
    ages = [{"age_years": age, "sex": "F"} for age in range(20, 50)]
    thirds = Banding(ages, ages_in_thirds=True)
    assert len({thirds.value("age_years", each) for each in ages}) == 3
    assert Banding(ages).value("age_years", {"age_years": 45}) == "40 to 59"
