"""How a volume becomes what a network sees: intensities of its own range, voxels at the training spacing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch.nn import functional

from students.spec import Normalisation

_SAME_SPACING = 0.05
"""Relative difference below which two spacings count as one; resampling would blur more than it corrects."""

_STATISTICS_VOXELS = 500_000
"""Percentiles of a larger volume are taken from a regular sample of about this many voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensities:
    """How one volume's intensities are normalised: per channel, clip to (low, high), subtract the mean, divide by the deviation."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    def apply(self, block_czyx: np.ndarray) -> Float32[np.ndarray, "c z y x"]:
        """Return the block normalised; NaN and infinity become the low end."""
        block: np.ndarray = block_czyx.astype(np.float32)  # a copy, which all that follows changes in place: volumes are large
        if not np.issubdtype(block_czyx.dtype, np.integer):
            block[np.isnan(block)] = -np.inf
        np.clip(block, _per_channel(self.low), _per_channel(self.high), out=block)
        block -= _per_channel(self.mean)
        block /= _per_channel(self.deviation)
        return block


def _per_channel(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)[:, None, None, None]


def measure_intensities(image_czyx: np.ndarray, rule: Normalisation, hints: int = 0) -> Intensities:
    """Return the normalisation of one volume, from its own voxels that are finite and not zero; hints, its last channels, stay as they are.

    Scanners write anything: MR volumes of one collection may reach 90 or 1.7 million, so nothing is assumed about the range. When
    hardly any voxel differs from zero, all count.
    """
    stride = max(1, round((image_czyx[0].size / _STATISTICS_VOXELS) ** (1 / 2)))
    rows = []
    for channel in image_czyx[: len(image_czyx) - hints, ..., ::stride, ::stride].astype(np.float64):
        finite = channel[np.isfinite(channel)]
        values = finite[finite != 0]
        if values.size < max(16, finite.size // 1000):
            values = finite if finite.size else np.zeros(1)
        low, high = np.percentile(values, [rule.low_percentile, rule.high_percentile])
        clipped = np.clip(values, low, high)
        rows.append((low, high, clipped.mean(), max(clipped.std(), 1e-6 * max(abs(high), 1e-6))))
    table = np.asarray([*rows, *[(-1.0, 1.0, 0.0, 1.0)] * hints], dtype=np.float32)
    return Intensities(low=table[:, 0], high=table[:, 1], mean=table[:, 2], deviation=table[:, 3])


def resample(
    volume: Float[torch.Tensor, "c z y x"], shape_zyx: tuple[int, int, int], *, nearest: bool = False
) -> Float[torch.Tensor, "c z y x"]:
    """Return a volume on another number of voxels over the same extent, linearly or by nearest voxel."""
    if tuple(volume.shape[1:]) == shape_zyx:
        return volume
    if nearest:
        return functional.interpolate(volume[None], size=shape_zyx, mode="nearest-exact")[0]
    return functional.interpolate(volume[None], size=shape_zyx, mode="trilinear", align_corners=False)[0]


def shape_at_spacing(
    shape_zyx: Sequence[int], spacing_zyx_mm: Sequence[float], wanted_zyx_mm: Sequence[float], *, keep_z: bool = False
) -> tuple[int, int, int]:
    """Return the size a volume has at another spacing; unchanged along an axis where the two differ by less than 5 %.

    Args:
        shape_zyx: Voxels.
        spacing_zyx_mm: Of those voxels.
        wanted_zyx_mm: Of the new ones.
        keep_z: For nets that look at slices: never resample across them.
    """
    sizes = []
    for axis, (size, have, want) in enumerate(zip(shape_zyx, spacing_zyx_mm, wanted_zyx_mm, strict=True)):
        same = abs(have / want - 1) < _SAME_SPACING or (keep_z and axis == 0)
        sizes.append(size if same else max(1, round(size * have / want)))
    return sizes[0], sizes[1], sizes[2]
