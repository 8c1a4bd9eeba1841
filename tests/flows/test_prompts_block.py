"""What a recipe says to the sources of prompts is about its classes, and complete."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from distill.prompts.presets import ThresholdOptions
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
    with pytest.raises(ValidationError, match=r"needs prompts\.text\.model .* and prompts\.text\.checkpoint"):
        recipe(source="text", text={"model": "ViT-B-32"})


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
