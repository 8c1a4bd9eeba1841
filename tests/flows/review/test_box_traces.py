"""A person's new box leaves a trace: who drew it, when, and whether the teacher has seen it."""

import runpy
from pathlib import Path

from typer.testing import CliRunner

from flows.cli import app
from flows.desk import open_desk
from flows.results import TEACHER_SET
from flows.review import decide, rebox, take_back
from flows.review_list import waiting
from storage import Archive

desk = runpy.run_path(str(Path(__file__).with_name("reviewed.py")))  # tests are no package
draw = desk["draw"]


def states(archive: Archive, limit: int = 9) -> list[tuple[str, int, str]]:
    return [(each.case, each.class_id, each.state) for each in waiting(open_desk(archive.url, by="ben"), limit)]


def test_a_new_box_is_listed_as_waiting_then_as_drawn_again_and_then_not_at_all(archive: Archive) -> None:
    anna = open_desk(archive.url, by="anna")
    rebox(anna, "two", class_id=1, z=2, box_xyxy=(3, 2, 10, 9))
    [stored] = archive.catalog.reviews(TEACHER_SET)
    *others, boxed = waiting(anna, 9)
    assert {each.case for each in others} == {"one", "three"}
    assert (boxed.case, boxed.state) == ("two", "waits for the teacher")
    assert boxed.why == f"waits for the next 'label': anna drew a box on slice 2, {stored.at}"
    draw(archive, "two", "with the box")
    first = waiting(anna, 1)[0]
    assert (first.case, first.state, first.why) == ("two", "drawn again", f"drawn again: anna drew a box on slice 2, {stored.at}")
    decide(anna, "two", "accept")
    assert {case for case, *_ in states(archive)} == {"one", "three"}


def test_a_box_that_was_taken_back_leaves_the_list_as_it_was(archive: Archive) -> None:
    anna = open_desk(archive.url, by="anna")
    rebox(anna, "two", class_id=1, z=2, box_xyxy=(3, 2, 10, 9))
    take_back(anna, "two")
    assert {state for *_, state in states(archive)} == {"to judge"}


def test_the_first_box_of_a_class_that_was_never_drawn_waits_too(archive: Archive) -> None:
    rebox(open_desk(archive.url, by="anna"), "one", class_id=2, z=0, box_xyxy=(1, 1, 4, 4))
    assert ("one", 2, "waits for the teacher") in states(archive)


def test_boxes_that_wait_are_no_work_for_a_person_and_do_not_count_as_shown(archive: Archive) -> None:
    rebox(open_desk(archive.url, by="anna"), "two", class_id=1, z=2, box_xyxy=(3, 2, 10, 9))
    assert [state for *_, state in states(archive, limit=1)] == ["to judge", "waits for the teacher"]
    assert archive.catalog.listed("two", TEACHER_SET, "ben") == {}


def test_the_printed_list_has_a_table_of_boxes_that_wait(archive: Archive) -> None:
    rebox(open_desk(archive.url, by="anna"), "two", class_id=1, z=2, box_xyxy=(3, 2, 10, 9))
    result = CliRunner().invoke(app, ["review", "list", archive.url, "--by", "ben"], catch_exceptions=False)
    assert "2 masks to look at first" in result.output
    assert "1 mask has a new box that the teacher has not seen yet" in result.output
    assert "anna drew a box on slice 2" in result.output
