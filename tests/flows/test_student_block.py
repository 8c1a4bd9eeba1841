"""The block ``student`` of a recipe: which kind is trained, for how long, and what makes it another student."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.errors import RecipeError
from flows.plans import fold_plan, student_spec
from flows.recipe_file import load_recipe
from flows.teaching import train_fingerprint
from storage import Archive
from students.spec import NnunetSpec, StudentSpec

WriteRecipe = Callable[[str], Path]
SMALLEST = "archive: ./archive.zarr\nclasses: {1: {name: organ}}\n"


def asked(write_recipe: WriteRecipe, block: str) -> StudentSpec:
    return student_spec(load_recipe(write_recipe(SMALLEST + f"student: {block}\n")))


def test_without_a_word_a_compact_student_is_trained_as_before(write_recipe: WriteRecipe) -> None:
    assert student_spec(load_recipe(write_recipe(SMALLEST))) == StudentSpec(name="compact", budget_seconds=1200.0)


def test_a_student_is_called_after_its_kind_unless_it_has_a_name(write_recipe: WriteRecipe) -> None:
    assert asked(write_recipe, "{kind: nnunet}").name == "nnunet"
    assert asked(write_recipe, "{kind: nnunet, name: liver}").name == "liver"
    assert asked(write_recipe, "{kind: compact}").name == "compact"


@pytest.mark.parametrize(
    ("block", "seconds"),
    [
        pytest.param("{kind: nnunet}", 1200.0, id="the reduced preset has the default budget"),
        pytest.param("{kind: nnunet, nnunet: {preset: 3d_fullres}}", None, id="nnU-Net's own are not cut short by a default"),
        pytest.param("{kind: nnunet, budget: 2h, nnunet: {preset: resenc_l}}", 7200.0, id="a budget that is given counts for all"),
    ],
)
def test_the_budget_of_an_nnunet_is_that_of_its_preset(write_recipe: WriteRecipe, block: str, seconds: float | None) -> None:
    assert asked(write_recipe, block).budget_seconds == seconds


def test_every_setting_of_nnunet_reaches_it(write_recipe: WriteRecipe) -> None:
    block = "{kind: nnunet, nnunet: {preset: 2d, epochs: 7, iterations: 9, fold: all, mirror: false, workers: 3}}"
    assert asked(write_recipe, block).nnunet == NnunetSpec(preset="2d", epochs=7, iterations=9, fold="all", mirror=False, workers=3)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        pytest.param("{nnunet: {epochs: 3}}", "has settings of nnunet, but the kind is compact. Say kind: nnunet", id="another kind"),
        pytest.param("{kind: nnunet, nnunet: {preset: 3d_lowres}}", "'student.nnunet.preset' is '3d_lowres'", id="no such preset"),
        pytest.param("{kind: nnunet, nnunet: {fold: 5}}", "'student.nnunet.fold", id="no such fold"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_the_recipe_is_read(write_recipe: WriteRecipe, block: str, said: str) -> None:
    with pytest.raises(RecipeError, match="student") as refused:
        load_recipe(write_recipe(SMALLEST + f"student: {block}\n"))
    assert said in str(refused.value)


def test_witnesses_stay_compact_whatever_the_student_is(write_recipe: WriteRecipe) -> None:
    assert fold_plan(load_recipe(write_recipe(SMALLEST + "student: {kind: nnunet}\n"))).spec.kind == "compact"


def test_a_training_is_another_one_for_another_kind_or_setting_and_not_for_more_workers(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "own.zarr"))

    def mark(block: str) -> str:
        return train_fingerprint(archive, asked(write_recipe, block), [])

    own = mark("{kind: nnunet}")
    assert own == mark("{kind: nnunet, nnunet: {workers: 4}}")
    assert len({own, mark("{kind: compact, name: nnunet}"), mark("{kind: nnunet, nnunet: {epochs: 3}}")}) == 3


def test_several_devices_share_the_batch_of_a_compact_student(write_recipe: WriteRecipe) -> None:
    spec = asked(write_recipe, "{device: [cuda:0, 'cuda:1'], batch: 6}")
    assert (spec.device, spec.batch) == ("cuda:0,cuda:1", 6)


def test_an_nnunet_is_trained_on_one_device(write_recipe: WriteRecipe) -> None:
    assert asked(write_recipe, "{kind: nnunet, device: cuda:1}").device == "cuda:1"
    with pytest.raises(RecipeError, match="trains an nnU-Net on one device, but device is cuda:0,cuda:1"):
        asked(write_recipe, "{kind: nnunet, device: 'cuda:0,cuda:1'}")
