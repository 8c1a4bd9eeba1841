"""``teacher.precision`` of a recipe: what is possible, and what is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill.errors import TeacherError
from distill.teachers.families import FAMILIES
from flows.errors import RecipeError
from flows.launch import check_teacher
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


def checked(teacher: str, write_recipe: Callable[[str], Path]) -> None:
    check_teacher(load_recipe(write_recipe(f"{START}teacher: {{{teacher}}}\n")))


@pytest.mark.parametrize("name", ["mobilesam", "litemedsam"])
def test_8_bit_integers_are_refused_for_other_encoders_before_a_run_begins(
    name: str, real_data: Path, write_recipe: Callable[[str], Path]
) -> None:
    file = real_data / "upstream_outputs" / f"{name}.pth"
    with pytest.raises(TeacherError, match=rf"int8 is for SAM's ViT encoders, but the encoder of {name}\.pth .* is TinyViT\. Use bf16"):
        checked(f"checkpoint: '{file}', precision: int8", write_recipe)
    checked(f"checkpoint: '{file}', precision: bf16", write_recipe)


def test_8_bit_integers_are_refused_where_auto_means_a_gpu_and_taken_on_a_cpu(
    real_data: Path, write_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = f"checkpoint: '{real_data / 'upstream_outputs' / 'medsam.pth'}', profile: medsam, precision: int8"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(TeacherError, match=r"int8 computes on the CPU only, but the device is cuda:0\. Use device cpu"):
        checked(teacher, write_recipe)
    checked(f"{teacher}, device: cpu", write_recipe)


def test_every_family_whose_encoder_is_no_vit_is_known_as_such() -> None:
    assert {name for name, family in FAMILIES.items() if family.encoder != "ViT"} == {
        "mobile-sam",
        "lite-medsam",
        "edge-sam",
        "samdistill-conv",
        "samdistill-student",
    }
