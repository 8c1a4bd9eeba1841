"""Prompts of one class on one slice are told apart by the piece that they are about."""

from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from distill.patches import Patch
from distill.prompts.grouping import grouped
from distill.prompts.hints import hints_by_slice, piece_inputs
from distill.prompts.pieces import innermost, parts_of, prompts_of
from distill.prompts.slice_hint import SliceHint, joined
from storage import CaseRecord, Geometry, Prompt
from storage.rle import encode

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
RECORD = CaseRecord(
    id="case", patient="p", shape_czyx=(1, 4, 30, 40), dtype="int16", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
)


def box(x0: float, y0: float, x1: float, y1: float) -> Prompt:
    return Prompt(case="case", class_id=1, kind="box", slice=2, box_xyxy_px=(x0, y0, x1, y1))


def point(x: float, y: float, *, positive: bool = True) -> Prompt:
    return Prompt(case="case", class_id=1, kind="point", slice=2, points_xy_px=((x, y),), positive=positive)


def scribble(*places: tuple[float, float]) -> Prompt:
    return Prompt(case="case", class_id=1, kind="scribble", slice=2, points_xy_px=places)


def mask_of(*boxes: tuple[int, int, int, int]) -> Prompt:
    mask = np.zeros((30, 40), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return Prompt(case="case", class_id=1, kind="mask", slice=2, mask_rle=encode(mask), mask_size_yx=(30, 40))


def told(*prompts: Prompt) -> list[SliceHint]:
    return list(hints_by_slice(RECORD, prompts)[1][2])


def boxes_of(hints: list[SliceHint]) -> list[list[float]]:
    return [hint.box.tolist() for hint in hints if hint.box is not None]


@st.composite
def apart(draw: st.DrawFn) -> list[Prompt]:
    """Draw boxes in different cells of a grid, up to touching each other, in any order."""
    cells = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=8, unique=True))
    made = []
    for x, y in cells:
        low, side = draw(st.tuples(st.integers(0, 4), st.integers(0, 4))), draw(st.tuples(st.integers(2, 6), st.integers(2, 6)))
        x0, y0 = 10 * x + low[0], 10 * y + low[1]
        made.append(box(x0, y0, min(x0 + side[0], 10 * x + 10), min(y0 + side[1], 10 * y + 10)))
    return made


@settings(deadline=None)
@given(apart(), st.randoms())
def test_boxes_apart_are_asked_apart_and_in_the_same_order_however_they_came(prompts: list[Prompt], chance: object) -> None:
    first = told(*prompts)
    assert len(first) == len(prompts)
    assert {tuple(each) for each in boxes_of(first)} == {prompt.box_xyxy_px for prompt in prompts}
    chance.shuffle(prompts)  # type: ignore[attr-defined]
    assert boxes_of(told(*prompts)) == boxes_of(first)


def test_neighbours_whose_boxes_overlap_at_a_corner_are_two_pieces() -> None:
    assert len(told(box(2, 2, 12, 12), box(9, 9, 20, 20))) == 2


@pytest.mark.parametrize(
    "prompts",
    [
        pytest.param([box(2, 2, 12, 12), box(3, 1, 13, 12)], id="boxes of two people"),
        pytest.param([box(2, 2, 12, 12), mask_of((4, 4, 10, 10))], id="a box and a mask in it"),
        pytest.param([box(2, 2, 12, 12), mask_of((3, 3, 6, 6), (8, 8, 11, 11))], id="a box and a mask in two parts in it"),
        pytest.param([mask_of((4, 4, 10, 10)), point(15, 15)], id="a mask and a point near it"),
        pytest.param(
            [box(2, 2, 12, 12), point(21, 20), point(3, 25, positive=False)], id="a box, a point near it, and a negative one elsewhere"
        ),
        pytest.param([box(2, 2, 12, 12), scribble((8, 8), (30, 20), (38, 28))], id="a box and a scribble that begins in it"),
        pytest.param([box(2, 2, 12, 12), mask_of((2, 2, 12, 12))], id="a mask and its tight box"),
        pytest.param([point(4, 4), point(30, 20), point(10, 10)], id="points alone"),
        pytest.param([box(2, 2, 12, 12), mask_of((4, 4, 10, 10), (20, 20, 21, 21))], id="a box, a mask, and a speck of it elsewhere"),
    ],
)
def test_what_is_about_one_piece_is_joined_as_it_always_was(prompts: list[Prompt]) -> None:
    (hint,) = told(*prompts)
    each = [one for prompt in prompts for one in hints_by_slice(RECORD, [prompt]).get(1, {}).get(2, ())]
    if not any(prompt.kind == "point" and not prompt.positive for prompt in prompts):
        expected = joined(each)
        for name in ("box", "points", "point_labels"):
            assert np.array_equal(getattr(hint, name), getattr(expected, name))
        assert (hint.mask is None) == (expected.mask is None)
        if hint.mask is not None and expected.mask is not None:
            assert np.array_equal(hint.mask.on((30, 40)), expected.mask.on((30, 40)))
    assert piece_inputs(RECORD, prompts, [1]) == {}


def test_labels_of_several_pieces_are_others_than_before() -> None:
    prompts = [box(2, 2, 8, 8), box(20, 20, 28, 28)]
    assert piece_inputs(RECORD, prompts, [1]) != {}
    assert piece_inputs(RECORD, prompts, [2]) == {}


def test_a_3d_box_and_a_box_on_a_slice_of_it_are_about_the_same_piece() -> None:
    whole = Prompt(case="case", class_id=1, kind="box3d", box_zyxzyx_px=(0, 5, 6, 4, 25, 36))
    assert len(told(whole, box(8, 6, 33, 23))) == 1


def test_a_mask_is_taken_apart_into_its_pieces_and_each_goes_to_its_box() -> None:
    first, second = told(box(1, 1, 11, 11), mask_of((2, 2, 10, 10), (20, 12, 30, 20)))
    assert boxes_of([first, second]) == [[1, 1, 11, 11], [20, 12, 30, 20]]
    assert first.mask is not None
    assert second.mask is not None
    assert first.mask.on((30, 40)).sum() == 64
    assert second.mask.on((30, 40)).sum() == 80


def test_boxes_of_two_pieces_share_out_the_mask_of_both() -> None:
    first, second = told(box(1, 1, 11, 11), box(19, 11, 31, 21), mask_of((2, 2, 10, 10), (20, 12, 30, 20)))
    assert [int(hint.mask.on((30, 40)).sum()) for hint in (first, second) if hint.mask is not None] == [64, 80]
    assert boxes_of([first, second]) == [[1, 1, 11, 11], [19, 11, 31, 21]]


def test_boxes_of_pieces_that_touch_share_out_their_mask_and_stay_as_they_are() -> None:
    first, second = told(box(1, 1, 11, 11), box(11, 1, 21, 11), mask_of((2, 2, 20, 10)))
    assert boxes_of([first, second]) == [[1, 1, 11, 11], [11, 1, 21, 11]]
    for hint, columns in ((first, slice(2, 11)), (second, slice(11, 20))):
        expected = np.zeros((30, 40), np.float32)
        expected[2:10, columns] = 1
        assert hint.mask is not None
        assert np.array_equal(hint.mask.on((30, 40)), expected)


def test_a_mask_within_a_box_is_that_boxs_also_where_another_box_lies_in_it() -> None:
    first, second = told(box(1, 1, 25, 25), box(16, 16, 22, 22), mask_of((2, 2, 24, 24)))
    assert first.mask is not None
    assert first.mask.values.sum() == 22 * 22
    assert second.mask is None


def test_a_box_around_a_whole_mask_joins_none_of_its_pieces() -> None:
    parts = (2, 2, 10, 10), (20, 12, 30, 20)
    assert boxes_of(told(mask_of(*parts), box(2, 2, 30, 20))) == [list(each) for each in parts]


def test_a_speck_of_a_mask_belongs_to_the_nearest_piece() -> None:
    first, second = told(mask_of((2, 2, 10, 10), (20, 12, 30, 20), (32, 14, 33, 15)))
    assert boxes_of([first, second]) == [[2, 2, 10, 10], [20, 12, 33, 20]]


def test_specks_far_from_all_of_several_pieces_move_no_box() -> None:
    stray = [(x, y, x + 1, y + 1) for x, y in ((36, 27), (33, 25), (30, 27), (2, 27), (5, 25))]
    prompt = mask_of((2, 2, 10, 10), (20, 2, 30, 10), *stray)
    assert boxes_of(told(prompt)) == [[2, 2, 10, 10], [20, 2, 30, 10]]


def test_specks_beside_each_other_draw_no_box_along() -> None:
    row = [(x, 4, x + 1, 5) for x in range(12, 40, 2)]
    first, second = told(mask_of((2, 2, 10, 10), (20, 20, 30, 28), *row))
    assert boxes_of([first, second]) == [[2, 2, 13, 10], [20, 20, 30, 28]]


def test_specks_alone_are_one_piece() -> None:
    assert len(told(mask_of((2, 2, 3, 3), (20, 12, 21, 13)))) == 1


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_point_goes_to_the_piece_whose_box_holds_it(order: tuple[int, ...]) -> None:
    given_prompts = [box(2, 2, 10, 10), box(20, 12, 30, 20), point(25, 16)]
    first, second = told(*(given_prompts[n] for n in order))
    assert first.points is None
    assert second.points is not None
    assert (second.points + 0.5).tolist() == [[25, 16]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 39), st.floats(0, 29)), min_size=1, max_size=4), st.randoms())
def test_a_positive_point_further_from_every_box_than_it_is_long_is_a_piece_of_its_own(
    places: list[tuple[float, float]], chance: object
) -> None:
    prompts = [box(2, 2, 8, 10), *(point(*place) for place in places)]
    far = [(x, y) for x, y in places if not (-4 <= x <= 14 and -6 <= y <= 18)]
    assume(all(np.hypot(a - c, b - d) > 3.5 for (a, b), (c, d) in combinations(far, 2)))  # half of the box's usual side
    (first, *others) = told(*prompts)
    assert len(others) == len(far)
    assert first.box is not None
    assert first.box.tolist() == [2, 2, 8, 10]
    assert [each.box for each in others] == [None] * len(far)
    chance.shuffle(prompts)  # type: ignore[attr-defined]
    again = told(*prompts)[1:]
    assert [each.points.tolist() for each in again if each.points is not None] == [
        each.points.tolist() for each in others if each.points is not None
    ]
    assert (piece_inputs(RECORD, prompts, [1]) != {}) == bool(far)


def test_clicks_of_one_prompt_go_each_where_it_is_and_a_scribble_stays_whole() -> None:
    both = Prompt(case="case", class_id=1, kind="point", slice=2, points_xy_px=((5, 5), (30, 20)))
    assert len(told(box(2, 2, 8, 8), both)) == 2
    near, far = told(box(2, 2, 8, 8), scribble((28, 20), (34, 26)), point(12, 4, positive=False))
    assert near.point_labels is not None
    assert far.points is not None
    assert (near.point_labels.tolist(), len(far.points)) == ([0], 2)


def labelled(hint: SliceHint) -> list[tuple[list[float], float]]:
    if hint.points is None or hint.point_labels is None:
        return []
    return [((point + 0.5).tolist(), float(label)) for point, label in zip(hint.points, hint.point_labels, strict=True)]


@pytest.mark.parametrize(
    ("prompts", "clusters"),
    [
        pytest.param([(30, 20), (33, 20), (31, 24), (29, 18)], [4], id="four clicks within half a box's side of each other"),
        pytest.param([(30, 20), (36, 20)], [1, 1], id="two further apart than half a box's side"),
        pytest.param([(22, 25), (26, 25), (30, 25), (34, 25)], [4], id="a chain"),
        pytest.param([(30, 4), (33, 4), (30, 26)], [2, 1], id="two on one object and one on another"),
    ],
)
def test_far_clicks_close_to_each_other_are_about_one_piece(prompts: list[tuple[float, float]], clusters: list[int]) -> None:
    for order in permutations(prompts):
        first, *others = told(box(2, 2, 12, 12), *(point(*place) for place in order))
        assert labelled(first) == []
        assert [len(labelled(each)) for each in others] == clusters
    together = Prompt(case="case", class_id=1, kind="point", slice=2, points_xy_px=tuple(prompts))
    assert [labelled(each) for each in told(box(2, 2, 12, 12), together)[1:]] == [labelled(each) for each in others]


def test_far_points_beside_a_small_box_are_no_further_linked_than_to_it() -> None:
    large = [box(0, 0, 30, 30), box(0, 40, 30, 70)]
    clicks = [point(81, 22), point(90, 31)]
    assert [labelled(each) for each in told(*large, box(80, 30, 82, 32), *clicks)[-2:]] == [[([81, 22], 1)], [([90, 31], 1)]]
    assert [len(labelled(each)) for each in told(*large, *clicks)] == [0, 0, 2]


def test_a_negative_point_goes_to_the_nearest_of_boxes_and_far_pieces() -> None:
    beside, close, between = point(34, 22, positive=False), point(11, 6, positive=False), point(18, 10, positive=False)
    (first, far) = told(box(2, 2, 8, 8), point(30, 20), beside, close, between)
    assert labelled(first) == [([11, 6], 0), ([18, 10], 0)]
    assert labelled(far) == [([30, 20], 1), ([34, 22], 0)]
    (first, second, far) = told(box(2, 2, 8, 8), box(2, 20, 8, 26), beside, point(30, 20))
    assert labelled(first) == labelled(second) == []
    assert labelled(far) == [([30, 20], 1), ([34, 22], 0)]


def test_a_click_a_few_pixels_beside_a_tiny_box_is_about_it() -> None:
    (hint,) = told(box(10, 10, 12, 12), point(17, 11))
    assert labelled(hint) == [([17, 11], 1)]
    assert len(told(box(10, 10, 12, 12), point(19, 11))) == 2


def test_a_point_in_a_3d_box_is_about_it_on_its_first_and_last_slice_too() -> None:
    whole = Prompt(case="case", class_id=1, kind="box3d", box_zyxzyx_px=(2, 4, 10, 40, 14, 30))
    assert len(told(whole, point(10.5, 4.5))) == 1


def test_in_boxes_within_each_other_a_point_goes_to_the_piece_whose_mask_holds_it() -> None:
    corner = mask_of((2, 2, 30, 5), (2, 2, 5, 25))
    small = mask_of((24, 20, 29, 25))
    first, second = told(corner, small, point(4.5, 20), point(25, 22))
    assert first.points is not None
    assert second.points is not None
    assert (first.points + 0.5).tolist() == [[4.5, 20]]
    assert (second.points + 0.5).tolist() == [[25, 22]]


def test_a_negative_point_counts_for_the_pieces_that_it_comes_near() -> None:
    first, second = told(box(2, 2, 10, 10), box(12, 2, 20, 10), point(11, 6, positive=False))
    assert [hint.point_labels.tolist() for hint in (first, second) if hint.point_labels is not None] == [[0], [0]]
    first, second = told(box(2, 2, 8, 8), box(30, 20, 38, 28), point(9, 6, positive=False))
    assert first.point_labels is not None
    assert second.point_labels is None


def test_extreme_points_stay_with_their_piece() -> None:
    ends = Prompt(case="case", class_id=1, kind="extreme", slice=2, points_xy_px=((2, 8), (8, 2), (14, 8), (8, 14)))
    first, second = told(ends, box(20, 12, 30, 20))
    assert first.points is not None
    assert len(first.points) == 5
    assert second.points is None


def test_pieces_that_became_prompts_are_the_same_pieces_again() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((30, 40), bool)
    for x, y in [(2, 2), (13, 3), (24, 2), (3, 14), (15, 15), (28, 16), (20, 25)]:
        mask[y : y + int(rng.integers(3, 6)), x : x + int(rng.integers(4, 9))] = True
    parts = parts_of(mask, z=2)
    prompts = [each for part in parts for each in prompts_of(RECORD, 1, part, give=("box", "point", "mask"), margin=0.05, confidence=1.0)]
    hints = told(*prompts)
    assert len(hints) == len(parts)
    known = {innermost(part): part for part in parts}
    for hint in hints:
        assert hint.points is not None
        assert hint.mask is not None
        part = known[tuple((hint.points[0] + 0.5).tolist())]  # type: ignore[index]
        assert np.array_equal(hint.mask.on((30, 40)) > 0, part.on((30, 40)))


def test_hundreds_of_pieces_take_no_more_memory_than_their_boxes() -> None:
    hints = [
        SliceHint(box=np.array([x, y, x + 3, y + 3], np.float32), mask=Patch(values=np.ones((3, 3), np.float32), corner_yx=(y, x)))
        for y in range(0, 200, 5)
        for x in range(0, 200, 5)
    ]
    found = grouped(hints)
    assert len(found) == 1600
    assert sum(hint.mask.values.size for hint in found if hint.mask is not None) == 1600 * 9


masks = st.integers(0, 2**30).map(lambda seed: np.random.default_rng(seed).random((9, 11)) < 0.4)


@settings(deadline=None)
@given(masks, st.tuples(st.integers(0, 8), st.integers(0, 10)))
def test_a_patch_is_the_map_that_it_was_cut_from(mask: np.ndarray, corner: tuple[int, int]) -> None:
    whole = mask.astype(np.float32)
    whole[: corner[0], :] = whole[:, : corner[1]] = 0
    patch = Patch.cut(whole, (slice(corner[0], 9), slice(corner[1], 11)))
    assert np.array_equal(patch.on((9, 11)), whole)
    other = Patch.cut(mask.astype(np.float32), (slice(0, 4), slice(0, 5)))
    assert np.array_equal(patch.joined(other).on((9, 11)), np.maximum(patch.on((9, 11)), other.on((9, 11))))
    assert all(patch.at(x + 0.5, y + 0.5) == whole[y, x] for y in range(9) for x in range(11))
