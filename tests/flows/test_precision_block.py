"""``teacher.precision`` of a recipe: what is possible, and what is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.errors import RecipeError
from flows.plans import label_plan
from flows.recipe_file import load_recipe

START = "archive: a.zarr\nclasses: {1: {name: x}}\n"


@pytest.fixture
def write(write_recipe: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    (tmp_path / "sam.pth").touch()
    return lambda teacher: write_recipe(f"{START}teacher: {{{teacher}}}\n")


def test_8_bit_integers_reach_the_labelling_plan(write: Callable[[str], Path]) -> None:
    assert label_plan(load_recipe(write("checkpoint: sam.pth, precision: int8"))).precision == "int8"


def test_8_bit_integers_are_refused_for_the_bundled_teacher(write: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"precision int8 is for SAM's ViT encoders, and the bundled teacher's is none"):
        load_recipe(write("precision: int8"))


def test_8_bit_integers_are_refused_for_a_gpu(write: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"precision int8 computes on the CPU only, but device is cuda:1"):
        load_recipe(write("checkpoint: sam.pth, precision: int8, device: 'cuda:1'"))


def test_a_precision_that_is_none_is_answered_with_those_that_are(write: Callable[[str], Path]) -> None:
    with pytest.raises(RecipeError, match=r"teacher\.precision.*int8"):
        load_recipe(write("checkpoint: sam.pth, precision: int4"))
