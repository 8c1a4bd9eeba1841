"""Pieces of a class on slices: where they are, their innermost pixel, the box around them, and the prompts that they become."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
import cv2
import numpy as np
from scipy import ndimage

from storage import CaseRecord, Prompt
from storage.rle import encode

LEAST_PX = 4
"""A piece of fewer pixels has no inside to point at."""
LOOSE_PX = 2.0
"""By how much a loose box is wider than its piece at least; a share of a small box's sides is nothing."""
RIM_PX = 2
_CROSS = np.ones((3, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A connected piece of one class on one slice."""

    z: int
    mask: np.ndarray
    """``(h, w)`` bool, inside its box."""
    box_xyxy_px: tuple[int, int, int, int]
    """Tight, upper bound exclusive."""

    def on(self, shape_yx: tuple[int, int]) -> np.ndarray:
        """Return the mask on the whole slice."""
        whole = np.zeros(shape_yx, bool)
        x0, y0, x1, y1 = self.box_xyxy_px
        whole[y0:y1, x0:x1] = self.mask
        return whole


def pieces_of(labels_zyx: np.ndarray, *, least_px: int = LEAST_PX) -> Iterator[Piece]:
    """Yield each connected piece of each label on each slice, from below and by label.

    Args:
        labels_zyx: 0 is nothing; different numbers are different pieces even where they touch.
        least_px: smaller ones are left out.
    """
    for z, labels in enumerate(labels_zyx):
        if not labels.any():
            continue
        parts = np.asarray(cc3d.connected_components(np.ascontiguousarray(labels), connectivity=4))
        for number, place in enumerate(ndimage.find_objects(parts), start=1):
            if place is None:
                continue
            mask = parts[place] == number
            if np.count_nonzero(mask) >= least_px:
                rows, columns = place
                yield Piece(z=z, mask=mask, box_xyxy_px=(columns.start, rows.start, columns.stop, rows.stop))


def parts_of(mask_yx: np.ndarray, *, z: int = 0) -> list[Piece]:
    """Return the 8-connected pieces of a ``(H, W)`` bool mask of slice ``z``, the largest first."""
    count, labelled, stats, _ = cv2.connectedComponentsWithStats(mask_yx.astype(np.uint8), connectivity=8)
    found = []
    for n in 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable"):
        x, y, width, height = (int(each) for each in stats[n, : cv2.CC_STAT_AREA])
        found.append(Piece(z=z, mask=labelled[y : y + height, x : x + width] == n, box_xyxy_px=(x, y, x + width, y + height)))
    return found


def prompts_of(
    record: CaseRecord, class_id: int, piece: Piece, *, give: Sequence[Literal["box", "point", "mask"]], margin: float, confidence: float
) -> list[Prompt]:
    """Return the prompts that a piece becomes.

    Args:
        record: the case.
        class_id: of the piece.
        piece: where.
        give: which kinds.
        margin: how far out the box goes, as a share of its sides; at least one pixel, and not beyond the slice.
        confidence: of each prompt.
    """
    height, width = record.shape_czyx[2:]
    common = {"case": record.id, "class_id": class_id, "slice": piece.z, "confidence": float(confidence)}
    made: list[Prompt] = []
    if "box" in give:
        made.append(Prompt(kind="box", box_xyxy_px=widened(piece.box_xyxy_px, margin, (height, width)), **common))  # type: ignore[arg-type]
    if "point" in give:
        made.append(Prompt(kind="point", points_xy_px=(innermost(piece),), **common))  # type: ignore[arg-type]
    if "mask" in give:
        rle = encode(piece.on((height, width)))
        made.append(Prompt(kind="mask", mask_rle=rle, mask_size_yx=(height, width), **common))  # type: ignore[arg-type]
    return made


def widened(
    box_xyxy_px: Sequence[float], margin: float, size_yx: tuple[int, int], *, least_px: float = 1.0
) -> tuple[float, float, float, float]:
    """Return a box moved out by a share of its sides, ``least_px`` at least, within a slice."""
    x0, y0, x1, y1 = box_xyxy_px
    dx, dy = max(least_px, margin * (x1 - x0)), max(least_px, margin * (y1 - y0))
    return max(0.0, x0 - dx), max(0.0, y0 - dy), min(float(size_yx[1]), x1 + dx), min(float(size_yx[0]), y1 + dy)


def innermost(piece: Piece) -> tuple[float, float]:
    """Return the middle of the pixel (x, y) that is furthest from the border, the slice's edge included; the first of several."""
    depth = cv2.distanceTransform(np.pad(piece.mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return piece.box_xyxy_px[0] + int(x) + 0.5, piece.box_xyxy_px[1] + int(y) + 0.5


def rim_contrast(piece: Piece, grey_yx: np.ndarray) -> float:
    """Return how much better than chance a pixel just inside can be told from one just outside by its intensity, 0 to 1.

    Both rims are two pixels wide and taken as normally distributed: 2 AUC - 1 = erf(d / sqrt 2) with d the distance of their means in
    units of the joint deviation. A rim of which nothing is on the slice has no contrast.
    """
    x0, y0, x1, y1 = piece.box_xyxy_px
    height, width = grey_yx.shape
    ax, ay, bx, by = max(0, x0 - RIM_PX), max(0, y0 - RIM_PX), min(width, x1 + RIM_PX), min(height, y1 + RIM_PX)
    mask = np.zeros((by - ay, bx - ax), np.uint8)
    mask[y0 - ay : y1 - ay, x0 - ax : x1 - ax] = piece.mask
    around = cv2.dilate(mask, _CROSS, iterations=RIM_PX) > mask
    core = cv2.erode(mask, _CROSS, iterations=RIM_PX, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inside, values = mask > core, grey_yx[ay:by, ax:bx]
    if not around.any() or not inside.any():
        return 0.0
    spread = math.hypot(float(values[inside].std()), float(values[around].std()))
    apart = abs(float(values[inside].mean()) - float(values[around].mean()))
    return math.erf(apart / (spread * math.sqrt(2))) if spread > 0 else float(apart > 0)
