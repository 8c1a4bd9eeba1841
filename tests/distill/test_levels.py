"""Counts of probability levels give the same figures as the voxels they were counted from."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import CalibrationError
from distill.levels import brier_score, calibration_errors, count_levels, log_loss, tempered
from distill.quality import brier, expected_calibration_error

SHAPE = (4, 9, 11)


def voxels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, SHAPE).astype(np.uint8), rng.uniform(size=SHAPE) < 0.4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_counted_levels_give_the_figures_of_the_voxels(seed: int) -> None:
    levels, gold = voxels(seed)
    case, probability = count_levels(levels, gold), levels / 255
    assert case.voxels == levels.size
    assert calibration_errors(case, case.probability)[0] == pytest.approx(expected_calibration_error(probability, gold))
    assert brier_score(case, case.probability) == pytest.approx(brier(probability, gold))
    clipped = tempered(1.0)[levels]
    assert log_loss(case, tempered(1.0)) == pytest.approx(-np.where(gold, np.log(clipped), np.log(1 - clipped)).mean())


def test_only_the_widened_box_around_what_was_drawn_is_counted() -> None:
    levels, gold = np.zeros((1, 40, 40), np.uint8), np.zeros((1, 40, 40), bool)
    levels[0, 10:20, 10:20] = 200
    gold[0, 12:18, 12:18] = gold[0, 35:, 35:] = True
    case = count_levels(levels, gold)
    assert case.voxels == 16 * 16
    assert (case.counts[1, 200], case.counts[0, 200], case.missed) == (36, 64, 25)


def test_a_case_where_nothing_was_drawn_is_counted_whole() -> None:
    case = count_levels(np.zeros(SHAPE, np.uint8), np.ones(SHAPE, bool))
    assert (case.voxels, case.missed) == (np.prod(SHAPE), 0)


def test_a_higher_temperature_draws_all_probabilities_towards_one_half() -> None:
    sharp, plain, soft = tempered(0.5), tempered(1.0), tempered(3.0)
    assert (np.diff(plain) > 0).all()
    assert np.allclose(plain[1:-1], np.arange(1, 255) / 255)
    assert (abs(soft - 0.5) < abs(plain - 0.5)).all()
    assert (abs(plain - 0.5) < abs(sharp - 0.5)).all()
    assert 0 < sharp[0] < sharp[-1] < 1


def test_every_filled_bin_counts_alike_in_ace() -> None:
    levels = np.array([[[255] * 9 + [128]]], np.uint8)
    gold = np.array([[[True] * 9 + [False]]])
    case = count_levels(levels, gold)
    ece, ace = calibration_errors(case, case.probability)
    assert ece == pytest.approx(128 / 255 / 10)
    assert ace == pytest.approx(128 / 255 / 2)


def test_two_grids_are_refused() -> None:
    with pytest.raises(CalibrationError, match="on one grid"):
        count_levels(np.zeros(SHAPE, np.uint8), np.zeros(SHAPE[1:], bool))
