"""Gradients of the 3D student in bf16 are those of float32, however thin its levels are."""

import pytest
import torch
from torch import nn

from students.losses import segmentation_loss, targets_from_ids
from students.nets import build_network, plan_network
from students.spec import StudentSpec
from students.unet import ThinConv3d

PASSES = 5


def network_for(slices: int) -> tuple[nn.Module, tuple[int, int, int]]:
    spec = StudentSpec(dimensions="3d", width=8, steps=1)
    plan = plan_network(spec, shapes_zyx=[(slices, 16, 24)] * 4, spacings_zyx_mm=[(1, 1, 1)] * 4, channels=1, classes=1)
    torch.manual_seed(0)
    return build_network(plan), plan.patch_zyx


def gradient(network: nn.Module, image: torch.Tensor, *, half: bool) -> torch.Tensor:
    """Return all weight gradients of one pass in a row, after memory has been filled with what nobody should read."""
    network.zero_grad(set_to_none=True)
    litter = [torch.full((size,), 1e30) for size in (1_000, 30_000, 200_000)]
    del litter
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = network(image)
    segmentation_loss(logits, *targets_from_ids((image[:, 0] > 0.5).long(), 2)).backward()
    return torch.cat([weight.grad.flatten() for weight in network.parameters() if weight.grad is not None])


@pytest.mark.parametrize("slices", [2, 4, 8, 16])
def test_bf16_learns_what_float32_would_whatever_the_depth(slices: int) -> None:
    network, patch = network_for(slices)
    image = torch.randn(2, 1, *patch, generator=torch.Generator().manual_seed(1))
    exact = gradient(network, image, half=False)
    for _ in range(PASSES):
        rounded = gradient(network, image, half=True)
        assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98
        assert 0.9 < rounded.norm() / exact.norm() < 1.1


def test_thin_levels_keep_the_names_that_stored_students_have() -> None:
    network, _ = network_for(8)
    assert any(type(module) is ThinConv3d for module in network.modules())
    assert {name for name in network.state_dict() if name.startswith("input_block")} == {
        "input_block.conv1.conv.weight",
        "input_block.conv2.conv.weight",
        "input_block.norm1.weight",
        "input_block.norm1.bias",
        "input_block.norm2.weight",
        "input_block.norm2.bias",
    }
