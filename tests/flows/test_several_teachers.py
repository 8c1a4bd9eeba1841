"""A recipe with several teachers, and one whose prompts are an earlier student's."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import CheckpointError
from distill.teachers.conv_encoder import build_conv_sam
from distill.teachers.pretrain import PretrainPlan, write_teacher
from flows import stages
from flows.errors import RecipeError
from flows.freshness import input_stamps, standing
from flows.inspection import inspect_path
from flows.launch import check_teacher, requeue
from flows.plans import label_plans
from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from storage import Archive, ClassInfo, LabelHistory

WriteRecipe = Callable[[str], Path]
SMALL = runpy.run_path(str(Path(__file__).parents[1] / "distill" / "small_archive.py"))
HEAD = "archive: ./a/a.zarr\nclasses: {1: {name: a}}\nuncertainty: {boxes: 2, planes: axial}\n"
TWO = HEAD + "teacher: {checkpoint: one.safetensors, device: cpu, also: [{checkpoint: two.safetensors}]}\n"


def write_checkpoint(folder: Path, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    path = folder / f"{name}.safetensors"
    write_teacher(path, build_conv_sam(SMALL["SMALL"]), SMALL["SMALL"], PretrainPlan(data=folder, out=path), 0)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Return two cases with weak prompts, beside two small teachers of random weights."""
    write_checkpoint(tmp_path, "one", 1)
    write_checkpoint(tmp_path, "two", 2)
    made: Archive = SMALL["archive_of"](tmp_path / "a", 2)
    return made


@pytest.fixture
def recipe(archive: Archive, write_recipe: WriteRecipe) -> Recipe:
    return load_recipe(write_recipe(TWO))


def shard(recipe: Recipe) -> stages.Shard:
    return stages.shards_to_label(recipe, 256)[0]


def test_each_teacher_draws_a_label_set_and_they_become_one(recipe: Recipe, archive: Archive) -> None:
    result = stages.label(recipe, shard(recipe))
    assert (result.done, result.failed, result.quarantined, result.output) == (2, 0, 0, "teacher/r1")
    assert result.remark == "2 teachers"
    assert archive["case00"].label_sets() == ["teacher/r1", "teacher/r1-1", "teacher/r1-2"]


def test_a_second_run_of_several_teachers_has_nothing_to_do(recipe: Recipe) -> None:
    stages.label(recipe, shard(recipe))
    again = stages.label(recipe, shard(recipe))
    assert (again.done, again.skipped) == (0, 2)


def test_from_several_teachers_back_to_one_draws_anew(recipe: Recipe, archive: Archive, write_recipe: WriteRecipe) -> None:
    stages.label(recipe, shard(recipe))
    alone = load_recipe(write_recipe(HEAD + "teacher: {checkpoint: one.safetensors, device: cpu}\n"))
    assert stages.label(alone, shard(alone)).done == 2
    assert archive["case00"].labels("teacher/r1").history.made_by.startswith("distill.engine")


def test_what_one_teacher_cannot_draw_is_reported_and_retried(recipe: Recipe, archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = archive.ledger
    stages.label(recipe, shard(recipe))
    stage = "label:teacher/r1-2"
    ledger.plan(stage, {"case01": "other"})
    for _ in range(3):
        assert ledger.claim(stage, "case01")
        ledger.fail(stage, "case01", ValueError("cannot"))
    label_line = next(line for line in standing(recipe) if line.stage == "label")
    assert label_line.quarantined == 1
    assert [refusal.what for refusal in inspect_path(recipe.archive).refused] == ["label by teacher 2, case01"]
    assert requeue(recipe, ("label",)) == 1


def test_a_run_that_was_killed_while_fusing_goes_on_where_it_was(recipe: Recipe, archive: Archive, tmp_path: Path) -> None:
    first = stages.label(recipe, shard(recipe))
    for case in ("case00", "case01"):
        archive[case].delete_labels("teacher/r1")
    code = f"""
import os
from distill import fuse
from flows import stages
from flows.recipe_file import load_recipe
fuse_case = fuse.fuse_case
fuse.fuse_case = lambda case, *others: os._exit(9) if case.id == "case01" else fuse_case(case, *others)
recipe = load_recipe({str(tmp_path / "recipe.yaml")!r})
stages.label(recipe, stages.shards_to_label(recipe, 256)[0])
"""
    root = str(Path(stages.__file__).parents[1])
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True)
    assert ended.returncode == 9, ended.stderr.decode()[-500:]
    assert "teacher/r1" in archive["case00"].label_sets()
    assert "teacher/r1" not in archive["case01"].label_sets()
    resumed = stages.label(recipe, shard(recipe))
    assert (first.done, resumed.done, resumed.skipped) == (2, 1, 1)


def test_every_teacher_s_file_is_an_input_of_the_run(recipe: Recipe, tmp_path: Path) -> None:
    assert {str(tmp_path / name) for name in ("one.safetensors", "two.safetensors")} <= {stamp[0] for stamp in input_stamps(recipe)}


def test_profile_and_precision_are_each_teacher_s_own(archive: Archive, write_recipe: WriteRecipe) -> None:
    text = HEAD + "teacher: {also: [{checkpoint: one.safetensors, profile: samdistill-conv, precision: fp32}], precision: bf16}\n"
    first, second = label_plans(load_recipe(write_recipe(text)))
    assert (first.teacher, first.profile, first.precision, first.label_set) == ("bundled", None, "bf16", "teacher/r1-1")
    assert (Path(second.teacher).name, second.profile, second.precision, second.label_set) == (
        "one.safetensors",
        "samdistill-conv",
        "fp32",
        "teacher/r1-2",
    )


def test_one_teacher_draws_the_label_set_itself(write_recipe: WriteRecipe) -> None:
    (plan,) = label_plans(load_recipe(write_recipe(HEAD)))
    assert plan.label_set == "teacher/r1"


def test_the_same_teacher_twice_is_refused(write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError, match="names the teacher bundled twice"):
        load_recipe(write_recipe(HEAD + "teacher: {also: [{checkpoint: bundled}]}\n"))


def test_a_second_teacher_that_cannot_be_used_is_noticed_before_the_run(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"nothing like it")
    with pytest.raises(CheckpointError, match=r"broken\.pth"):
        check_teacher(load_recipe(write_recipe(HEAD + "teacher: {also: [{checkpoint: broken.pth}]}\n")))


def test_a_second_teacher_that_is_not_there_is_refused(write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.also.*nowhere\.pth"):
        load_recipe(write_recipe(HEAD + "teacher: {also: [{checkpoint: nowhere.pth}]}\n"))


STUDENT = HEAD + "teacher: {checkpoint: one.safetensors, device: cpu}\nprompts: {source: student, student: {labels: student/first}}\n"


def give_student_labels(archive: Archive, case: str) -> None:
    ids = np.zeros(archive[case].record.shape_czyx[1:], np.uint8)
    ids[2:6, 4:14, 5:15] = 1
    history = LabelHistory(label_set="student/first", classes=(ClassInfo(id=1, name="a"),), made_by="test", fingerprint="one")
    archive[case].write_labels(history, ids)


def test_the_masks_of_an_earlier_student_are_asked_instead_of_weak_prompts(archive: Archive, write_recipe: WriteRecipe) -> None:
    for case in ("case00", "case01"):
        give_student_labels(archive, case)
    recipe = load_recipe(write_recipe(STUDENT))
    assert stages.propose(recipe, shard(recipe)).done == 2
    assert stages.label(recipe, shard(recipe)).done == 2
    assert archive["case00"].labels("teacher/r1").scores["slices_asked/1"] == 4


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        pytest.param("", "needs a label set of an earlier student", id="none"),
        pytest.param("student/compact", "which this run itself writes", id="the student's own"),
        pytest.param("pseudo/r1", "which this run itself writes", id="the run's pseudo-labels"),
        pytest.param("teacher/r1-2", "which this run itself writes", id="the run's teacher"),
        pytest.param("gold", "scored against gold", id="gold"),
    ],
)
def test_a_label_set_that_must_not_prompt_is_refused_with_the_reason(write_recipe: WriteRecipe, labels: str, said: str) -> None:
    block = f"student: {{labels: {labels}}}" if labels else "student: {}"
    with pytest.raises(RecipeError, match=said):
        load_recipe(write_recipe(HEAD + f"prompts: {{source: student, {block}}}\n"))


def test_a_student_that_has_not_labelled_the_archive_yet_is_answered_with_the_command(archive: Archive, write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(STUDENT))
    with pytest.raises(ValueError, match="'samdistill predict results/students/first ARCHIVE'"):
        stages.propose(recipe, shard(recipe))
