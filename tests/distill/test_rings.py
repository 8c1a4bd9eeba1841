"""Rings: the smallest radii that do what they say, in mm, for all masks of most new patients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from distill.errors import CalibrationError
from distill.rings import inner_radius, outer_radius, ring

SPACING = (3.0, 0.8, 1.1)
SHAPE = (6, 13, 17)
GRID = np.mgrid[:6, :13, :17]
AWAY_MM = np.sqrt(sum(((axis - centre) * mm) ** 2 for axis, centre, mm in zip(GRID, (3, 6, 8), SPACING, strict=True)))


def ball(radius_mm: float) -> np.ndarray:
    return np.asarray(radius_mm >= AWAY_MM)


def blob(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.5) > 0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
def test_a_radius_does_what_it_says_and_no_smaller_one_does(one: int, other: int, coverage: float) -> None:
    mask, gold = blob(one), blob(other)
    radius = outer_radius(mask, gold, SPACING, coverage)
    away = ndimage.distance_transform_edt(~mask, sampling=SPACING)
    assert (gold & (away <= radius)).sum() >= coverage * gold.sum() - 1e-9
    assert radius == 0 or (gold & (away < radius)).sum() < coverage * gold.sum()
    radius = inner_radius(mask, gold, SPACING, coverage)
    depth = ndimage.distance_transform_edt(mask, sampling=SPACING)
    for further in (radius, *np.unique(depth[depth > radius])):
        left = depth > further
        assert (gold & left).sum() >= coverage * left.sum() - 1e-9
    before = depth >= radius
    assert radius == 0 or (gold & before).sum() < coverage * before.sum()


def test_radii_are_lengths_in_the_patient_and_not_voxels() -> None:
    slab, thicker, wider = np.zeros((3, *SHAPE), bool)
    slab[2:4, 4:9, 5:11] = thicker[1:5, 4:9, 5:11] = wider[2:4, 4:9, 3:11] = True
    assert outer_radius(slab, thicker, SPACING, 1.0) == pytest.approx(3.0)
    assert outer_radius(slab, wider, SPACING, 1.0) == pytest.approx(2.2)
    doubled = tuple(2 * mm for mm in SPACING)
    assert inner_radius(thicker, slab, doubled, 1.0) == pytest.approx(2 * inner_radius(thicker, slab, SPACING, 1.0))


def test_a_mask_inside_gold_needs_no_shrinking_and_one_around_it_no_growing() -> None:
    assert inner_radius(ball(3.0), ball(5.0), SPACING) == 0
    assert outer_radius(ball(5.0), ball(3.0), SPACING) == 0
    assert inner_radius(ball(5.0), ball(3.0), SPACING) > 0


def test_more_coverage_never_takes_a_smaller_radius() -> None:
    mask, gold = blob(1), blob(2)
    for radius in (outer_radius, inner_radius):
        found = [radius(mask, gold, SPACING, coverage) for coverage in (0.3, 0.6, 0.9, 1.0)]
        assert found == sorted(found)


def test_nothing_drawn_cannot_grow_to_an_object_and_nothing_there_needs_no_growing() -> None:
    empty = np.zeros(SHAPE, bool)
    assert outer_radius(empty, ball(3.0), SPACING) == np.inf
    assert outer_radius(empty, empty, SPACING) == outer_radius(ball(3.0), empty, SPACING) == 0
    assert inner_radius(empty, ball(3.0), SPACING) == 0
    depth = ndimage.distance_transform_edt(ball(3.0), sampling=SPACING)
    assert inner_radius(ball(3.0), empty, SPACING) == depth.max()


def test_a_mask_of_the_whole_image_has_no_edge_to_shrink_from() -> None:
    full = np.ones(SHAPE, bool)
    assert inner_radius(full, full, SPACING) == 0
    assert inner_radius(full, ball(3.0), SPACING) == np.inf


def test_masks_on_different_grids_and_impossible_coverages_are_refused() -> None:
    with pytest.raises(CalibrationError, match="on one grid"):
        outer_radius(ball(3.0), ball(3.0)[1:], SPACING)
    with pytest.raises(CalibrationError, match="coverage must lie above 0"):
        inner_radius(ball(3.0), ball(3.0), SPACING, 1.5)


def test_both_sides_together_take_twice_the_patients_and_say_what_holds() -> None:
    made = ring([float(n) for n in range(19)], [0.5] * 19, [f"p{n}" for n in range(19)], level=0.1, coverage=0.9, unit="px")
    assert made.feasible
    assert (made.outer.threshold, made.inner.threshold) == (18.0, 0.5)
    assert "With a probability of at least 0.90 over new patients and draws of 19 calibration patients, both hold" in made.statement
    assert "18.00 px covers at least 90% of the object" in made.statement
    few = ring([1.0] * 18, [0.5] * 18, [f"p{n}" for n in range(18)], level=0.1)
    assert not few.feasible
    assert few.statement == "No guarantee: 19 patients needed for a level of 0.10, 18 found (0.05 on each side)."


def test_a_patient_counts_once_with_the_worst_of_their_masks() -> None:
    made = ring([1.0, 7.0] * 10, [0.0, 0.0] * 10, [name for name in "abcdefghij" for _ in range(2)], level=0.2)
    assert (made.outer.patients, made.outer.threshold) == (10, 7.0)


def test_a_mask_that_misses_the_object_in_too_many_patients_gets_no_radius() -> None:
    made = ring([np.inf] * 3 + [1.0] * 20, [0.0] * 23, [f"p{n}" for n in range(23)], level=0.1)
    assert not made.feasible
    assert made.outer.threshold is None
    assert "any distance is of no help" in made.statement
    assert made.inner.feasible


def test_new_patients_stay_within_both_radii_as_often_as_is_said() -> None:
    rng, draws, failed = np.random.default_rng(0), 1500, []
    for _ in range(draws):
        outer, inner = rng.exponential(size=(2, 20))
        made = ring(outer[:19].tolist(), inner[:19].tolist(), [f"p{n:02}" for n in range(19)], level=0.1)
        assert made.outer.threshold is not None
        assert made.inner.threshold is not None
        failed.append(outer[19] > made.outer.threshold or inner[19] > made.inner.threshold)
    assert np.mean(failed) <= 0.1 + 3 * np.sqrt(0.09 / draws)
