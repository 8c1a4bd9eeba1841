"""What is known about one piece of a class on one slice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from distill.patches import Patch


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceHint:
    """Everything known about one piece of a class on one axial slice. Coordinates: slice pixels (x, y), upper bounds exclusive."""

    box: np.ndarray | None = None
    """``(4,)`` xyxy float32."""
    points: np.ndarray | None = None
    """``(K, 2)`` xy float32, pixel indices (the centre of the first pixel is 0)."""
    point_labels: np.ndarray | None = None
    """``(K,)``; 1 inside, 0 outside."""
    mask: Patch | None = None
    """float32 in [0, 1]: a rough mask."""


def joined(hints: Sequence[SliceHint]) -> SliceHint:
    """Return one hint for several about the same piece: the box around all boxes, all points in their order, and the larger mask value everywhere."""
    whole = hints[0]
    for hint in hints[1:]:
        whole = _join(whole, hint)
    return whole


def _join(old: SliceHint, new: SliceHint) -> SliceHint:
    box = (
        new.box
        if old.box is None
        else old.box
        if new.box is None
        else np.concatenate([np.minimum(old.box[:2], new.box[:2]), np.maximum(old.box[2:], new.box[2:])])
    )
    points, labels = old.points, old.point_labels
    if new.points is not None and new.point_labels is not None:
        points = new.points if points is None else np.concatenate([points, new.points])
        labels = new.point_labels if labels is None else np.concatenate([labels, new.point_labels])
    mask = new.mask if old.mask is None else old.mask if new.mask is None else old.mask.joined(new.mask)
    return replace(old, box=box, points=points, point_labels=labels, mask=mask)


def box_of(mask: np.ndarray) -> np.ndarray | None:
    """Return the tight box ``(4,)`` xyxy (upper bound exclusive) of a ``(H, W)`` bool mask; None if it is empty."""
    if not mask.any():
        return None
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([x, y, x + width, y + height], np.float32)
