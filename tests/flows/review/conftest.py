"""A recipe, and an archive whose masks wait for a person."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flows.recipe import Recipe
from flows.recipe_file import load_recipe
from storage import (
    Archive,
    CaseRecord,
    Geometry,
)

desk = runpy.run_path(str(Path(__file__).with_name("reviewed.py")))  # tests are no package
CLASSES, IDENTITY, SHAPE, draw = desk["CLASSES"], desk["IDENTITY"], desk["SHAPE"], desk["draw"]
WriteRecipe = Callable[[str], Path]


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
