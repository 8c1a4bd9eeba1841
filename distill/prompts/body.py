"""The patient's outline, and where in the patient something is: thresholds look inside it, and locations are told as shares of its box."""

from dataclasses import dataclass

import cc3d
import cv2
import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from storage import CaseRecord

BODY_HU = -500.0
"""Half way between air and water: what is above is tissue, or a table."""
AIR_SHARE = 0.3
"""Of Otsu's cut in MR and PET, which falls between dark and bright tissue."""
SMOOTH_PX = 2.0
"""Over noise in the air, which in MR is never negative."""
LEAST_SHARE = 0.02
"""Pieces smaller than this share of what is above air are no part of the outline."""
SAMPLE_VOXELS = 200_000
LEAST_EXTENT_PX = 1.0
_BLANKET = np.ones((3, 3), np.uint8)
"""What is thinner than this is no part of the patient: sheets, and the rim of a table."""


def grey_volume(volume_czyx: np.ndarray, shown: int | None = None) -> np.ndarray:
    """Return ``(z, y, x)`` float32: the one channel as it is, that which the teacher is shown, or the mean of colours."""
    only = 0 if len(volume_czyx) == 1 else shown
    grey: np.ndarray = volume_czyx.mean(axis=0, dtype=np.float32) if only is None else volume_czyx[only].astype(np.float32)
    return np.asarray(np.nan_to_num(grey))


def body_mask(grey_zyx: np.ndarray, modality: str) -> np.ndarray:
    """Return what of a volume is patient, ``(z, y, x)`` bool.

    CT: the largest piece above -500 HU, its holes filled slice by slice. MR and PET: on each slice the convex hull of all that is
    above 0.3 of Otsu's threshold, since lungs and bones are as dark as air and cut the body in pieces. Of other modalities, and where
    hardly anything would be left, the whole picture is taken.

    Args:
        grey_zyx: native intensities.
        modality: DICOM's code.
    """
    if modality not in {"CT", "MR", "PT"}:
        return np.ones(grey_zyx.shape, bool)
    mask = _ct_body(grey_zyx) if modality == "CT" else _hulls(grey_zyx)
    return mask if mask.mean() >= 0.01 else np.ones(grey_zyx.shape, bool)  # an empty scan, or a scale that is none


def _ct_body(hu_zyx: np.ndarray) -> np.ndarray:
    apart = _opened(hu_zyx > BODY_HU)
    largest = np.asarray(cc3d.largest_k(apart, k=1, connectivity=6)) > 0
    return np.stack([ndimage.binary_fill_holes(each) for each in largest])


def _hulls(grey_zyx: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(grey_zyx, (0, SMOOTH_PX, SMOOTH_PX))
    above = _opened(smooth > AIR_SHARE * float(otsu_cuts(smooth.reshape(-1), 2)[0]))
    pieces = np.asarray(cc3d.dust(above, threshold=max(1, int(LEAST_SHARE * np.count_nonzero(above))), connectivity=6))
    return np.stack([_hull(each) for each in pieces])


def _hull(mask: np.ndarray) -> np.ndarray:
    if not mask.any():
        return np.zeros(mask.shape, bool)
    return np.asarray(cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), cv2.convexHull(cv2.findNonZero(mask)), 1)) > 0


def _opened(mask: np.ndarray) -> np.ndarray:
    return np.stack([cv2.morphologyEx(each.astype(np.uint8), cv2.MORPH_OPEN, _BLANKET) for each in mask])


def otsu_cuts(values: np.ndarray, levels: int) -> np.ndarray:
    """Return the ``levels - 1`` rising cuts that make ``values`` fall into the most compact groups (Otsu 1979, Liao et al. 2001).

    The brightest and darkest half per cent are clipped, as a few extreme voxels would take most of the histogram. Where there are fewer
    different values than groups, every cut is the largest value: nothing is brighter.
    """
    sample = values[:: max(1, len(values) // SAMPLE_VOXELS)]
    if not len(sample):
        return np.zeros(levels - 1)
    clipped = np.clip(sample, *np.percentile(sample, (0.5, 99.5)))
    if len(np.unique(clipped)) < levels:
        return np.full(levels - 1, sample.max())
    return np.asarray(threshold_multiotsu(clipped, classes=levels, nbins=128), float)


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyFrame:
    """The box around the patient. Places in it are shares of its sides: from right to left, from front to back, from the feet up.

    So they are DICOM's directions, whichever way the array lies. Where the geometry is not known, or a volume was not cut
    axially, the array's own order is taken: on a picture the patient's right is on the left, as in a reporting room.
    """

    low_zyx_px: tuple[float, float, float]
    high_zyx_px: tuple[float, float, float]
    """Exclusive."""
    flipped_zyx: tuple[bool, bool, bool]

    def place(self, centre_zyx_px: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return where a point lies, as shares ``(z, y, x)`` of the box; beyond it below 0 or above 1.

        Args:
            centre_zyx_px: a voxel's index counts as its centre.
        """
        z, y, x = (
            (at + 0.5 - low) / max(high - low, LEAST_EXTENT_PX)
            for at, low, high in zip(centre_zyx_px, self.low_zyx_px, self.high_zyx_px, strict=True)
        )
        flip_z, flip_y, flip_x = self.flipped_zyx
        return (1 - z if flip_z else z, 1 - y if flip_y else y, 1 - x if flip_x else x)


def body_frame(record: CaseRecord, body_zyx: np.ndarray) -> BodyFrame:
    """Return the frame of a body mask ``(z, y, x)``."""
    found = ndimage.find_objects(body_zyx.astype(np.int8))
    box = found[0] if found else tuple(slice(0, side) for side in body_zyx.shape)
    low, high = [float(s.start) for s in box], [float(s.stop) for s in box]
    return BodyFrame(low_zyx_px=(low[0], low[1], low[2]), high_zyx_px=(high[0], high[1], high[2]), flipped_zyx=_flipped(record))


def _flipped(record: CaseRecord) -> tuple[bool, bool, bool]:
    """Say which array axes run against left, back and head."""
    if not record.geometry.spacing_known:
        return (False, False, False)
    directions = np.array(record.geometry.affine)[:3, :3]  # columns i, j, k = x, y, z; rows right, front, head
    if [int(np.abs(directions[:, axis]).argmax()) for axis in range(3)] != [0, 1, 2]:
        return (False, False, False)
    return (bool(directions[2, 2] < 0), bool(directions[1, 1] > 0), bool(directions[0, 0] > 0))
