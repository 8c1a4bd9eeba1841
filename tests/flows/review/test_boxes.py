"""A new box asks the teacher again; it can be taken back, and nobody loses one."""

import runpy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from distill.prompts.choice import chosen_prompts
from distill.prompts.hints import hints_by_slice
from flows.desk import open_desk
from flows.errors import ReviewError
from flows.recipe import Recipe
from flows.results import TEACHER_SET
from flows.review import rebox, take_back
from storage import (
    Archive,
    CaseNotFoundError,
    Catalog,
    IngestError,
    Prompt,
    ReviewConflictError,
)

desk = runpy.run_path(str(Path(__file__).with_name("reviewed.py")))  # tests are no package
draw, refine, run = desk["draw"], desk["refine"], desk["run"]


def test_a_new_box_asks_the_teacher_again_and_rejects_the_mask_meanwhile(archive: Archive, recipe: Recipe, recipe_file: Path) -> None:
    run("review", "rebox", recipe_file, "one", "--class", 1, "--slice", 2, "--box", "3,2,10,9", "--by", "anna")
    [prompt] = archive.catalog.prompts("one")
    assert (prompt.source, prompt.slice, prompt.axis, prompt.box_xyxy_px) == ("review", 2, "z", (3.0, 2.0, 10.0, 9.0))
    [stored] = archive.catalog.reviews(TEACHER_SET)
    assert (stored.verdict, stored.action) == ("reject", "rebox")
    assert "1 verdict and 1 box taken back: reject of class 1 by anna." in run("review", "undo", recipe_file, "one", "--by", "anna")
    assert (archive.catalog.prompts("one"), archive.catalog.reviews(TEACHER_SET)) == ([], [])
    assert "nothing to take back" in run("review", "undo", recipe_file, "one", "--by", "anna")


def test_a_class_that_was_never_drawn_can_be_boxed(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    assert rebox(desk, "one", class_id=2, z=0, box_xyxy=(1, 1, 4, 4)) is None
    assert [(prompt.class_id, prompt.slice) for prompt in archive.catalog.prompts("one")] == [(2, 0)]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"case_id": "on"}, CaseNotFoundError, r"no case 'on'.*Did you mean 'one'", id="unknown case"),
        pytest.param({"class_id": 7}, ReviewError, r"there is no class 7\. Classes: 1 organ, 2 lesion", id="unknown class"),
        pytest.param({"z": 4}, IngestError, r"slice 4|0 to 3", id="slice outside"),
        pytest.param({"box_xyxy": (60, 60, 70, 70)}, IngestError, r"only 0% of .* lies inside the image", id="box outside"),
        pytest.param({"box_xyxy": (9, 2, 3, 9)}, IngestError, r"is inverted or empty: x goes from 9 to 3", id="inverted box"),
        pytest.param({"box_xyxy": (float("nan"), 2, 3, 9)}, (IngestError, ReviewError), r"no number|cannot be used", id="no number"),
    ],
)
def test_a_box_that_cannot_be_is_refused_with_the_reason(
    change: dict[str, object], error: type[Exception], message: str, archive: Archive, recipe: Recipe
) -> None:
    desk = open_desk(recipe.archive, by="anna")
    wanted = {"case_id": "one", "class_id": 1, "z": 1, "box_xyxy": (3, 2, 10, 9)} | change
    with pytest.raises(error, match=message):
        rebox(desk, str(wanted.pop("case_id")), **wanted)  # type: ignore[arg-type]
    assert archive.catalog.prompts("one") == []
    assert archive.catalog.review_history(TEACHER_SET) == []


@pytest.mark.parametrize("class_id", [1, 2], ids=["drawn", "never drawn"])
def test_a_box_that_would_not_be_asked_since_its_class_is_prompted_across_another_axis_is_refused(
    archive: Archive, recipe: Recipe, class_id: int
) -> None:
    weak = [
        Prompt(case="one", class_id=class_id, kind="box", axis="y", slice=at, box_xyxy_px=(2, 1, 8, 3), source=source)
        for at, source in ((4, "weak"), (5, "weak"), (6, "proposed/student"))
    ]
    archive.catalog.add_prompts(weak)
    desk = open_desk(recipe.archive, by="anna")
    with pytest.raises(
        ReviewError, match=rf"class {class_id} is asked about on slices across axis y.*slice_axis j to 'samdistill prompts import'"
    ):
        rebox(desk, "one", class_id=class_id, z=1, box_xyxy=(2, 2, 8, 8))
    assert archive.catalog.prompts("one") == weak
    assert archive.catalog.review_history(TEACHER_SET) == []
    rebox(desk, "two", class_id=class_id, z=1, box_xyxy=(2, 2, 8, 8))


def test_a_box_taken_back_after_the_teacher_used_it_does_not_reject_the_old_mask_for_ever(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    rebox(desk, "one", class_id=1, z=1, box_xyxy=(2, 2, 8, 8))
    draw(archive, "one", "with the box")
    refine(recipe)
    take_back(desk, "one")
    assert archive.catalog.review_history(TEACHER_SET)[-1].filter_said == "accept", "of the mask that is there now"
    draw(archive, "one", "old")
    assert archive.catalog.reviews(TEACHER_SET) == []
    assert [each.action for each in archive.catalog.review_history(TEACHER_SET)] == ["rebox", "undo"]


def test_a_box_of_somebody_else_that_the_teacher_used_is_not_taken_back_unknowingly(archive: Archive, recipe: Recipe) -> None:
    rebox(open_desk(recipe.archive, by="anna"), "one", class_id=1, z=1, box_xyxy=(2, 2, 8, 8))
    draw(archive, "one", "with the box")
    with pytest.raises(ReviewConflictError, match="anna drew a new box"):
        take_back(open_desk(recipe.archive, by="ben"), "one")
    assert len(archive.catalog.prompts("one")) == 1


def test_a_better_box_of_a_class_that_was_never_drawn_replaces_the_first_on_its_slice(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    for z, corner in ((1, 2), (2, 2), (1, 3)):
        rebox(desk, "one", class_id=2, z=z, box_xyxy=(corner, corner, 8, 8))
    assert {(each.slice, each.box_xyxy_px) for each in archive.catalog.prompts("one")} == {(1, (3, 3, 8, 8)), (2, (2, 2, 8, 8))}


@pytest.mark.parametrize("class_id", [1, 2], ids=["drawn", "never drawn"])
def test_boxes_around_several_pieces_on_a_slice_stay_beside_each_other(archive: Archive, recipe: Recipe, class_id: int) -> None:
    archive.catalog.add_prompts([Prompt(case="one", class_id=class_id, kind="box", slice=1, box_xyxy_px=(0, 0, 14, 12))])
    desk = open_desk(recipe.archive, by="anna")
    for box in ((1, 1, 5, 5), (8, 2, 13, 8), (8, 3, 14, 9)):
        rebox(desk, "one", class_id=class_id, z=1, box_xyxy=box)
    record, asked = archive["one"].record, chosen_prompts(archive.catalog.prompts("one"), ("weak",))
    pieces = hints_by_slice(record, asked)[class_id][1]
    assert [each.box.tolist() for each in pieces if each.box is not None] == [[1, 1, 5, 5], [8, 3, 14, 9]]
    assert take_back(desk, "one", class_id=class_id).boxes == 2


def test_of_two_people_who_box_pieces_of_a_class_at_once_neither_loses_a_box(
    archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Barrier(2)
    before = Catalog.replace_boxes

    def at_once(*arguments: Any, **more: Any) -> None:
        both.wait(timeout=30)  # whoever has read what is there by now has read it too early
        before(*arguments, **more)

    monkeypatch.setattr(Catalog, "replace_boxes", at_once)

    def box(who: str) -> None:
        corner = {"anna": 1, "ben": 8}[who]
        rebox(open_desk(recipe.archive, by=who), "one", class_id=2, z=1, box_xyxy=(corner, 1, corner + 4, 6))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(box, ("anna", "ben")))
    assert [each.box_xyxy_px for each in sorted(archive.catalog.prompts("one"), key=lambda each: each.box_xyxy_px or ())] == [
        (1, 1, 5, 6),
        (8, 1, 12, 6),
    ]
