"""What reviewers can do, what they are told when they cannot, and what a verdict changes in the next run."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from distill.prompts.choice import chosen_prompts
from distill.prompts.hints import hints_by_slice
from distill.review_queue import Candidate, QueuePlan, review_queue
from flows import review, review_picture, stages
from flows.cli import app
from flows.desk import open_desk
from flows.errors import ReviewError, StageError
from flows.filtering import filter_page, write_filter_report
from flows.freshness import material
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import PSEUDO_SET, TEACHER_SET, StageResult, with_report
from flows.review import accepted_share, decide, rebox, remember_shown, take_back, waiting
from flows.review_words import numbers
from storage import (
    Archive,
    CaseNotFoundError,
    CaseRecord,
    Catalog,
    ClassInfo,
    Geometry,
    IngestError,
    LabelHistory,
    Prompt,
    ReviewConflictError,
)
from students.review_sheet import Line, review_sheet

WriteRecipe = Callable[[str], Path]
IDENTITY = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
CLASSES = (ClassInfo(id=1, name="organ"), ClassInfo(id=2, name="lesion"))
SHAPE = (4, 12, 14)


def draw(archive: Archive, case: str, print_: str) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 3:9, 4:10] = 1
    history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint=print_)
    probability = np.stack([mask, 0 * mask]) * 255
    archive[case].write_labels(history, mask, probability_kzyx=probability, scores={"pairwise_dice/1": 0.95})


@pytest.fixture
def recipe_file(write_recipe: WriteRecipe) -> Path:
    return write_recipe("archive: ./a.zarr\nclasses: {1: {name: organ}, 2: {name: lesion}}\nrefine: {consistency: none}\n")


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    return load_recipe(recipe_file)


@pytest.fixture
def archive(recipe: Recipe) -> Archive:
    """Three scans of which the teacher drew class 1."""
    made = Archive.create(recipe.archive)
    for name in ("one", "two", "three"):
        record = CaseRecord(
            id=name, patient=name, shape_czyx=(1, *SHAPE), dtype="uint8", geometry=Geometry(spacing_zyx_mm=(1, 1, 1), affine=IDENTITY)
        )
        made.add_case(record, np.arange(np.prod(SHAPE), dtype=np.uint8).reshape(1, *SHAPE))
        draw(made, name, "old")
    return made


def refine(recipe: Recipe) -> None:
    stages.refine(recipe, stages.Shard(name="1/1", cases=("one", "two", "three"), offset=0, total=3))


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_go_from_a_list_to_a_verdict_that_the_next_refine_uses(archive: Archive, recipe: Recipe, recipe_file: Path) -> None:
    refine(recipe)
    shown = json.loads(run("review", "list", recipe_file, "--by", "anna", "--json"))
    assert {(each["case"], each["class_id"]) for each in shown} == {("one", 1), ("two", 1), ("three", 1)}
    assert shown[0]["filter_says"] == "accept (good-agreement)"
    run("review", "reject", recipe_file, "two", "--by", "anna", "--note", "other organ")
    [stored] = archive.catalog.reviews(TEACHER_SET)
    assert (stored.case, stored.verdict, stored.by, stored.filter_said, stored.note) == ("two", "reject", "anna", "accept", "other organ")
    refine(recipe)
    parameters = archive["two"].labels(PSEUDO_SET).history.parameters
    assert parameters["verdict/1"] == "reject"
    assert len(archive.catalog.reviews(TEACHER_SET)) == 1, "the verdict survives the new pseudo-label"
    run("review", "undo", recipe_file, "two", "--by", "anna")
    refine(recipe)
    assert archive["two"].labels(PSEUDO_SET).history.parameters["verdict/1"] == "accept"


def test_the_list_of_an_archive_needs_no_recipe(archive: Archive, recipe: Recipe) -> None:
    assert "not refined yet" in run("review", "list", recipe.archive, "--by", "anna")


def test_a_picture_shows_numbered_slices_and_counts_as_looked_at(
    archive: Archive, recipe: Recipe, recipe_file: Path, tmp_path: Path
) -> None:
    refine(recipe)
    out = tmp_path / "one.png"
    run("review", "show", recipe_file, "one", "-o", out, "--by", "anna")
    assert min(Image.open(out).size) > 300
    assert archive.catalog.listed("one", TEACHER_SET, "anna")[1].source == "asked"
    with pytest.raises(ReviewError, match=r"the picture is a PNG, but .*one\.jpg ends otherwise"):
        run("review", "show", recipe_file, "one", "-o", tmp_path / "one.jpg")


def test_the_line_to_be_judged_is_the_mask_as_refinement_cuts_it_also_after_it_was_rejected(
    archive: Archive, recipe: Recipe, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[Sequence[Line], Sequence[str]]] = []

    def look(*arguments: Any, title: Sequence[str], **more: Any) -> Image.Image:
        kept.append((arguments[1], title))
        return review_sheet(*arguments, title=title, **more)

    monkeypatch.setattr(review_picture, "review_sheet", look)
    decide(open_desk(recipe.archive, by="anna"), "one", "reject")
    refine(recipe)
    run("review", "show", recipe_file, "one", "-o", tmp_path / "one.png", "--by", "anna")
    [(lines, [title])] = kept
    judged, drawn = lines
    assert (judged.bold, drawn.bold) == (True, False)
    assert "TO BE JUDGED, class 1 organ" in judged.words
    assert (archive["one"].labels(PSEUDO_SET).read() != 1).all(), "nothing of it is in the pseudo-label"
    assert np.array_equal(judged.mask, archive["one"].labels(TEACHER_SET).read() == 1)
    assert title.startswith(
        "one, class 1 organ: agreement 0.950 (accepted from 0.850); the filter says reject (rejected-by-a-person); anna: reject, 20"
    )


def test_the_predicted_dice_stands_in_list_and_picture_with_its_error_bars(
    archive: Archive, recipe: Recipe, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []

    def look(*arguments: Any, title: Sequence[str], **more: Any) -> Image.Image:
        titles.extend(title)
        return review_sheet(*arguments, title=title, **more)

    monkeypatch.setattr(review_picture, "review_sheet", look)
    refine(recipe)
    assert "predicted Dice" not in run("review", "list", recipe_file, "--by", "anna")
    scores = {"predicted_dice/1": 0.8125, "predicted_dice_low/1": 0.7, "predicted_dice_high/1": 0.91}
    archive.catalog.add_scores("two", TEACHER_SET, scores)
    table = run("review", "list", recipe_file, "--by", "anna")
    assert "predicted" in table
    assert "0.81 (0.70" in table
    listed = {each["case"]: each for each in json.loads(run("review", "list", recipe_file, "--by", "anna", "--json"))}
    assert [listed["two"][name] for name in ("predicted_dice", "predicted_low", "predicted_high")] == list(scores.values())
    assert [listed["one"][name] for name in ("predicted_dice", "predicted_low", "predicted_high")] == [None] * 3
    run("review", "show", recipe_file, "two", "-o", tmp_path / "two.png", "--by", "anna")
    assert "predicted Dice 0.812 (0.70 to 0.91)" in titles[0]


def test_before_refinement_the_line_to_be_judged_is_what_it_will_cut(archive: Archive, recipe: Recipe, recipe_file: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 3:9, 4:10] = 1
    mask[3, 0, 13] = 1
    history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint="with a speck")
    refine(recipe)
    archive["one"].write_labels(history, mask, probability_kzyx=np.stack([mask, 0 * mask]) * 255, scores={"pairwise_dice/1": 0.95})
    desk = open_desk(str(recipe_file), by="anna", ranking=True)
    [judged, drawn], shade = review_picture._lines(desk, archive["one"], [1])
    assert judged.words.endswith("as refinement will cut it")
    assert (bool(drawn.mask[3, 0, 13]), bool(judged.mask[3, 0, 13])) == (True, False), "the largest component is kept"
    assert shade is None, "what was ignored of the earlier mask says nothing of this one"


def test_two_reviewers_at_once_do_not_overrule_each_other_unknowingly(archive: Archive, recipe: Recipe) -> None:
    anna, ben = open_desk(recipe.archive, by="anna"), open_desk(recipe.archive, by="ben")
    waiting(anna, 9)
    waiting(ben, 9)
    decide(anna, "one", "accept")
    with pytest.raises(ReviewConflictError, match=r"anna said 'accept' at .* after you were shown it"):
        decide(ben, "one", "reject")
    decide(ben, "one", "reject", force=True)
    assert [each.verdict for each in archive.catalog.reviews(TEACHER_SET)] == ["reject"]
    with pytest.raises(ReviewConflictError, match="ben said 'reject'"):
        take_back(anna, "one")


def test_who_looks_again_knows_and_may_decide(archive: Archive, recipe: Recipe) -> None:
    anna, ben = open_desk(recipe.archive, by="anna"), open_desk(recipe.archive, by="ben")
    decide(anna, "one", "accept")
    with pytest.raises(ReviewConflictError):
        decide(ben, "one", "reject")
    remember_shown(ben, archive["one"], [1])
    decide(ben, "one", "reject")
    assert [each.by for each in archive.catalog.review_history(TEACHER_SET)] == ["anna", "ben"]


def test_a_verdict_on_what_was_drawn_anew_since_the_list_is_refused_unless_forced(archive: Archive, recipe: Recipe) -> None:
    anna = open_desk(recipe.archive, by="anna")
    waiting(anna, 9)
    draw(archive, "one", "new")
    with pytest.raises(ReviewConflictError, match="was drawn anew since it was looked at"):
        decide(anna, "one", "accept")
    decide(anna, "one", "accept", force=True)
    assert archive.catalog.reviews(TEACHER_SET)[0].fingerprint == "new"


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


def test_what_cannot_be_judged_is_refused_with_the_reason(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    with pytest.raises(CaseNotFoundError, match="no case 'four'"):
        decide(desk, "four", "accept")
    with pytest.raises(ReviewError, match="class 2 was not drawn, so there is nothing to judge"):
        decide(desk, "one", "accept", class_id=2)
    with pytest.raises(ReviewError, match="at most 500 letters"):
        decide(desk, "one", "accept", note="x" * 501)
    with pytest.raises(ReviewError, match=r"a reviewer's name is 1 to 64 letters.*--by NAME"):
        open_desk(recipe.archive, by="Anna Meier")
    with pytest.raises(ReviewError, match="--box takes four numbers"):
        numbers("1,2,3")
    archive["one"].delete_labels(TEACHER_SET)
    with pytest.raises(ReviewError, match="the teacher has drawn nothing in it"):
        decide(desk, "one", "accept")


def test_an_empty_archive_says_so(recipe: Recipe) -> None:
    Archive.create(recipe.archive)
    assert "Nothing waits for a person" in run("review", "list", recipe.archive, "--by", "anna")
    assert "No verdict yet on a random one of 0 masks" in run("review", "estimate", recipe.archive, "--by", "anna")


def test_the_estimate_is_of_verdicts_and_says_so(archive: Archive, recipe: Recipe, recipe_file: Path) -> None:
    desk = open_desk(recipe.archive, by="anna")
    for each in waiting(desk, 9):
        decide(desk, each.case, "accept")
    found = accepted_share(desk)
    assert (found.masks, found.drawn, found.judged, found.accepted) == (3, 3, 3, 3)
    assert "This counts verdicts; it is no Dice." in run("review", "estimate", recipe_file, "--by", "anna")
    assert json.loads(run("review", "estimate", recipe_file, "--by", "anna", "--json"))["masks"] == 3


def test_a_run_with_a_new_verdict_is_not_up_to_date(archive: Archive, recipe: Recipe) -> None:
    before = material(archive)
    decide(open_desk(recipe.archive, by="anna"), "one", "ignore")
    assert material(archive) != before


def test_the_filter_report_is_written_once_per_state_of_what_it_shows(archive: Archive, recipe: Recipe) -> None:
    refine(recipe)
    first, again = write_filter_report(archive, recipe), write_filter_report(archive, recipe)
    assert (first.done, again.done, again.skipped) == (1, 0, 1)
    page = filter_page(recipe).read_text(encoding="utf-8")
    assert "No case has gold, so nothing here is accuracy" in page
    assert "agreement" in page
    for outside in ("http://", "https://", "<script", "@import", 'src="/'):
        assert outside not in page, "one file, and no network"
    assert filter_page(recipe).with_suffix(".json").is_file()
    decide(open_desk(recipe.archive, by="anna"), "one", "reject")
    assert write_filter_report(archive, recipe).done == 1
    filter_page(recipe).unlink()
    assert write_filter_report(archive, recipe).done == 1


def test_a_report_that_fails_costs_nobody_their_labels(archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import filtering

    refine(recipe)

    def fail(*_: object, **__: object) -> None:
        message = "no room"
        raise OSError(message)

    monkeypatch.setattr(filtering, "write_filter_page", fail)
    result = write_filter_report(archive, recipe)
    assert (result.failed, result.note) == (1, "the filter report could not be written (OSError: no room)")
    assert archive["one"].labels(PSEUDO_SET).read().any()


def test_the_table_of_a_run_names_the_report_and_counts_one_that_failed() -> None:
    refined = StageResult(stage="refine", done=2, note="defaults stand")
    written = with_report(refined, StageResult(stage="filter", done=1, output="reports/filter.html", note="WARNING"))
    assert (written.done, written.note) == (2, "defaults stand; filter report: reports/filter.html; WARNING")
    assert with_report(refined, StageResult(stage="filter", failed=1, note="no room")).failed == 1


def test_a_page_where_everything_was_rejected_says_so(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    for case in ("one", "two", "three"):
        decide(desk, case, "reject")
    refine(recipe)
    write_filter_report(archive, recipe)
    page = filter_page(recipe).read_text(encoding="utf-8")
    assert "Nothing was kept, so there is nothing to learn from" in page
    assert "3 masks have" in page


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


@pytest.mark.parametrize("decision", ["box", "verdict"])
def test_one_undo_takes_the_last_verdict_back_also_while_the_labels_are_away(
    archive: Archive, recipe: Recipe, recipe_file: Path, decision: str
) -> None:
    desk = open_desk(recipe.archive, by="anna")
    decide(desk, "one", "accept")
    if decision == "box":
        rebox(desk, "one", class_id=1, z=1, box_xyxy=(2, 2, 8, 8))
    else:
        decide(desk, "one", "reject")
    archive["one"].delete_labels(TEACHER_SET)
    with pytest.raises(ReviewConflictError, match="anna"):
        take_back(open_desk(recipe.archive, by="ben"), "one")
    said = run("review", "undo", recipe_file, "one", "--by", "anna")
    assert f"1 verdict and {1 if decision == 'box' else 0} box" in said
    assert "reject of class 1 by anna.\nThe case has no labels at the moment" in said
    draw(archive, "one", "old")
    assert archive.catalog.reviews(TEACHER_SET) == [], "the same masks have come back, and nothing is said of them"
    assert "nothing to take back" in run("review", "undo", recipe_file, "one", "--by", "anna")
    assert [each.action for each in archive.catalog.review_history(TEACHER_SET)][-1] == "undo"
    assert len(archive.catalog.review_history(TEACHER_SET)) == 3


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


def test_a_persons_word_on_masks_that_were_drawn_anew_is_not_what_the_filter_said(archive: Archive, recipe: Recipe) -> None:
    desk = open_desk(recipe.archive, by="anna")
    decide(desk, "two", "accept")
    refine(recipe)
    draw(archive, "two", "anew")
    [stored] = decide(desk, "two", "accept")
    assert stored.filter_said == ""


def test_what_the_filter_said_of_masks_that_were_drawn_anew_since_is_not_shown_for_these(archive: Archive, recipe: Recipe) -> None:
    refine(recipe)
    desk = open_desk(recipe.archive, by="anna")
    draw(archive, "two", "anew")
    says = {each.case: each.filter_says for each in waiting(desk, 9)}
    assert (says["one"], says["two"]) == ("accept (good-agreement)", "not refined yet")
    assert decide(desk, "two", "accept")[0].filter_said == ""


def test_a_verdict_on_several_classes_is_stored_for_all_or_for_none(archive: Archive, recipe: Recipe) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 3:6, 4:9], mask[2, 3:6, 4:9] = 1, 2
    history = LabelHistory(label_set=TEACHER_SET, classes=CLASSES, made_by="test", fingerprint="old")
    probability = np.stack([mask == 1, mask == 2]).astype(np.uint8) * 255
    archive["one"].write_labels(history, mask, probability_kzyx=probability, scores={"pairwise_dice/1": 0.9, "pairwise_dice/2": 0.9})
    anna, ben = open_desk(recipe.archive, by="anna"), open_desk(recipe.archive, by="ben")
    decide(anna, "one", "accept", class_id=2)
    with pytest.raises(ReviewConflictError, match="class 2: anna said 'accept'"):
        decide(ben, "one", "reject")
    assert [(each.class_id, each.by) for each in archive.catalog.reviews(TEACHER_SET)] == [(2, "anna")]
    decide(ben, "one", "reject", force=True)
    with pytest.raises(ReviewConflictError, match="ben said 'reject'"):
        take_back(anna, "one")
    assert [each.verdict for each in archive.catalog.reviews(TEACHER_SET)] == ["reject", "reject"]


def test_a_case_that_is_drawn_anew_while_the_list_is_made_is_left_out(
    archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranked(archive: Archive, plan: QueuePlan, limit: int) -> list[Candidate]:
        found = review_queue(archive, plan, limit)
        archive.catalog.retract_label_set("one", TEACHER_SET)
        return found

    monkeypatch.setattr(review, "review_queue", ranked)
    assert {each.case for each in waiting(open_desk(recipe.archive, by="anna"), 9)} == {"two", "three"}


def test_what_somebody_decides_while_the_list_is_made_counts_as_not_seen(
    archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = open_desk(recipe.archive, by="anna"), open_desk(recipe.archive, by="ben")

    def ranked(archive: Archive, plan: QueuePlan, limit: int) -> list[Candidate]:
        found = review_queue(archive, plan, limit)
        decide(ben, "one", "accept")
        return found

    monkeypatch.setattr(review, "review_queue", ranked)
    waiting(anna, 9)
    with pytest.raises(ReviewConflictError, match="ben said 'accept'"):
        decide(anna, "one", "reject")


@pytest.mark.parametrize("event", ["decided", "drawn anew"])
def test_what_happens_while_the_picture_is_made_counts_as_not_seen(
    archive: Archive, recipe: Recipe, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: str
) -> None:
    anna, ben = open_desk(str(recipe_file), by="anna", ranking=True), open_desk(recipe.archive, by="ben")

    def sheet(*arguments: Any, **more: Any) -> Image.Image:
        if event == "decided":
            decide(ben, "one", "accept")
        else:
            draw(archive, "one", "anew")
        return review_sheet(*arguments, **more)

    monkeypatch.setattr(review_picture, "review_sheet", sheet)
    review_picture.write_sheet(anna, "one", 1, tmp_path / "one.png")
    with pytest.raises(ReviewConflictError, match=r"ben said 'accept'|was drawn anew since it was looked at"):
        decide(anna, "one", "reject")


def test_nobody_learns_from_what_was_refined_of_masks_that_have_been_drawn_anew_since(archive: Archive, recipe: Recipe) -> None:
    refine(recipe)
    draw(archive, "one", "anew")
    with pytest.raises(
        StageError, match=r"1 of 3 accepted pseudo-labels.*drawn anew since, such as one\. Run 'samdistill refine RECIPE' first"
    ):
        stages.train(recipe)
