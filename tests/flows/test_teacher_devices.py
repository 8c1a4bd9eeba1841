"""Where the teacher computes, from the recipe to the engine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from distill import appoint
from distill.engine import LabelPlan, _LabelRun
from distill.errors import DistillError
from flows import cli
from flows.errors import RecipeError, StageError
from flows.launch import check_student_device
from flows.plans import label_plan
from flows.recipe_file import load_recipe
from storage import Archive

WriteRecipe = Callable[[str], Path]
RECIPE = "archive: a.zarr\nclasses: {{1: {{name: x}}}}\nteacher: {{{}}}\n"


def plan_of(teacher: str, write_recipe: WriteRecipe) -> LabelPlan:
    return label_plan(load_recipe(write_recipe(RECIPE.format(teacher))))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        pytest.param("checkpoint: bundled", "auto", id="nothing"),
        pytest.param("device: cpu", "cpu", id="the CPU"),
        pytest.param("device: cuda", "cuda:0", id="the first GPU"),
        pytest.param("device: 'cuda:0, cuda:1'", "cuda:0,cuda:1", id="two with a comma"),
        pytest.param("device: [cuda:0, cuda:1]", "cuda:0,cuda:1", id="two as a list"),
    ],
)
def test_a_device_of_a_recipe_reaches_the_labelling_plan(written: str, meant: str, write_recipe: WriteRecipe) -> None:
    assert plan_of(written, write_recipe).device == meant


@pytest.mark.parametrize(
    ("written", "said"),
    [
        pytest.param("gpu", r"'teacher\.device' names 'gpu', which is no device\. Write auto, cpu, cuda:0, or several", id="no device"),
        pytest.param("[cuda:0, cuda]", r"'teacher\.device' names cuda:0 twice", id="twice"),
        pytest.param("'auto,cpu'", r"'teacher\.device' names auto beside others", id="auto beside others"),
        pytest.param("[]", r"'teacher\.device' names none", id="none"),
        pytest.param("1", r"'teacher\.device' is 1", id="a number"),
        pytest.param("[0, 1]", r"'teacher\.device' is \[0, 1\]", id="numbers"),
    ],
)
def test_what_is_no_device_is_an_error_of_the_recipe(written: str, said: str, write_recipe: WriteRecipe) -> None:
    with pytest.raises(RecipeError, match=said):
        plan_of(f"device: {written}", write_recipe)


def test_a_recipe_that_names_a_gpu_can_be_read_where_there_is_none(write_recipe: WriteRecipe) -> None:
    assert plan_of("device: cuda:63", write_recipe).device == "cuda:63"


@pytest.mark.parametrize(("written", "compiled"), [("checkpoint: bundled", False), ("compile: true", True)], ids=["by default", "asked"])
def test_compiling_reaches_the_teacher(written: str, compiled: bool, write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def load(*_: object, **options: object) -> None:
        asked.update(options)
        raise DistillError

    monkeypatch.setattr(appoint, "load_teacher", load)
    with pytest.raises(DistillError):
        _LabelRun(None, plan_of(written, write_recipe))._teacher("cuda:3")  # type: ignore[arg-type]
    assert (asked["compiled"], asked["device"]) == (compiled, "cuda:3")


def test_a_device_that_is_not_here_ends_a_run_before_anything_is_made(
    write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(RECIPE.format("checkpoint: bundled, device: 'cpu,cuda:63'") + "ingest: {images: .}\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(path)])
    assert ended.value.code == 1
    assert "device cuda:63 is not here" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("student", "command"), [("device: cuda:63", "run"), ("device: [cpu, cuda:63]", "train"), ("kind: nnunet, device: cuda:63", "run")]
)
def test_a_student_whose_device_is_not_here_is_refused_before_anything_is_made(
    student: str, command: str, write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(RECIPE.format("checkpoint: bundled, device: cpu") + f"ingest: {{images: .}}\nstudent: {{{student}}}\n")
    if command == "train":
        Archive.create(str(tmp_path / "a.zarr"))
    with pytest.raises(SystemExit) as ended:
        cli.main([command, str(path)])
    assert ended.value.code == 1
    assert "student.device cuda:63 is not here" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    assert command == "train" or not (tmp_path / "a.zarr").exists()


def test_stages_that_train_nobody_ask_for_no_device_of_the_student(write_recipe: WriteRecipe) -> None:
    recipe = load_recipe(write_recipe(RECIPE.format("device: cpu") + "student: {device: cuda:63}\n"))
    check_student_device(recipe, ("ingest", "label", "refine", "evaluate"))
    with pytest.raises(StageError, match=r"student\.device cuda:63"):
        check_student_device(recipe.model_copy(update={"refine": recipe.refine.model_copy(update={"semantic": ("student",)})}), ("refine",))
