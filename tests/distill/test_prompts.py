"""Prompts become boxes and points per slice, and slices are asked in an order in which parents come first."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.prompts.hints import SliceHint, hints_by_slice, point_inputs, spread, usable_prompts
from distill.prompts.schedule import schedule_slices
from storage import CaseRecord, Geometry, Prompt
from storage.rle import encode

IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
RECORD = CaseRecord(
    id="case", patient="p", shape_czyx=(1, 20, 30, 40), dtype="int16", geometry=Geometry(spacing_zyx_mm=(1.0, 1.0, 1.0), affine=IDENTITY)
)


def boxed(*slices: int) -> dict[int, SliceHint]:
    return {z: SliceHint(box=np.array([z, z, z + 10, z + 12], np.float32)) for z in slices}


def test_boxes_between_two_prompts_are_interpolated() -> None:
    plans = {plan.z: plan for plan in schedule_slices(boxed(4, 8), 20)}
    assert plans[6].box_between is not None
    assert plans[6].box_between.tolist() == [6, 6, 16, 18]


def test_a_slice_midway_waits_for_both_neighbours_and_others_for_the_nearer_one() -> None:
    plans = {plan.z: plan for plan in schedule_slices(boxed(4, 8), 20)}
    assert plans[6].parents == (5, 7)
    assert plans[5].parents == (4,)
    assert plans[7].parents == (8,)


def test_beyond_the_last_prompt_at_most_one_less_than_the_usual_gap_is_asked() -> None:
    asked = {plan.z for plan in schedule_slices(boxed(4, 8, 12), 20)}
    assert asked == set(range(1, 16))


def test_a_single_prompted_slice_may_reach_the_whole_volume() -> None:
    assert {plan.z for plan in schedule_slices(boxed(7), 20)} == set(range(20))


@given(st.sets(st.integers(0, 29), min_size=1, max_size=8), st.integers(30, 40))
def test_every_slice_is_asked_once_and_after_its_parents(prompted: set[int], depth: int) -> None:
    seen: set[int] = set()
    for plan in schedule_slices(boxed(*prompted), depth):
        assert plan.z not in seen
        assert set(plan.parents) <= seen
        assert 0 <= plan.z < depth
        seen.add(plan.z)
    assert prompted <= seen


def test_boxes_about_the_same_piece_are_joined_and_points_collected() -> None:
    prompts = [
        Prompt(case="case", class_id=1, kind="box", slice=3, box_xyxy_px=(2, 3, 8, 9)),
        Prompt(case="case", class_id=1, kind="box", slice=3, box_xyxy_px=(3, 1, 12, 8)),
        Prompt(case="case", class_id=1, kind="point", slice=3, points_xy_px=((4.0, 5.0),)),
        Prompt(case="case", class_id=1, kind="point", slice=3, points_xy_px=((20.0, 20.0),), positive=False),
    ]
    (hint,) = hints_by_slice(RECORD, prompts)[1][3]
    assert hint.box is not None
    assert hint.point_labels is not None
    assert hint.box.tolist() == [2, 1, 12, 9]
    assert hint.point_labels.tolist() == [1, 0]


def point(z: int, *, positive: bool, class_id: int = 1) -> Prompt:
    return Prompt(case="case", class_id=class_id, kind="point", slice=z, points_xy_px=((4.0, 5.0),), positive=positive)


POSITIVE = {
    "a point": point(3, positive=True),
    "a scribble": Prompt(case="case", class_id=1, kind="scribble", slice=3, points_xy_px=((4.0, 5.0), (6.0, 7.0))),
    "a box": Prompt(case="case", class_id=1, kind="box", slice=3, box_xyxy_px=(2, 3, 8, 9)),
    "a mask": Prompt(case="case", class_id=1, kind="mask", slice=3, mask_rle=encode(np.eye(30, 40, dtype=bool)), mask_size_yx=(30, 40)),
    "a 3D box through the slice": Prompt(case="case", class_id=1, kind="box3d", box_zyxzyx_px=(3.2, 5, 6, 15, 25, 36)),
}


@pytest.mark.parametrize("positive", POSITIVE.values(), ids=POSITIVE)
def test_a_negative_point_counts_beside_something_positive_of_its_class_and_slice(positive: Prompt) -> None:
    (hint, *_) = hints_by_slice(RECORD, [point(3, positive=False), positive])[1][3]
    labels = hint.point_labels
    assert labels is not None
    assert 0.0 in labels


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([], id="nothing else at all"),
        pytest.param([point(4, positive=True)], id="a positive point on the next slice"),
        pytest.param([point(3, positive=True, class_id=2)], id="a positive point of another class"),
        pytest.param(
            [Prompt(case="case", class_id=1, kind="box", axis="x", slice=3, box_xyxy_px=(2, 3, 8, 9))], id="a box on another axis"
        ),
        pytest.param([Prompt(case="case", class_id=1, kind="box3d", box_zyxzyx_px=(4, 5, 6, 15, 25, 36))], id="a 3D box above"),
        pytest.param(
            [Prompt(case="case", class_id=1, kind="mask", slice=3, mask_rle=encode(np.zeros((30, 40), bool)), mask_size_yx=(30, 40))],
            id="an empty mask",
        ),
        pytest.param([Prompt(case="case", class_id=1, kind="box", slice=3, box_xyxy_px=(2, 3, 8, 9), positive=False)], id="a negative box"),
    ],
)
def test_negative_points_alone_prompt_no_slice(others: list[Prompt]) -> None:
    assert 3 not in hints_by_slice(RECORD, [point(3, positive=False), *others]).get(1, {})


def test_prompts_that_cannot_be_asked_are_left_out_and_the_others_keep_their_order() -> None:
    given = [point(3, positive=False), point(5, positive=False), POSITIVE["a box"], point(3, positive=True), point(7, positive=False)]
    assert usable_prompts(given) == [given[0], given[2], given[3]]
    assert usable_prompts(usable_prompts(given)) == usable_prompts(given)


def test_that_the_class_is_not_there_makes_no_negative_point_count() -> None:
    absent = Prompt(case="case", class_id=1, kind="absent")
    assert usable_prompts([absent, point(0, positive=False)]) == [absent]


def test_a_3d_box_shrinks_towards_its_poles() -> None:
    prompt = Prompt(case="case", class_id=1, kind="box3d", box_zyxzyx_px=(4, 5, 6, 15, 25, 36))
    hints = hints_by_slice(RECORD, [prompt])[1]
    widths = {z: float(hint.box[2] - hint.box[0]) for z, (hint,) in hints.items() if hint.box is not None}
    assert set(widths) == set(range(4, 15))
    assert widths[9] == max(widths.values()) == 30
    assert widths[4] < widths[6] < widths[9]


def test_prompts_along_other_axes_are_not_mistaken_for_axial_ones() -> None:
    prompt = Prompt(case="case", class_id=1, kind="box", axis="x", slice=3, box_xyxy_px=(2, 3, 8, 9))
    assert hints_by_slice(RECORD, [prompt]) == {}


def four(kind: str, *points: tuple[float, float]) -> SliceHint:
    prompt = Prompt(case="case", class_id=1, kind=kind, slice=3, points_xy_px=points)  # type: ignore[arg-type]
    (hint,) = hints_by_slice(RECORD, [prompt])[1][3]
    return hint


def test_extreme_points_give_their_exact_box_and_points_a_little_inside() -> None:
    ends = np.array([[4.0, 10.0], [12.0, 3.0], [24.0, 9.0], [14.0, 18.0]])
    hint = four("extreme", *map(tuple, ends.tolist()))
    assert hint.box is not None
    assert hint.points is not None
    assert hint.box.tolist() == [4, 3, 24, 18]
    places = hint.points + 0.5
    assert np.allclose(places[4], ends.mean(axis=0))
    assert np.allclose(np.linalg.norm(places[:4] - ends, axis=1), 2)
    assert (np.linalg.norm(places[:4] - places[4], axis=1) < np.linalg.norm(ends - places[4], axis=1)).all()
    assert hint.point_labels is not None
    assert hint.point_labels.tolist() == [1] * 5


def test_the_extreme_points_of_a_tiny_object_stay_inside_it() -> None:
    hint = four("extreme", (4, 5), (5, 4), (6, 5), (5, 6))
    assert hint.points is not None
    assert (np.abs(hint.points + 0.5 - 5) <= 0.5).all()


def test_recist_diameters_give_a_slightly_larger_box_and_points_along_them() -> None:
    hint = four("recist", (5, 10), (25, 10), (12, 4), (12, 14))
    assert hint.box is not None
    assert hint.points is not None
    assert hint.box.tolist() == pytest.approx([5 - 1.6, 4 - 0.8, 25 + 1.6, 14 + 0.8])
    assert (hint.points + 0.5).tolist() == [[12, 10], [10, 10], [20, 10], [12, 6.5], [12, 11.5]]


@pytest.mark.parametrize("short", [((5, 12), (25, 12)), ((40, 4), (40, 14))], ids=["side by side", "crossing outside"])
def test_diameters_that_do_not_cross_have_their_middle_instead(short: tuple[tuple[float, float], ...]) -> None:
    ends = np.array([(5, 10), (25, 10), *short], float)
    hint = four("recist", *map(tuple, ends.tolist()))
    assert hint.points is not None
    assert np.allclose(hint.points[0] + 0.5, ends.mean(axis=0))


def test_on_slices_where_a_reviewer_drew_a_box_through_the_volume_adds_nothing() -> None:
    whole = Prompt(case="case", class_id=1, kind="box3d", box_zyxzyx_px=(4, 5, 6, 15, 25, 36))
    drawn = Prompt(case="case", class_id=1, kind="box", slice=9, box_xyxy_px=(10, 11, 14, 16), source="review")
    hints, before = hints_by_slice(RECORD, [whole, drawn])[1], hints_by_slice(RECORD, [whole])[1]
    (redrawn,) = hints[9]
    assert redrawn.box is not None
    assert redrawn.box.tolist() == [10, 11, 14, 16]
    assert all(np.array_equal(hints[z][0].box, before[z][0].box) for z in before if z != 9)  # type: ignore[arg-type]


def test_of_many_points_those_are_asked_that_cover_them_best() -> None:
    crowd = [(10.0 + 0.1 * n, 10.0) for n in range(20)]
    line = Prompt(case="case", class_id=1, kind="scribble", slice=3, points_xy_px=(*crowd, (30.5, 10.5), (30.5, 25.5)))
    (hint,) = hints_by_slice(RECORD, [line])[1][3]
    assert hint.points is not None
    assert len(hint.points) == 4
    assert {(30.0, 10.0), (30.0, 25.0)} <= {tuple(point) for point in hint.points.tolist()}
    assert point_inputs([line], [1]), "labels that were drawn from other points are made anew"
    assert not point_inputs([POSITIVE["a box"]], [1])


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 30)), min_size=1, max_size=12), st.integers(1, 5))
def test_points_are_spread_without_repeats_and_in_their_order(places: list[tuple[int, int]], count: int) -> None:
    chosen = spread(np.array(places, np.float32), count)
    assert chosen == sorted(chosen)
    assert len(chosen) == min(len(places), count)
    assert len({places[n] for n in chosen}) == min(len(set(places)), count) or len(places) <= count
