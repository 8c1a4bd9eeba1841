"""What is measured of a mask, so that rules can tell what it shows."""

import math

import cv2
import numpy as np

from distill.intensity import modality_of
from distill.prompts.body import BodyFrame, body_frame, body_mask, grey_volume
from distill.prompts.everything_options import TRAITS
from distill.prompts.pieces import Piece, rim_contrast
from storage import CaseRecord

RANK_STEPS = 1001
"""Percentiles are read off a table of so many."""


class Surroundings:
    """A case as masks are measured against it: native intensities, the body and its frame."""

    def __init__(self, record: CaseRecord, volume_czyx: np.ndarray, shown: int | None = None) -> None:
        """Find the body of a volume of native intensities, in the channel that the teacher is shown where there are several."""
        self.grey = grey_volume(volume_czyx, shown)
        self.body = body_mask(self.grey, modality_of(record, shown))
        self.frame: BodyFrame = body_frame(record, self.body)
        self.ranks = np.percentile(self.grey[self.body], np.linspace(0, 100, RANK_STEPS)) if self.body.any() else np.zeros(RANK_STEPS)
        spacing = record.geometry.spacing_zyx_mm
        self.pixel_area = float(spacing[1] * spacing[2]) if record.geometry.spacing_known else 1.0

    def traits(self, piece: Piece) -> np.ndarray:
        """Return what ``TRAITS`` names, ``(T,)``; the area as its natural logarithm.

        Args:
            piece: of at least one pixel.
        """
        x0, y0, x1, y1 = piece.box_xyxy_px
        inside = self.grey[piece.z, y0:y1, x0:x1][piece.mask]
        median = float(np.median(inside))
        rows, columns = np.nonzero(piece.mask)
        z, y, x = self.frame.place((piece.z, y0 + float(rows.mean()), x0 + float(columns.mean())))
        low, high = np.searchsorted(self.ranks, median, "left"), np.searchsorted(self.ranks, median, "right")
        measured = {
            "intensity": median,
            "percentile": 50 * (low + high) / (RANK_STEPS - 1),
            "area": math.log(len(inside) * self.pixel_area),
            "x": x,
            "y": y,
            "z": z,
            "eccentricity": eccentricity(rows, columns),
            "solidity": solidity(piece.mask),
            "contrast": rim_contrast(piece, self.grey[piece.z]),
        }
        return np.array([measured[name] for name in TRAITS])


def eccentricity(rows: np.ndarray, columns: np.ndarray) -> float:
    """Return that of the ellipse with the same second moments as these pixels: 0 for a disc, towards 1 for a line."""
    if len(rows) < 2:
        return 0.0
    small, large = np.linalg.eigvalsh(np.cov(np.stack([rows, columns])) + np.eye(2) / 12)  # a pixel is a square, not a dot
    return float(math.sqrt(max(0.0, 1 - small / large)))


def solidity(mask: np.ndarray) -> float:
    """Return the share of the pixels of its convex hull that a mask ``(h, w)`` bool fills."""
    if not mask.any():
        return 0.0
    hull = cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), cv2.convexHull(cv2.findNonZero(mask.astype(np.uint8))), 1)
    return float(np.count_nonzero(mask) / np.count_nonzero(hull))
