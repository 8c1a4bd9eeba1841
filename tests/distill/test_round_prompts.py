"""What people said stays in later rounds; students speak where nobody did."""

from distill.round_prompts import merged_prompts
from storage import Prompt


def box(z: int, *, class_id: int = 1, axis: str = "z", at: float = 0.0) -> Prompt:
    return Prompt(case="a", class_id=class_id, kind="box", slice=z, axis=axis, box_xyxy_px=(at, at, at + 5, at + 5))  # type: ignore[arg-type]


def test_a_slice_that_a_person_prompted_keeps_what_they_said() -> None:
    given, proposed = [box(4)], [box(z, at=9.0) for z in (3, 4, 5)]
    assert merged_prompts(given, proposed) == [given[0], proposed[0], proposed[2]]


def test_another_class_on_the_same_slice_is_prompted_by_students() -> None:
    assert merged_prompts([box(4)], [box(4, class_id=2)]) == [box(4), box(4, class_id=2)]


def test_nothing_is_added_about_a_class_that_is_asked_along_another_axis() -> None:
    assert merged_prompts([box(4, axis="x")], [box(3)]) == [box(4, axis="x")]


def test_nothing_is_added_about_a_class_that_somebody_said_is_absent() -> None:
    absent = Prompt(case="a", class_id=1, kind="absent", confidence=1.0)
    assert merged_prompts([absent], [box(3), box(3, class_id=2)]) == [absent, box(3, class_id=2)]


def test_a_box_over_a_volume_gives_way_to_boxes_on_its_slices_only_where_there_are_some() -> None:
    whole = Prompt(case="a", class_id=1, kind="box3d", box_zyxzyx_px=(0, 0, 0, 5, 5, 5))  # type: ignore[call-arg]
    assert merged_prompts([whole], [box(3)]) == [box(3)]
    assert merged_prompts([whole], [box(3, class_id=2)]) == [whole, box(3, class_id=2)]


def test_students_cannot_say_that_what_people_prompted_is_absent() -> None:
    given = [Prompt(case="a", class_id=1, kind="box3d", box_zyxzyx_px=(0, 0, 0, 4, 4, 4))]  # type: ignore[call-arg]
    absent = [Prompt(case="a", class_id=1, kind="absent"), Prompt(case="a", class_id=2, kind="absent")]
    assert merged_prompts(given, absent) == [*given, absent[1]]
