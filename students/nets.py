"""Which network fits the cases, and how to build it.

The network is MONAI's DynUNet (instance norm, LeakyReLU), four levels deep in 3D and up to six in 2D. Axes with thick slices keep
their resolution until the others have caught up, as nnU-Net does (Isensee et al. 2021).
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from students.spec import Dimensions, NetworkPlan, Size, StudentSpec

_LEVELS = {"3d": 4, "2d": 6}
"""At most. Three halvings leave 5-8 voxels of a volume patch of 40-64; a slice of 256 pixels needs five to see where in the body it is:
with four levels, students of short-axis heart slices painted every bright region (Dice 0.38), with six they found the ventricle."""

_LEAST_BOTTOM_PX = 8
"""Slices are halved no further than this."""

_PATCH_VOXELS = {"3d": 98_304, "2d": 65_536}
"""32 x 64 x 48, and 256 x 256: a training step of a quarter of a second on one core."""

_OBJECT_PX = 16
"""Slices are trained on at a coarser spacing while the objects stay this thick; logits are brought back to the pixels of the image.
Half the resolution is a quarter of the cost, and minutes of training are better spent on four times the steps."""

_COARSEST = 2.0
"""Times the spacing of the cases, at most."""

NEIGHBOURS = 1
"""Slices on each side that a 2.5D network sees beside the one it answers for."""

_BATCH = {"3d": 2, "2d": 4}

_WIDTHS: dict[tuple[Dimensions, int], dict[Size, int]] = {
    ("3d", 4): {"small": 8, "medium": 24, "large": 48},
    ("2d", 4): {"small": 12, "medium": 32, "large": 64},
    ("2d", 5): {"small": 8, "medium": 20, "large": 40},
    ("2d", 6): {"small": 6, "medium": 16, "large": 32},
}
"""Channels at full resolution of each size, by how deep the cases let the network be: about 0.3, 2 and 8 million parameters, which grow with their square.
0.3 M answers in a tenth of a second on one core, 2 M is the size of nnU-Net's smallest useful plans, and 8 M pays with a GPU."""

_WIDEST = {"3d": 4, "2d": 8}
"""Channels grow with depth up to this multiple of the width; deeper ones cost parameters and gain nothing on small organs."""


def choose_dimensions(spec: StudentSpec, shapes_zyx: Sequence[tuple[int, int, int]]) -> Dimensions:
    """Return ``2d`` when more than half of the cases are a single slice, unless the spec says."""
    if spec.dimensions != "auto":
        return "3d" if spec.dimensions == "3d" else "2d"
    return "2d" if np.median([shape[0] for shape in shapes_zyx]) == 1 else "3d"


def plan_width(spec: StudentSpec, dimensions: Dimensions, levels: int) -> int:
    """Return the channels at full resolution: those asked for, or those that give the size that is asked for."""
    return spec.width if spec.size == "standard" else _WIDTHS[dimensions, levels][spec.size]


def plan_depth(dimensions: Dimensions, sizes_zyx: Sequence[float]) -> int:
    """Return the number of levels: volumes always have four; slices are halved while their shorter side keeps enough pixels."""
    most = _LEVELS[dimensions]
    if dimensions == "3d":
        return most
    halvings = math.floor(math.log2(max(min(sizes_zyx[1:]), 1) / _LEAST_BOTTOM_PX + 1e-9))
    return min(most, max(_LEVELS["3d"], 1 + halvings))


def _round_up(size: float, levels: int) -> int:
    """Return the next multiple of what ``levels`` can halve, so that skip connections meet."""
    block = 1 << (levels - 1)
    blocks: int = math.ceil(max(size, 1) / block)
    return blocks * block


def plan_patch(dimensions: Dimensions, shapes_zyx: Sequence[tuple[float, float, float]]) -> tuple[int, int, int]:
    """Return the patch: as large as the larger cases, shrunk along its longest axis until it fits the voxel budget.

    Args:
        dimensions: In ``2d`` the patch is one slice.
        shapes_zyx: Sizes of the cases at the training spacing.
    """
    wanted = np.percentile(np.asarray(shapes_zyx, dtype=float), 90, axis=0)
    levels = plan_depth(dimensions, wanted.tolist())
    patch = [1 if dimensions == "2d" and axis == 0 else _round_up(size, levels) for axis, size in enumerate(wanted)]
    while np.prod(patch) > _PATCH_VOXELS[dimensions]:
        patch[int(np.argmax(patch))] -= 1 << (levels - 1)
    return patch[0], patch[1], patch[2]


def plan_levels(
    size: Sequence[int], spacing_mm: Sequence[float], levels: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Return strides and kernels per level and axis: coarse axes are neither halved nor convolved until the fine ones match them."""
    now_size, now_mm = np.asarray(size), np.asarray(spacing_mm, dtype=float)
    strides, kernels = [], []
    for level in range(levels):
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
    object_px: float | None = None,
    hints: int = 0,
) -> NetworkPlan:
    """Return the plan for these cases: median spacing, a patch that covers most of a case, as many levels as it can be halved.

    Args:
        spec: What is asked for.
        shapes_zyx: Of the cases.
        spacings_zyx_mm: Of the cases.
        channels: Of the cases.
        classes: To tell apart, without the background.
        object_px: How thick the objects are in a slice; 2D nets look at slices of large objects at up to twice the spacing.
        hints: Channels that show what a teacher believes, beside those of the cases.
    """
    dimensions = choose_dimensions(spec, shapes_zyx)
    spacing = np.median(np.asarray(spacings_zyx_mm, dtype=float), axis=0)
    if dimensions == "2d" and object_px is not None:
        spacing[1:] *= min(max(object_px / _OBJECT_PX, 1.0), _COARSEST)
    sizes = [tuple(np.asarray(shape) * given / spacing) for shape, given in zip(shapes_zyx, spacings_zyx_mm, strict=True)]
    first = 1 if dimensions == "2d" else 0
    asked = spec.patch_zyx or plan_patch(dimensions, sizes)
    levels = plan_depth(dimensions, asked)
    patch = (1 if first else _round_up(asked[0], levels), _round_up(asked[1], levels), _round_up(asked[2], levels))
    strides, kernels = plan_levels(patch[first:], spacing[first:].tolist(), levels)
    width, neighbours = plan_width(spec, dimensions, levels), NEIGHBOURS if spec.dimensions == "2.5d" else 0
    return NetworkPlan(
        dimensions=dimensions,
        in_channels=(channels + hints) * (1 + 2 * neighbours),
        outputs=classes + 1,
        filters=tuple(width * min(2**level, _WIDEST[dimensions]) for level in range(levels)),
        strides=strides,
        kernels=kernels,
        patch_zyx=patch,
        spacing_zyx_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        batch=spec.batch or _BATCH[dimensions],
        neighbours=neighbours,
        hints=hints,
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
