"""What reviewers are shown and decide, and what they are told when they cannot."""

import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.review_queue import Candidate, QueuePlan, review_queue
from flows import review_list, review_picture, teaching
from flows.desk import open_desk
from flows.errors import ReviewError, StageError
from flows.recipe import Recipe
from flows.results import PSEUDO_SET, TEACHER_SET
from flows.review import decide, rebox, take_back
from flows.review_list import accepted_share, as_shown, waiting
from flows.review_words import numbers
from storage import (
    Archive,
    CaseNotFoundError,
    LabelHistory,
    ReviewConflictError,
)
from students.review_sheet import Line, review_sheet

desk = runpy.run_path(str(Path(__file__).with_name("reviewed.py")))  # tests are no package
CLASSES, SHAPE, draw, refine, run = desk["CLASSES"], desk["SHAPE"], desk["draw"], desk["refine"], desk["run"]


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


def test_a_dice_that_is_predicted_of_every_mask_alike_is_said_once(archive: Archive, recipe: Recipe, recipe_file: Path) -> None:
    refine(recipe)
    scores = {"predicted_dice/1": 0.8125, "predicted_dice_low/1": 0.0, "predicted_dice_high/1": 1.0}
    for case in ("one", "two", "three"):
        archive.catalog.add_scores(case, TEACHER_SET, scores)
    said = run("review", "list", recipe_file, "--by", "anna")
    assert said.count("0.81") == 1
    assert "The predicted Dice of each of these is 0.81 (0.00 to 1.00)." in said


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
    ben.archive.catalog.record_listing(as_shown(ben, archive["one"], [1]))
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

    monkeypatch.setattr(review_list, "review_queue", ranked)
    assert {each.case for each in waiting(open_desk(recipe.archive, by="anna"), 9)} == {"two", "three"}


def test_what_somebody_decides_while_the_list_is_made_counts_as_not_seen(
    archive: Archive, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = open_desk(recipe.archive, by="anna"), open_desk(recipe.archive, by="ben")

    def ranked(archive: Archive, plan: QueuePlan, limit: int) -> list[Candidate]:
        found = review_queue(archive, plan, limit)
        decide(ben, "one", "accept")
        return found

    monkeypatch.setattr(review_list, "review_queue", ranked)
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
        teaching.train(recipe)
