"""The reviewer's picture shows whole slices in true proportions, with numbers that fit the coordinates of prompts."""

import numpy as np
import pytest

from students.pictures import Shade
from students.review_sheet import JUDGED_RGB, Line, _ticks, _views, review_sheet

BLUE, PINK = JUDGED_RGB[0], (255, 80, 160)


def box(rows: slice, columns: slice, shape: tuple[int, int, int] = (5, 60, 80)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[1:4, rows, columns] = True
    return mask


def test_a_large_object_is_shown_in_its_whole_slice_and_once() -> None:
    [view] = _views(2, box(slice(10, 50), slice(10, 70)), (3, 1, 1))
    assert (view.rows, view.columns) == (slice(0, 60), slice(0, 80))


def test_a_small_object_is_shown_once_more_from_nearer() -> None:
    whole, near = _views(2, box(slice(10, 16), slice(40, 46)), (3, 1, 1))
    assert (whole.rows, whole.columns) == (slice(0, 60), slice(0, 80))
    assert 0 < near.rows.start < 10
    assert 16 < near.rows.stop < 60
    assert near.caption == "slice 2, closer"


def test_a_millimetre_is_as_long_down_as_across() -> None:
    [view] = _views(2, box(slice(10, 50), slice(10, 70)), (3, 2.0, 0.5))
    width, height = view.size_px
    assert height / width == pytest.approx(60 * 2.0 / (80 * 0.5), rel=0.01)


def test_numbers_stand_where_a_prompt_would_have_its_edge() -> None:
    assert _ticks(slice(0, 50), 500) == [(0, 0), (10, 100), (20, 200), (30, 300), (40, 400), (50, 500)]
    assert _ticks(slice(17, 31), 140) == [(20, 30), (25, 80), (30, 130)]
    assert len(_ticks(slice(0, 512), 300)) < 7


def test_what_is_to_be_judged_is_thicker_than_what_it_is_compared_with_and_doubt_is_tinted() -> None:
    mask = box(slice(10, 50), slice(10, 70))
    lines = [Line(words="judged", rgb=BLUE, mask=mask, bold=True), Line(words="drawn", rgb=PINK, mask=np.roll(mask, 5, axis=2), bold=False)]
    page = np.asarray(
        review_sheet(np.zeros(mask.shape, np.int16), lines, (1, 1, 1), title=["case a"], shade=Shade(rgb=(180, 140, 255), mask=mask))
    )
    bold, thin, tint = (int((page == np.asarray(rgb)).all(axis=-1).sum()) for rgb in (BLUE, PINK, (72, 56, 102)))
    assert bold > 2 * thin > 0
    assert tint > 0


@pytest.mark.parametrize("shape", [(1, 7, 5), (40, 512, 512), (3, 4, 300)], ids=["tiny picture", "large scan", "long and thin"])
def test_any_shape_has_a_page_and_so_has_a_case_without_a_mask(shape: tuple[int, int, int]) -> None:
    for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
        line = Line(words="judged", rgb=BLUE, mask=mask, bold=True)
        page = review_sheet(np.zeros(shape, np.float32), [line], (2.5, 0.7, 0.7), title=["case a, a rather long sentence about it"])
        assert page.width <= 2000
