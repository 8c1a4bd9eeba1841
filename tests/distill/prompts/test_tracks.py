"""Pieces of a class are followed from slice to slice, each along its own track."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.prompts.schedule import SlicePlan, schedule_slices
from distill.prompts.slice_hint import SliceHint
from distill.prompts.tracks import box_fit, tracks_of


def at(x: float, y: float, side: float = 10) -> SliceHint:
    return SliceHint(box=np.array([x, y, x + side, y + side], np.float32))


def places(track: dict[int, SliceHint]) -> dict[int, float]:
    return {z: float(hint.box[0]) for z, hint in track.items() if hint.box is not None}


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 19), st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=1, max_size=6))
def test_one_piece_per_slice_is_one_track_however_far_it_jumps(corners: dict[int, tuple[int, int]]) -> None:
    hints = {z: at(*corner) for z, corner in corners.items()}
    assert [set(track) for track in tracks_of({z: [hint] for z, hint in hints.items()})] == [set(hints)]
    one, many = schedule_slices(hints, 20), schedule_slices({z: (hint,) for z, hint in hints.items()}, 20)
    assert [(plan.z, plan.distance, plan.parents, plan.track) for plan in one] == [
        (plan.z, plan.distance, plan.parents, plan.track) for plan in many
    ]
    assert {plan.track for plan in one} == {0}


def test_pieces_go_on_where_they_fit_best_and_not_in_the_order_of_the_prompts() -> None:
    left, right = tracks_of({2: [at(0, 0), at(30, 0)], 6: [at(33, 1), at(2, 1)]})
    assert places(left) == {2: 0, 6: 2}
    assert places(right) == {2: 30, 6: 33}


def test_a_piece_far_from_all_others_is_another_one() -> None:
    first, second, third = tracks_of({2: [at(0, 0), at(30, 0)], 6: [at(0, 0), at(60, 60)]})
    assert (places(first), places(second), places(third)) == ({2: 0, 6: 0}, {2: 30}, {6: 60})


def test_a_piece_that_ends_while_another_begins_costs_no_other_its_partner() -> None:
    tracks = tracks_of({2: [at(29, 4), at(16, 2), at(5, 6)], 6: [at(25, 0), at(13, 6), at(39, 7)]})
    assert [places(track) for track in tracks] == [{2: 29, 6: 25}, {2: 16, 6: 13}, {2: 5}, {6: 39}]


def of_track(plans: list[SlicePlan], number: int) -> dict[int, SlicePlan]:
    return {plan.z: plan for plan in plans if plan.track == number}


def test_a_piece_that_the_next_prompted_slice_lacks_is_asked_about_where_it_is_nearer() -> None:
    plans = schedule_slices({2: (at(0, 0), at(30, 0)), 8: (at(1, 0),)}, 20, reach=1)
    goes_on, ends = of_track(plans, 0), of_track(plans, 1)
    assert set(goes_on) == set(range(1, 10))
    assert set(ends) == {1, 2, 3, 4}
    assert ends[4].parents == (3,)
    assert ends[4].box_between is None
    assert goes_on[4].box_between is not None


def test_a_piece_that_begins_later_is_asked_about_before_it_only_where_it_is_nearer() -> None:
    plans = schedule_slices({2: (at(0, 0),), 6: (at(1, 0), at(30, 0)), 8: (at(1, 0),)}, 20, reach=0)
    assert set(of_track(plans, 1)) == {5, 6}


rows = st.dictionaries(
    st.integers(0, 24),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=4, unique=True),
    min_size=1,
    max_size=6,
)


@settings(deadline=None)
@given(rows, st.integers(25, 30))
def test_every_piece_is_asked_once_on_a_slice_and_after_its_parents(corners: dict[int, list[tuple[int, int]]], depth: int) -> None:
    hints = {z: [at(*corner) for corner in each] for z, each in corners.items()}
    plans = schedule_slices(hints, depth)
    seen: set[tuple[int, int]] = set()
    distances: dict[int, int] = {}
    for plan in plans:
        assert (plan.track, plan.z) not in seen
        assert {(plan.track, z) for z in plan.parents} <= seen
        assert 0 <= plan.z < depth
        assert distances.setdefault(plan.z, plan.distance) == plan.distance  # all pieces of a slice are asked together
        seen.add((plan.track, plan.z))
    asked = Counter(plan.z for plan in plans if plan.hint is not None)
    assert asked == {z: len(each) for z, each in hints.items()}


def test_boxes_fit_from_the_same_to_far_apart() -> None:
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [90, 90, 100, 100]], float)
    fit = box_fit(boxes[:1], boxes)[0]
    assert fit[0] == 1
    assert (np.diff(fit) < 0).all()
    assert fit[1] > 0 > fit[2]
    assert np.isclose(fit[2], -1 / 3)
