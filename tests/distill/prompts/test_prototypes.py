"""Prototypes find what looks like the examples, and cutting learns from where on it is there."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.prompts.cutting import Cut, Held, largest_piece, learn_cut, place_of, present_run
from distill.prompts.prototypes import Cells, Example, learn
from storage import IGNORE

CUT = Cut(score=0.0, peak=1.0, spread=1.0, usual_box_px=(6.0, 8.0), usual_area_px=40.0, held_out_dice=0.9, presence_accuracy=1.0)


def example(seed: int, at: tuple[int, int] = (4, 6), shown: bool = True) -> Example:
    """Return a grid of noise with a large common part, and a square of another kind in it."""
    rng = np.random.default_rng(seed)
    features = 10.0 + rng.normal(size=(12, 16, 8)).astype(np.float32)
    fraction = np.zeros((12, 16), np.float32)
    if shown:
        fraction[at[0] : at[0] + 4, at[1] : at[1] + 4] = 1
        features[fraction > 0, :2] += 4
    return Example(cells=Cells(features=features.astype(np.float32), z=0.5), fractions={1: fraction})


def test_cells_like_the_examples_score_higher_than_all_others() -> None:
    known = learn([example(0), example(1)], [1], prototypes=2, background=4)
    unseen = example(2, at=(6, 9))
    scores = known.score(unseen.cells, 1)
    inside = unseen.fractions[1] > 0
    assert scores[inside].min() > np.quantile(scores[~inside], 0.95)
    assert np.median(scores[inside]) > 0 > np.median(scores[~inside])


def test_a_class_that_no_example_shows_is_left_out() -> None:
    blank = {**example(0).fractions, 2: np.zeros((12, 16), np.float32)}
    known = learn([Example(cells=example(0).cells, fractions=blank)], [1, 2], prototypes=2, background=4)
    assert known.classes == {1}


def test_examples_without_any_class_are_refused() -> None:
    with pytest.raises(ValueError, match="none of 1 example slices shows any of the classes"):
        learn([example(0, shown=False)], [1], prototypes=2, background=4)


def test_a_class_smaller_than_a_cell_still_has_a_prototype() -> None:
    cells = example(0).cells
    fraction = np.zeros((12, 16), np.float32)
    fraction[3, 5] = 0.2
    assert learn([Example(cells=cells, fractions={1: fraction})], [1], prototypes=4, background=4).classes == {1}


def test_what_experts_left_open_is_no_example_of_background() -> None:
    shown, alike = example(0), np.zeros((12, 16), np.float32)
    alike[0:4, 0:4] = 1
    features = shown.cells.features.copy()
    features[alike > 0, :2] += 4  # looks like the class, and nobody said what it is
    cells = Cells(features=features, z=0.5)
    told = learn([Example(cells=cells, fractions=dict(shown.fractions))], [1], prototypes=2, background=16)
    open_ = learn([Example(cells=cells, fractions={**shown.fractions, IGNORE: alike})], [1], prototypes=2, background=16)
    assert open_.score(cells, 1)[alike > 0].mean() > told.score(cells, 1)[alike > 0].mean() + 0.2


def test_a_slice_whose_gold_is_not_about_a_class_teaches_nothing_about_it() -> None:
    silent = Example(cells=example(3).cells, fractions={2: np.zeros((12, 16), np.float32)})
    known = learn([example(0), silent], [1], prototypes=2, background=4)
    assert known.score(example(0).cells, 1).tolist() != []
    assert known.classes == {1}


def test_one_class_is_background_to_another() -> None:
    first, second = np.zeros((12, 16), np.float32), np.zeros((12, 16), np.float32)
    first[2:6, 2:6], second[2:6, 10:14] = 1, 1
    features = example(0, shown=False).cells.features.copy()
    features[first > 0, 0] += 5
    features[second > 0, 0] -= 5
    known = learn([Example(cells=Cells(features=features, z=0.5), fractions={1: first, 2: second})], [1, 2], prototypes=2, background=4)
    cells = Cells(features=features, z=0.5)
    assert known.score(cells, 1)[second > 0].max() < 0 < known.score(cells, 1)[first > 0].min()


def held(seed: int, *, shown: bool) -> Held:
    """Return smooth scores that are high where the mask is."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 40), bool)
    if shown:
        mask[8:16, 10:22] = True
    return Held(class_id=1, scores=(3.0 * mask + rng.normal(size=mask.shape) * 0.3).astype(np.float32), mask=mask)


def test_the_cut_separates_mask_from_rest_and_the_peak_slices_with_it_from_slices_without() -> None:
    cut = learn_cut([held(0, shown=True), held(1, shown=True), held(2, shown=False)])
    assert cut.held_out_dice > 0.9
    assert cut.peak is not None
    assert held(3, shown=False).scores.max() < cut.peak < held(4, shown=True).scores.max()
    assert cut.presence_accuracy == 1


def test_without_slices_that_lack_the_class_every_slice_is_taken_to_have_it() -> None:
    cut = learn_cut([held(0, shown=True)])
    assert cut.peak is None
    assert present_run([-9.0, -9.0], cut).tolist() == [0, 1]


def test_presence_that_is_not_wanted_is_not_learnt() -> None:
    assert learn_cut([held(0, shown=True), held(2, shown=False)], presence=False).peak is None


def test_what_was_left_open_is_neither_missed_nor_wrong_and_a_mask_beside_it_says_nothing_of_the_usual_size() -> None:
    whole, cut_off = held(0, shown=True), held(1, shown=True)
    left_open = np.zeros(cut_off.mask.shape, bool)
    left_open[:12] = True
    cut_off = replace(cut_off, mask=cut_off.mask & ~left_open, left_open=left_open)
    cut = learn_cut([whole, cut_off])
    assert cut.held_out_dice > 0.9
    assert cut.usual_box_px == (8, 12)
    assert learn_cut([whole, replace(cut_off, left_open=None)]).held_out_dice < 0.9


def test_the_box_is_moved_outward_and_the_point_lies_inside() -> None:
    one = held(0, shown=True)
    place = place_of(one.scores, learn_cut([one]))
    assert place.box_xyxy_px == pytest.approx((8, 6, 24, 18))
    assert one.mask[int(place.centre_xy_px[1]), int(place.centre_xy_px[0])]


def test_a_speck_says_where_and_the_usual_box_says_how_large() -> None:
    scores = np.full((30, 40), -1.0, np.float32)
    scores[15, 20] = 2
    assert place_of(scores, CUT).box_xyxy_px == (14.5, 10.5, 26.5, 20.5)


def test_a_piece_of_another_size_than_usual_is_met_a_third_of_the_way() -> None:
    scores = np.full((60, 60), -1.0, np.float32)
    scores[10:58, 2:58] = 1.0  # 48 x 56 where 6 x 8 is usual
    x0, y0, x1, y1 = place_of(scores, CUT).box_xyxy_px
    assert y1 - y0 == pytest.approx(24 + 2 * 2)
    assert x1 - x0 == pytest.approx(56 ** (2 / 3) * 2 + 2 * 2, rel=1e-3)


def test_where_nothing_is_above_the_cut_the_highest_score_says_where() -> None:
    scores = np.full((30, 40), -5.0, np.float32)
    scores[3, 4] = -2
    assert np.argwhere(largest_piece(scores, 0.0)).tolist() == [[3, 4]]


def test_of_two_runs_of_slices_the_one_with_more_evidence_has_the_class() -> None:
    assert present_run([0, 0, 3, 3, 3, 0, 0, 0, 3, 0, 0], CUT).tolist() == [2, 3, 4]


def test_a_volume_without_evidence_has_no_slice_with_the_class() -> None:
    assert present_run([0.2] * 9, CUT).size == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 40))
def test_boxes_lie_in_the_picture_whatever_the_scores(seed: int, height: int, width: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    x0, y0, x1, y1 = place_of(scores, CUT).box_xyxy_px
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


def test_a_class_that_fills_every_example_is_scored_by_how_near_it_is_alone() -> None:
    cells = example(0).cells
    known = learn([Example(cells=cells, fractions={1: np.ones((12, 16), np.float32)})], [1], prototypes=2, background=4)
    scores = known.score(cells, 1)
    assert np.isfinite(scores).all()
    assert scores.max() <= 0


def test_nothing_like_the_class_is_no_confidence_and_no_overflow() -> None:
    assert place_of(np.full((8, 9), -3.0, np.float32), replace(CUT, peak=None, spread=1e-3)).confidence == pytest.approx(0)
