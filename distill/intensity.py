"""Native intensities to the 8-bit RGB pictures that SAM-family teachers expect, once per volume so that slices stay comparable."""

from dataclasses import dataclass

import numpy as np

from storage.case import CaseRecord

CT_SOFT_TISSUE_HU = (-160.0, 240.0)
"""Width 400, level 40: the window MedSAM's preprocessing uses for soft tissue (Ma et al. 2024)."""
PERCENTILES = (0.5, 99.5)
SAMPLE_VOXELS = 2_000_000
"""Percentiles are taken over at most this many voxels, so that a huge volume costs no more memory than a small one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Which intensities become black and white, and why; goes into the label set's history."""

    low: float
    high: float
    rule: str


def choose_window(record: CaseRecord, volume_czyx: np.ndarray) -> Window:
    """Pick the window of one case.

    CT: soft tissue in Hounsfield units. 8-bit colour: as it is. Anything else: the 0.5th to 99.5th percentile of the voxels
    that are not zero, since MR, ultrasound and PET have no absolute scale and zero padding would drag a percentile down.

    Args:
        record: the case, for its modality.
        volume_czyx: its voxels ``(c, z, y, x)``, any numeric type.
    """
    if record.modality == "CT":
        return Window(low=CT_SOFT_TISSUE_HU[0], high=CT_SOFT_TISSUE_HU[1], rule="ct-soft-tissue")
    if volume_czyx.dtype == np.uint8 and volume_czyx.shape[0] == 3:
        return Window(low=0.0, high=255.0, rule="as-is")
    stride = max(1, volume_czyx.size // SAMPLE_VOXELS)
    sample = np.asarray(volume_czyx).reshape(-1)[::stride]
    sample = sample[np.isfinite(sample) & (sample != 0)]
    if not len(sample):
        return Window(low=0.0, high=1.0, rule="empty")
    low, high = (float(v) for v in np.percentile(sample.astype(np.float64), PERCENTILES))
    return Window(low=low, high=high if high > low else low + 1.0, rule="percentiles-of-non-zero")


def to_rgb(slice_cyx: np.ndarray, window: Window) -> np.ndarray:
    """Return ``(H, W, 3)`` uint8 of one slice ``(c, y, x)``; three channels are taken as RGB, otherwise the first is repeated."""
    unit = np.clip((slice_cyx.astype(np.float32) - window.low) / (window.high - window.low), 0.0, 1.0)
    grey = np.nan_to_num(255.0 * unit).astype(np.uint8)
    if grey.shape[0] == 3:
        return np.ascontiguousarray(grey.transpose(1, 2, 0))
    return np.repeat(grey[0][..., None], 3, axis=2)
