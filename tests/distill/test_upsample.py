"""Masks at picture resolution are those of segment-anything's post-processing."""

import pytest
import torch
from segment_anything.modeling import Sam
from torch import nn
from torch.nn import functional

from distill.teachers import upsample
from distill.teachers.upsample import resize_bilinear, through_input

FRAMES = [
    pytest.param(64, 256, (256, 201), (90, 71), id="shrunk, padded on the right"),
    pytest.param(64, 256, (130, 256), (300, 590), id="enlarged, padded below"),
    pytest.param(64, 256, (256, 256), (256, 256), id="as it is"),
    pytest.param(32, 100, (100, 64), (50, 32), id="the input is no multiple of the low resolution"),
    pytest.param(64, 256, (4, 256), (3, 200), id="one cell high"),
]


def logits_of(side: int) -> torch.Tensor:
    """Smooth masks, as a decoder gives them, of up to 15."""
    rough = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(side))
    return 6 * functional.interpolate(rough.flatten(0, 1)[None], (side, side), mode="bicubic")[0].view(2, 3, side, side)


def theirs(logits: torch.Tensor, image_size: int, input_size: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    encoder = nn.Identity()
    encoder.img_size = image_size
    full: torch.Tensor = Sam(encoder, nn.Identity(), nn.Identity()).postprocess_masks(logits, input_size, size)
    return full


@pytest.mark.parametrize(("side", "image_size", "input_size", "size"), FRAMES)
def test_logits_equal_postprocess_masks(side: int, image_size: int, input_size: tuple[int, int], size: tuple[int, int]) -> None:
    logits = logits_of(side)
    found = through_input(logits, image_size, input_size, size)
    expected = theirs(logits, image_size, input_size, size)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4


@pytest.mark.parametrize("size", [(90, 71), (20, 130), (64, 64)])
def test_one_step_equals_interpolate(size: tuple[int, int]) -> None:
    logits = logits_of(64)
    expected = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    assert float((resize_bilinear(logits, size) - expected).abs().max()) < 1e-4


def test_a_device_without_opencv_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, frame = logits_of(64), (256, (256, 201), (90, 71))
    fast = through_input(logits, *frame)
    monkeypatch.setattr(upsample, "_suits_opencv", lambda _: False)
    assert float((through_input(logits, *frame) - fast).abs().max()) < 1e-4


def test_gradients_flow_where_they_are_wanted() -> None:
    logits = logits_of(64).requires_grad_()
    through_input(logits, 256, (256, 201), (90, 71)).sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.sum()) == pytest.approx(6 * 90 * 71, rel=1e-3)


def test_no_mask_at_all_is_no_error() -> None:
    assert through_input(torch.zeros(0, 1, 64, 64), 256, (256, 201), (90, 71)).shape == (0, 1, 90, 71)
