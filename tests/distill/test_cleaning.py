"""Which pieces of a mask stay, which holes are filled, and what intensity says about an edge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from distill.cleaning import ClassRule, clean_mask, rectify_edges

SHAPE = (5, 12, 14)
TWO_MM = (2.0, 2.0, 2.0)


def pieces() -> np.ndarray:
    """A piece of 48 voxels, one of 12, and one of a single voxel."""
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 1:5, 1:5] = True
    mask[1:4, 8:10, 8:10] = True
    mask[0, 11, 13] = True
    return mask


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        pytest.param(ClassRule(), 48, id="the largest"),
        pytest.param(ClassRule(components=2), 60, id="the two largest"),
        pytest.param(ClassRule(largest_component=False), 61, id="all"),
        pytest.param(ClassRule(largest_component=False, least_px=2), 60, id="all of at least two voxels"),
        pytest.param(ClassRule(largest_component=False, least_mm3=100), 48, id="all of at least 100 mm3, 8 to a voxel"),
        pytest.param(ClassRule(components=2, least_mm3=500), 0, id="none is large enough"),
    ],
)
def test_pieces_stay_by_size_and_number(rule: ClassRule, kept: int) -> None:
    assert clean_mask(pieces(), rule, TWO_MM).sum() == kept


def test_rules_in_mm3_do_not_apply_where_the_spacing_is_not_known() -> None:
    rule = ClassRule(largest_component=False, least_mm3=100, holes_to_mm3=0.0)
    assert clean_mask(pieces(), rule).sum() == 61


@pytest.mark.parametrize(
    ("rule", "filled"),
    [
        pytest.param(ClassRule(), True, id="closed in its slice"),
        pytest.param(ClassRule(holes="3d"), False, id="open to the next slice"),
        pytest.param(ClassRule(holes="none"), False, id="no holes are filled"),
        pytest.param(ClassRule(holes_to_px=3), False, id="too large in voxels"),
        pytest.param(ClassRule(holes_to_px=4), True, id="just small enough"),
        pytest.param(ClassRule(holes_to_mm3=32.0), True, id="just small enough in mm3"),
        pytest.param(ClassRule(holes_to_mm3=31.0), False, id="too large in mm3"),
    ],
)
def test_a_tunnel_is_a_hole_of_a_slice_and_none_of_the_volume(rule: ClassRule, filled: bool) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, 2:8, 2:8] = True
    mask[:, 4:6, 4:6] = False
    assert clean_mask(mask, rule, TWO_MM)[2, 4, 4] == filled


def test_a_cavity_closed_on_all_sides_is_a_hole_of_the_volume() -> None:
    mask = np.zeros(SHAPE, bool)
    mask[:, 2:8, 2:8] = True
    mask[2, 4, 4] = False
    assert clean_mask(mask, ClassRule(holes="3d"))[2, 4, 4]


@settings(max_examples=40, deadline=None)
@given(mask=arrays.arrays(bool, SHAPE))
def test_cleaning_what_is_clean_changes_nothing(mask: np.ndarray) -> None:
    once = clean_mask(mask, ClassRule())
    assert np.array_equal(clean_mask(once, ClassRule()), once)


@settings(max_examples=40, deadline=None)
@given(mask=arrays.arrays(bool, SHAPE), least=st.integers(0, 9))
def test_without_filling_holes_cleaning_only_takes_away(mask: np.ndarray, least: int) -> None:
    rule = ClassRule(largest_component=False, least_px=least, holes="none")
    assert not (clean_mask(mask, rule) & ~mask).any()


def test_intensity_decides_about_the_edge_and_about_nothing_else() -> None:
    probability = np.zeros(SHAPE, np.float32)
    probability[:, 2:8, 2:8] = 0.95
    probability[:, 2:8, 8:10] = 0.6
    grey = np.where(np.arange(14) < 9, 0.8, 0.1) * np.ones(SHAPE)  # the object ends within the edge
    mended = rectify_edges(probability, grey)
    assert (mended[:, 2:8, 8] == np.float32(0.8)).all()
    assert (mended[:, 2:8, 9] == np.float32(0.2)).all()
    assert np.array_equal(mended[:, :, :8], probability[:, :, :8])


def test_an_object_of_which_too_little_is_certain_keeps_its_edge() -> None:
    probability = np.full(SHAPE, 0.6, np.float32)
    assert rectify_edges(probability, np.zeros(SHAPE)) is probability


@pytest.mark.parametrize("rule", [ClassRule(components=1), ClassRule(largest_component=False, least_px=2)], ids=["largest", "specks"])
def test_a_slice_of_lone_pixels_is_cleaned_too(rule: ClassRule) -> None:
    """cc3d gives up on such a slice of bool ("maximum length exception")."""
    mask = np.zeros((1, 9, 9), bool)
    mask[0, ::2, ::2] = True
    assert clean_mask(mask, rule).sum() == rule.components * rule.largest_component
