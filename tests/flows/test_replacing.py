"""A run says whose labels it replaces before it draws, and takes back those of prompts that it does not ask with."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows import stages
from flows.errors import StageError
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from flows.results import joined
from storage import Archive, ClassInfo, LabelHistory, Prompt, StudentRecord

WriteRecipe = Callable[[str], Path]
SMALL = runpy.run_path(str(Path(__file__).parents[1] / "distill" / "small_archive.py"))
HEAD = "archive: ./a/a.zarr\nteacher: {checkpoint: small.safetensors, device: cpu}\nuncertainty: {boxes: 2, planes: axial}\n"
ONE = "classes: {1: {name: a}}\n"
WEAK = HEAD + ONE
STUDENT = HEAD + ONE + "prompts: {source: student, student: {labels: student/first}}\n"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Return three cases with weak boxes, beside a small teacher of random weights."""
    SMALL["write_checkpoint"](tmp_path)
    made: Archive = SMALL["archive_of"](tmp_path / "a", 3)
    return made


def shard(recipe: Recipe) -> stages.Shard:
    return stages.shards_to_label(recipe, 256)[0]


def label(recipe: Recipe) -> stages.StageResult:
    return joined(stages.propose(recipe, shard(recipe)), stages.label(recipe, shard(recipe)))


def drawn(archive: Archive, write_recipe: WriteRecipe, text: str = WEAK) -> Recipe:
    recipe = load_recipe(write_recipe(text))
    label(recipe)
    return recipe


def give_student_labels(archive: Archive, *cases: str) -> None:
    for case in cases:
        ids = np.zeros(archive[case].record.shape_czyx[1:], np.uint8)
        ids[2:6, 4:14, 5:15] = 1
        history = LabelHistory(label_set="student/first", classes=(ClassInfo(id=1, name="a"),), made_by="test", fingerprint="one")
        archive[case].write_labels(history, ids)


def test_a_first_run_and_an_unchanged_one_have_nothing_to_say(archive: Archive, write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(WEAK))
    assert stages.announce_changes(recipe).note == ""
    label(recipe)
    assert stages.announce_changes(recipe).note == ""
    assert label(recipe).remark == ""


def test_labels_of_another_source_are_withdrawn_with_a_warning_that_counts_them(archive: Archive, write_recipe: WriteRecipe) -> None:
    drawn(archive, write_recipe)
    give_student_labels(archive, "case00", "case01")
    archive["case02"].write_labels(
        LabelHistory(label_set="student/first", classes=(ClassInfo(id=1, name="a"),), made_by="test", fingerprint="one"),
        np.zeros(archive["case02"].record.shape_czyx[1:], np.uint8),
    )  # the student has found nothing there, so it proposes nothing
    other = load_recipe(write_recipe(STUDENT))
    result = label(other)
    assert (result.done, result.failed, result.quarantined) == (2, 0, 0)
    assert (result.tally["without a prompt, so without a label"], result.tally["whose labels were withdrawn"]) == (1, 1)
    assert "WARNING: labels were withdrawn where no prompt of student is left" in result.note
    assert "teacher/r1" not in archive["case02"].label_sets()
    again = label(other)
    assert (again.done, again.skipped, again.remark) == (0, 2, "1 without a prompt, so without a label")


def test_what_another_recipe_drew_is_named_before_it_is_replaced(
    archive: Archive, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(archive, write_recipe)
    archive.catalog.record_student(
        StudentRecord(name="theirs", kind="compact", path="p", label_set="pseudo/r1", parameters=1, fingerprint="f", metrics={})
    )
    note = stages.announce_changes(load_recipe(write_recipe(HEAD + "classes: {1: {name: b}}\n"))).note
    assert "WARNING: 3 cases are drawn anew" in note
    assert "classes: 1 a -> 1 b" in note
    assert "(taught so far: theirs)" in note
    assert "give each an archive of its own" in note
    assert note in capsys.readouterr().err
    assert len(archive.cases(with_labels="teacher/r1")) == 3


def refined(recipe: Recipe) -> None:
    for each in stages.shards_to_refine(recipe, 8):
        stages.refine(recipe, each)


def taught(archive: Archive, name: str, label_set: str) -> None:
    archive.catalog.record_student(
        StudentRecord(name=name, kind="compact", path="p", label_set=label_set, parameters=1, fingerprint="f", metrics={})
    )


def test_students_of_another_recipe_are_named_before_what_they_learnt_from_is_refined_anew(
    archive: Archive, write_recipe: WriteRecipe, capsys: pytest.CaptureFixture[str]
) -> None:
    refined(drawn(archive, write_recipe))
    other = load_recipe(write_recipe(f"{WEAK}refine: {{largest_component: false}}\nstudent: {{name: mine}}\n"))
    for name, label_set in (("theirs", "pseudo/r1"), ("corrected", "corrected/corrected"), ("mine", "pseudo/r1"), ("expert", "gold")):
        taught(archive, name, label_set)
    note = stages.announce_refined(other).note
    assert note.startswith(
        "WARNING: 3 cases are refined anew: pseudo/r1 of the archive is of masks, rules or thresholds that are not this recipe's."
    )
    assert "the students corrected, theirs of another recipe, which learnt from it, will be outdated" in note
    assert note in capsys.readouterr().err
    refined(other)
    assert stages.announce_refined(other).note == ""


def test_rules_of_a_recipe_that_only_its_own_students_learnt_by_change_without_a_warning(
    archive: Archive, write_recipe: WriteRecipe
) -> None:
    refined(drawn(archive, write_recipe))
    for name in ("mine", "mine-r1"):
        taught(archive, name, "pseudo/r1")
    other = load_recipe(write_recipe(f"{WEAK}refine: {{largest_component: false}}\nstudent: {{name: mine}}\n"))
    assert stages.announce_refined(other).note == ""


def test_a_corrected_prompt_is_drawn_anew_without_a_warning(archive: Archive, write_recipe: WriteRecipe) -> None:
    recipe = drawn(archive, write_recipe)
    archive.catalog.add_prompts([Prompt(case="case01", class_id=1, kind="box", slice=3, box_xyxy_px=(5, 4, 18, 15))])
    assert stages.announce_changes(recipe).note == "1 case is drawn anew: prompts, scans or settings have changed"


def test_labels_of_one_teacher_that_several_will_replace_are_announced(archive: Archive, write_recipe: WriteRecipe) -> None:
    drawn(archive, write_recipe)
    two = WEAK.replace("device: cpu", "device: cpu, also: [{checkpoint: bundled}]")
    assert "WARNING: 3 cases are drawn anew: the archive holds labels that this recipe would not draw (teachers: 1 -> 2)" in (
        stages.announce_changes(load_recipe(write_recipe(two))).note
    )


def test_every_case_is_counted_once_where_a_source_could_not_look_at_one(archive: Archive, write_recipe: WriteRecipe) -> None:
    give_student_labels(archive, "case00", "case01")
    result = label(load_recipe(write_recipe(STUDENT)))
    without = result.tally.get("without a prompt, so without a label", 0)
    assert (result.done, result.quarantined, without) == (2, 1, 0)


def test_refine_says_which_sources_have_left_no_prompt_where_others_have(archive: Archive, write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(STUDENT))
    with pytest.raises(StageError, match=r"has a prompt of student, so the teacher has drawn nothing\. Other sources have left some"):
        stages.shards_to_refine(recipe, 8)
