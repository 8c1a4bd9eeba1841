"""Is an exported network the one that was trained? Both are asked about the same patches, and their probabilities compared."""

import numpy as np
import torch
from torch import Tensor, nn

from students.errors import ExportError
from students.spec import NetworkPlan

TOLERANCE = 1e-3
"""Of a class probability. Float32 in another order of summation differs by 1e-5; a network that was exported wrongly by tenths."""


def multiple_of(plan: NetworkPlan) -> tuple[int, ...]:
    """Return what the size of each axis of space must be a multiple of, so that skip connections meet."""
    return tuple(int(step) for step in np.prod(np.asarray(plan.strides), axis=0))


def shapes_to_check(plan: NetworkPlan) -> tuple[tuple[int, ...], ...]:
    """Return one patch, two at once, and one that is a step larger along each axis: batch and space must be free."""
    space = plan.patch_zyx if plan.dimensions == "3d" else plan.patch_zyx[1:]
    larger = tuple(size + step for size, step in zip(space, multiple_of(plan), strict=True))
    return ((1, plan.in_channels, *space), (2, plan.in_channels, *space), (1, plan.in_channels, *larger))


def random_patch(shape: tuple[int, ...], seed: int) -> Tensor:
    """Return a patch as normalised scans have it, mean 0 and deviation 1: noise, and broad bright and dark regions of half its variance."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    coarse = torch.randn((*shape[:2], *(max(size // 8, 1) for size in shape[2:])), generator=generator)
    broad = nn.functional.interpolate(coarse, size=shape[2:], mode="nearest")
    return (noise + broad) / 2**0.5


def worst_difference(original: nn.Module, exported: nn.Module, plan: NetworkPlan) -> float:
    """Return the largest difference of any class probability on random patches of every shape to be checked.

    Args:
        original: In float32, on the CPU, in evaluation mode.
        exported: The same in another format.
        plan: Of both.
    """
    worst = 0.0
    with torch.inference_mode():
        for seed, shape in enumerate(shapes_to_check(plan)):
            patch = random_patch(shape, seed)
            apart = torch.softmax(original(patch), 1) - torch.softmax(exported(patch), 1)
            worst = max(worst, float(apart.abs().max()) if torch.isfinite(apart).all() else float("inf"))
    return worst


def check_faithful(worst: float, what: str) -> None:
    """Refuse an export that answers otherwise.

    Raises:
        ExportError: with the difference.
    """
    if worst > TOLERANCE:
        message = (
            f"the export to {what} answers otherwise than the student: a class probability differs by {worst:.2g}, where {TOLERANCE:g} is allowed. "
            "It was taken away again. Another version of torch or onnxruntime may do better."
        )
        raise ExportError(message)
