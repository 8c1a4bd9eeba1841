"""A new student that is worse than the one so far is found out, also where its own labels praise it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from students.drift import Drift, drift_of

PATIENTS = {f"c{n}": f"p{n}" for n in range(10)}


def drift(changes: list[float], *, may_fall: float = 0.01, own: tuple[float | None, float | None] = (None, None)) -> Drift:
    scores = {f"c{n}": (0.80, 0.80 + change) for n, change in enumerate(changes)}
    return drift_of(scores, PATIENTS, measure="gold", may_fall=may_fall, own=own)


def test_a_planted_fall_is_one() -> None:
    assert drift([-0.03] * 10).fell


def test_a_small_fall_that_all_patients_share_is_one_too() -> None:
    found = drift([-0.004, -0.005, -0.006, -0.004, -0.005, -0.003, -0.005])
    assert found.difference is not None
    assert found.difference > -found.may_fall
    assert found.fell


def test_a_small_fall_of_some_patients_is_chance() -> None:
    found = drift([-0.02, 0.015, -0.01, 0.01, -0.012, 0.009, 0.002, -0.01])
    assert not found.fell
    assert not found.gained


def test_of_few_patients_only_a_large_fall_counts() -> None:
    assert not drift([-0.004, -0.005, -0.006]).fell
    assert drift([-0.02, -0.02, -0.02]).fell


def test_an_improvement_is_none() -> None:
    found = drift([0.01] * 6)
    assert found.gained
    assert not found.fell


def test_two_patients_are_nobody_to_compare_on() -> None:
    found = drift([-0.5, -0.5])
    assert not found.is_known
    assert not found.fell
    assert "only 2 patients" in found.words


def test_scans_of_one_patient_are_one_witness() -> None:
    scores = {f"c{n}": (0.8, 0.1) for n in range(10)}
    assert drift_of(scores, dict.fromkeys(scores, "p"), measure="gold", may_fall=0.01).patients == 1


def test_a_student_that_agrees_more_with_its_own_labels_and_less_with_gold_raises_an_alarm() -> None:
    assert "ALARM" in drift([-0.03] * 6, own=(0.85, 0.93)).words
    assert "ALARM" not in drift([-0.03] * 6, own=(0.93, 0.85)).words
    assert "ALARM" not in drift([0.03] * 6, own=(0.85, 0.93)).words


def test_a_case_with_nothing_to_see_is_left_out() -> None:
    scores = {"c0": (math.nan, 0.9), **{f"c{n}": (0.8, 0.9) for n in range(1, 5)}}
    assert drift_of(scores, PATIENTS, measure="gold", may_fall=0.01).patients == 4


@given(st.lists(st.floats(-0.8, 0.2), min_size=3, max_size=10), st.floats(0, 0.1))
def test_who_gained_has_not_fallen(changes: list[float], may_fall: float) -> None:
    found = drift(changes, may_fall=may_fall)
    assert not (found.gained and found.fell)
    assert found.before == pytest.approx(0.8)
