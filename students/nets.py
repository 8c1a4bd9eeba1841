"""Which network fits the cases, and how to build it.

The network is MONAI's DynUNet (instance norm, LeakyReLU) with four levels. Axes with thick slices keep their resolution until the
others have caught up, as nnU-Net does (Isensee et al. 2021).
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from students.spec import Dimensions, NetworkPlan, StudentSpec

LEVELS = 4
"""Three halvings: a bottom resolution of 5-8 voxels for patches of 40-64, enough context for one organ."""

_BLOCK = 1 << (LEVELS - 1)
"""Patch sizes are multiples of this, so that skip connections meet."""

_PATCH_VOXELS = {"3d": 98_304, "2d": 65_536}
"""32 x 64 x 48, and 256 x 256: a training step of a quarter of a second on one core."""

_BATCH = {"3d": 2, "2d": 8}

_WIDEST = 4
"""Channels grow with depth up to this multiple of the width; deeper ones cost parameters and gain nothing on small organs."""


def choose_dimensions(spec: StudentSpec, shapes_zyx: Sequence[tuple[int, int, int]]) -> Dimensions:
    """Return ``2d`` when more than half of the cases are a single slice, unless the spec says."""
    if spec.dimensions != "auto":
        return spec.dimensions
    return "2d" if np.median([shape[0] for shape in shapes_zyx]) == 1 else "3d"


def _round_up(size: float) -> int:
    blocks: int = math.ceil(max(size, 1) / _BLOCK)
    return blocks * _BLOCK


def plan_patch(dimensions: Dimensions, shapes_zyx: Sequence[tuple[float, float, float]]) -> tuple[int, int, int]:
    """Return the patch: as large as the larger cases, shrunk along its longest axis until it fits the voxel budget.

    Args:
        dimensions: In ``2d`` the patch is one slice.
        shapes_zyx: Sizes of the cases at the training spacing.
    """
    wanted = np.percentile(np.asarray(shapes_zyx, dtype=float), 90, axis=0)
    patch = [1 if dimensions == "2d" and axis == 0 else _round_up(size) for axis, size in enumerate(wanted)]
    while np.prod(patch) > _PATCH_VOXELS[dimensions]:
        patch[int(np.argmax(patch))] -= _BLOCK
    return patch[0], patch[1], patch[2]


def plan_levels(size: Sequence[int], spacing_mm: Sequence[float]) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return strides and kernels per level and axis: coarse axes are neither halved nor convolved until the fine ones match them."""
    now_size, now_mm = np.asarray(size), np.asarray(spacing_mm, dtype=float)
    strides, kernels = [], []
    for level in range(LEVELS):
        coarse = now_mm >= 2 * now_mm.min()
        step = np.where(coarse | (now_size < 2 * 2), 1, 2) if level else np.ones_like(now_size)
        strides.append(tuple(int(s) for s in step))
        now_size, now_mm = now_size // step, now_mm * step
        kernels.append(tuple(1 if apart and not level else 3 for apart in now_mm >= 2 * now_mm.min()))
    return tuple(strides), tuple(kernels)


def plan_network(
    spec: StudentSpec,
    *,
    shapes_zyx: Sequence[tuple[int, int, int]],
    spacings_zyx_mm: Sequence[tuple[float, float, float]],
    channels: int,
    classes: int,
) -> NetworkPlan:
    """Return the plan for these cases: median spacing, a patch that covers most of a case, as many levels as it can be halved."""
    dimensions = choose_dimensions(spec, shapes_zyx)
    spacing = np.median(np.asarray(spacings_zyx_mm, dtype=float), axis=0)
    sizes = [tuple(np.asarray(shape) * given / spacing) for shape, given in zip(shapes_zyx, spacings_zyx_mm, strict=True)]
    first = 1 if dimensions == "2d" else 0
    asked = spec.patch_zyx or plan_patch(dimensions, sizes)
    patch = (1 if first else _round_up(asked[0]), _round_up(asked[1]), _round_up(asked[2]))
    strides, kernels = plan_levels(patch[first:], spacing[first:].tolist())
    return NetworkPlan(
        dimensions=dimensions,
        in_channels=channels,
        outputs=classes + 1,
        filters=tuple(spec.width * min(2**level, _WIDEST) for level in range(LEVELS)),
        strides=strides,
        kernels=kernels,
        patch_zyx=patch,
        spacing_zyx_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        batch=spec.batch or _BATCH[dimensions],
    )


def build_network(plan: NetworkPlan) -> nn.Module:
    """Return the network of a plan with fresh weights; seed torch before for repeatable ones."""
    from students.unet import CompactUNet

    return CompactUNet(
        spatial_dims=3 if plan.dimensions == "3d" else 2,
        in_channels=plan.in_channels,
        out_channels=plan.outputs,
        kernel_size=plan.kernels,
        strides=plan.strides,
        upsample_kernel_size=plan.strides[1:],
        filters=plan.filters,
        norm_name=("INSTANCE", {"affine": True}),
        act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )
