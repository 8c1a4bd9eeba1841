"""A caller who has set torch's default type to float64 gets the same teachers and the same answers."""

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from distill import load_teacher
from distill.teachers.sam import Precision, SamTeacher

weights: Callable[..., dict[str, torch.Tensor]] = runpy.run_path(str(Path(__file__).with_name("small_sam.py")))["weights"]
PICTURE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)


@pytest.fixture
def restored() -> Iterator[None]:
    """Leave torch as it was."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def answers(teacher: SamTeacher) -> list[np.ndarray]:
    """Boxes alone, with points, points alone, and with a mask."""
    boxes, points = np.array([[5, 6, 40, 44]]), np.array([[[20, 20], [30, 9]]])
    mask = teacher.mask_prompt(np.ones((60, 80)), (96, 96))[None]
    asked = ({"boxes": boxes}, {"boxes": boxes, "points": points}, {"points": points}, {"boxes": boxes, "mask_input": mask})
    return [teacher.predict(PICTURE, multimask=True, **each).logits for each in asked]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("size", [96, 160])
def test_a_teacher_computes_in_its_own_numbers_whatever_torch_s_default_is(tmp_path: Path, precision: Precision, size: int) -> None:
    torch.save(weights(image_size=size), tmp_path / "sam.pth")
    found = []
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        teacher = load_teacher(tmp_path / "sam.pth", profile="sam", device="cpu", precision=precision)
        found.append(answers(teacher))
        assert {value.dtype for value in teacher.sam.parameters()} == {torch.float32}
        assert teacher.encode([PICTURE]).features.dtype == torch.float32
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.usefixtures("restored")
def test_the_bundled_teacher_too_computes_in_float32() -> None:
    found = []
    for default in (torch.float64, torch.float32):
        torch.set_default_dtype(default)
        found.append(answers(load_teacher("bundled", device="cpu")))
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
