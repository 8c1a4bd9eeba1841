"""Of all stored prompts, a chain asks with those of its first source that says something about a class."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.prompts.choice import chosen_prompts, drawing_sources, open_classes
from storage import Prompt


def box(class_id: int, source: str, z: int = 0) -> Prompt:
    return Prompt(case="c", class_id=class_id, kind="box", slice=z, box_xyxy_px=(1, 1, 5, 5), source=source)


WEAK, GUESS, STUDENT = box(1, "weak"), box(1, "proposed/exemplar"), box(1, "proposed/student")


def test_whatever_name_a_person_stored_prompts_under_they_are_weak() -> None:
    mine = box(1, "clinic-export-2024")
    assert chosen_prompts([mine, GUESS], ["weak"]) == [mine]


def test_the_first_source_that_says_something_about_a_class_has_it() -> None:
    assert chosen_prompts([WEAK, GUESS, STUDENT], ["student", "weak"]) == [STUDENT]
    assert chosen_prompts([WEAK, GUESS], ["student", "weak"]) == [WEAK]


def test_each_class_of_a_case_is_decided_on_its_own() -> None:
    other = box(2, "proposed/exemplar")
    assert chosen_prompts([WEAK, GUESS, other], ["weak", "exemplar"]) == [WEAK, other]


def test_prompts_of_sources_that_a_chain_does_not_name_are_not_asked() -> None:
    assert chosen_prompts([GUESS, STUDENT], ["weak"]) == []


def test_propagate_alone_carries_what_people_left() -> None:
    assert drawing_sources(["propagate"]) == ("weak",)
    assert chosen_prompts([WEAK, GUESS], ["propagate"]) == [WEAK]


def test_what_a_reviewer_drew_replaces_all_else_on_its_slice_and_nothing_on_others() -> None:
    drawn, here, there = box(1, "review", z=3), box(1, "weak", z=3), box(1, "weak", z=7)
    assert chosen_prompts([here, there, drawn], ["weak"]) == [there, drawn]


def test_what_a_reviewer_drew_overrules_that_the_class_is_absent() -> None:
    absent = Prompt(case="c", class_id=1, kind="absent", source="proposed/exemplar")
    assert chosen_prompts([absent, box(1, "review", z=3)], ["exemplar"]) == [box(1, "review", z=3)]


def test_absence_closes_a_class_for_the_sources_behind() -> None:
    absent = Prompt(case="c", class_id=1, kind="absent", source="weak")
    assert open_classes([absent], ["weak"], [1, 2]) == (2,)


@given(st.permutations([WEAK, GUESS, STUDENT, box(2, "proposed/student"), box(2, "weak", z=4)]))
def test_the_choice_does_not_depend_on_the_order_in_which_prompts_are_stored(prompts: list[Prompt]) -> None:
    chosen = chosen_prompts(prompts, ["exemplar", "student", "weak"])
    assert sorted(map(repr, chosen)) == sorted(map(repr, [GUESS, box(2, "proposed/student")]))


VOLUME_BOX = Prompt(case="c", class_id=1, kind="box3d", box_zyxzyx_px=(0, 2, 2, 6, 20, 20))


def test_what_a_reviewer_drew_on_the_first_slice_leaves_a_box_through_the_volume_to_the_others() -> None:
    drawn = box(1, "review", z=0)
    assert chosen_prompts([VOLUME_BOX, drawn], ["weak"]) == [VOLUME_BOX, drawn]


def test_what_was_drawn_on_coronal_slices_speaks_for_its_class() -> None:
    drawn = Prompt(case="c", class_id=1, kind="box", axis="y", slice=0, box_xyxy_px=(1, 1, 5, 5))
    assert open_classes([drawn], ["weak"], [1]) == ()
    assert chosen_prompts([drawn, GUESS], ["weak", "exemplar"]) == [drawn]


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(
            Prompt(case="c", class_id=1, kind="point", slice=0, points_xy_px=((3.0, 3.0),), positive=False), id="only what it is not"
        ),
    ],
)
def test_what_nobody_can_be_asked_with_leaves_a_class_to_the_next_source(silent: Prompt) -> None:
    assert open_classes([silent], ["weak"], [1]) == (1,)
    assert chosen_prompts([silent, GUESS], ["weak", "exemplar"]) == [GUESS]
    assert chosen_prompts([silent], ["weak", "exemplar"]) == [silent]
