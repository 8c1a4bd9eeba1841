"""What a recipe says to the sources of prompts is about its classes, and complete."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from distill.prompts.presets import ThresholdOptions
from flows.errors import StageError
from flows.launch import launch
from flows.plans import prompt_plan
from flows.recipe import Recipe


def recipe(**prompts: object) -> Recipe:
    return Recipe.model_validate({"archive": "a.zarr", "classes": {1: {"name": "lungs"}}, "prompts": prompts})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        pytest.param({"threshold": {"classes": {"lung": {"preset": "lungs"}}}}, "threshold.classes is about 'lung'", id="threshold"),
        pytest.param({"everything": {"classes": {2: {"area": [1, 9]}}}}, "everything.classes is about '2'", id="everything"),
        pytest.param({"text": {"words": {"liver": "liver"}}}, "text.words is about 'liver'", id="text"),
    ],
)
def test_a_rule_about_no_class_of_the_recipe_is_refused(prompts: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=rf"{message}, but there is no such class\. Known: 1, lungs"):
        recipe(**prompts)


def test_text_without_a_model_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(
        ValidationError, match=r"names text, which has no checkpoint\.\nAdd prompts: \{text: \{model: ViT-B-32, checkpoint: "
    ):
        recipe(source="text", text={"model": "ViT-B-32"})


def test_text_needs_no_model_where_its_checkpoint_is_a_folder_that_says_so(tmp_path: Path) -> None:
    assert recipe(source="text", text={"checkpoint": str(tmp_path)}).prompts.text.checkpoint == tmp_path
    (tmp_path / "clip.pt").touch()
    with pytest.raises(
        ValidationError, match=r"has no model, and its checkpoint is a file, which does not say what it is of\.\nAdd prompts:"
    ):
        recipe(source="text", text={"checkpoint": str(tmp_path / "clip.pt")})


def test_a_checkpoint_of_text_counts_from_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "clip.pt").touch()
    given = {"archive": "a.zarr", "classes": {1: {"name": "a"}}, "prompts": {"text": {"checkpoint": "clip.pt"}}}
    assert Recipe.model_validate(given, context={"folder": tmp_path}).prompts.text.checkpoint == tmp_path / "clip.pt"


def test_each_source_gets_its_own_block() -> None:
    given = recipe(source=["threshold", "everything"], threshold={"classes": {1: {"preset": "lungs", "keep": 1}}})
    plan = prompt_plan(given)
    assert plan.sources == ("threshold", "everything")
    assert plan.options["threshold"] == ThresholdOptions.model_validate({"classes": {"1": {"preset": "lungs", "keep": 1}}})
    assert plan.options["everything"] == given.prompts.everything
    assert plan.options["text"] == given.prompts.text


def test_options_of_a_source_that_is_not_asked_are_allowed_and_known() -> None:
    given = recipe(source="weak", threshold={"classes": {1: {"preset": "lungs"}}}, exemplar={}, options={"theirs": {"a": 1}})
    assert given.prompts.unasked == ("threshold", "theirs")
    assert recipe(source=["weak", "threshold"], threshold={"classes": {1: {"preset": "lungs"}}}).prompts.unasked == ()


def test_a_run_warns_of_options_that_nothing_comes_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("archive: a.zarr\nclasses: {1: {name: lungs}}\nprompts: {threshold: {classes: {1: {preset: lungs}}}}\n")
    with pytest.raises(StageError, match="there is no archive"):
        launch(path, ("label",))
    said = capsys.readouterr().err
    assert "WARNING: recipe.yaml has options for threshold, which prompts.source does not name: nothing is asked with them" in said
    assert "source: [weak, threshold]" in said


def test_options_of_our_own_sources_among_those_of_others_are_refused() -> None:
    with pytest.raises(ValidationError, match="threshold has a block of its own: write prompts"):
        recipe(source="threshold", options={"threshold": {"classes": {}}})
