"""Show the teacher the same picture in several ways, and bring its answers back into one frame.

A view is the picture mirrored, turned by a few degrees, a little larger or smaller, with another gamma or under a shifted window. Boxes,
points and rough masks go forward into the view's frame, logits come back; what a view does not show, it says nothing about. Ranges that
keep anatomy believable: 5 to 10 degrees, scales 0.9 to 1.1, gamma 0.8 to 1.25, a window shifted by a tenth of its width (test-time
augmentation, Wang et al. 2019).

Coordinates are continuous: pixel ``n`` covers ``[n, n + 1)``, and views turn and scale about the picture's centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch.nn import functional

from distill.casework import CaseWork
from distill.intensity import Window, picture_of


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """One way to show a picture; the default shows it as it is."""

    flip: bool = False
    """Mirrored left to right."""
    degrees: float = 0.0
    """Turned by this angle, from x towards y."""
    scale: float = 1.0
    """Larger (above 1) or smaller inside the same frame."""
    gamma: float = 1.0
    """Grey levels in [0, 1] to this power."""
    window_shift: float = 0.0
    """Both ends of the window moved by this share of its width."""

    @property
    def moves(self) -> bool:
        """Say whether the picture is turned or scaled, so that places between pixels are looked at."""
        return self.degrees != 0 or self.scale != 1

    def picture(self, work: CaseWork, z: int) -> np.ndarray:
        """Return slice ``z`` of a case in this view, ``(H, W, 3)`` uint8."""
        window = shifted(work.window, self.window_shift) if self.window_shift else work.window
        return self.shown(picture_of(work.volume_czyx, z, window))

    def shown(self, picture: np.ndarray) -> np.ndarray:
        """Return a picture ``(H, W, 3)`` uint8 with everything of the view but its window."""
        if self.gamma != 1:
            picture = _curve(self.gamma)[picture]
        if self.moves:
            size = (picture.shape[1], picture.shape[0])
            picture = cv2.warpAffine(picture, self._matrix(-0.5, picture.shape[:2]), size, borderMode=cv2.BORDER_REPLICATE)
        return np.ascontiguousarray(picture[:, ::-1]) if self.flip else picture

    def boxes(self, boxes_xyxy_px: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
        """Return boxes ``(N, 4)`` in the view's frame, perhaps partly outside of it.

        A turned box would enclose a larger one; what is taken is the box around the turned ellipse inside it, as organs are rounder than boxes.
        """
        if self.moves:
            turn = self._matrix(0.0, size_px)
            centres = (boxes_xyxy_px[:, :2] + boxes_xyxy_px[:, 2:]) / 2
            centres = centres @ turn[:, :2].T + turn[:, 2]
            half = np.sqrt(((boxes_xyxy_px[:, 2:] - boxes_xyxy_px[:, :2]) / 2) ** 2 @ (turn[:, :2] ** 2).T)
            boxes_xyxy_px = np.concatenate([centres - half, centres + half], axis=1).astype(boxes_xyxy_px.dtype)
        if not self.flip:
            return boxes_xyxy_px
        width = size_px[1]
        return np.stack([width - boxes_xyxy_px[:, 2], boxes_xyxy_px[:, 1], width - boxes_xyxy_px[:, 0], boxes_xyxy_px[:, 3]], axis=1)

    def region(self, region: tuple[slice, slice], size_px: tuple[int, int]) -> np.ndarray:
        """Return the box ``(4,)`` xyxy that holds all places of the view that some rows and columns of the picture are looked up at."""
        (y0, y1), (x0, x1) = ((each.start, each.stop) for each in region)
        corners = np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]], np.float64)
        if self.moves:
            turn = self._matrix(0.0, size_px)
            corners = corners @ turn[:, :2].T + turn[:, 2]
        low, high = corners.min(axis=0) - self.moves, corners.max(axis=0) + self.moves  # one more pixel on each side to interpolate with
        if self.flip:
            low[0], high[0] = size_px[1] - high[0], size_px[1] - low[0]
        return np.concatenate([low, high]).astype(np.float32)

    def points(self, points_xy_px: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
        """Return points ``(N, 2)``, which are pixel indices (the first pixel's centre is 0), in the view's frame."""
        if self.moves:
            turn = self._matrix(-0.5, size_px)
            points_xy_px = (points_xy_px @ turn[:, :2].T + turn[:, 2]).astype(points_xy_px.dtype)
        return np.stack([size_px[1] - 1 - points_xy_px[:, 0], points_xy_px[:, 1]], axis=1) if self.flip else points_xy_px

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Return a rough mask ``(H, W)`` in [0, 1] in the view's frame; nothing is known beyond its border, so nothing is there."""
        if self.moves:
            mask = cv2.warpAffine(np.asarray(mask, np.float32), self._matrix(-0.5, mask.shape[:2]), (mask.shape[1], mask.shape[0]))
        return mask[:, ::-1] if self.flip else mask

    def back(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Bring logits ``(E, H, W)`` back into the picture's frame.

        Returns:
            The logits, and ``(H, W)`` bool of what the view shows; None where that is everything.
        """
        logits = logits.flip(-1) if self.flip else logits
        if not self.moves:
            return logits, None
        height, width = logits.shape[-2:]
        grid = torch.from_numpy(self._places((height, width))).to(logits.device)
        found = functional.grid_sample(logits[None], grid[None], mode="bilinear", padding_mode="border", align_corners=False)[0]
        return found, (grid.abs() <= 1).all(dim=-1)

    def _matrix(self, first_centre: float, size_px: tuple[int, int]) -> np.ndarray:
        """Return the ``(2, 3)`` float64 map of places (x, y) into the turned and scaled frame.

        ``first_centre`` is -0.5 for places that count from the centre of the first pixel, and 0 for those that count from its edge.
        """
        height, width = size_px
        centre = np.array([width / 2, height / 2]) + first_centre
        angle = np.deg2rad(self.degrees)
        turn = self.scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.concatenate([turn, (centre - turn @ centre)[:, None]], axis=1)

    def _places(self, size_px: tuple[int, int]) -> np.ndarray:
        """Return ``(H, W, 2)`` float32: where each pixel of the picture lies in the view before mirroring, its edges at -1 and 1."""
        height, width = size_px
        turn = self._matrix(-0.5, size_px)
        y, x = np.mgrid[:height, :width]
        places = np.stack([x, y], axis=-1) @ turn[:, :2].T + turn[:, 2]
        return np.asarray((2 * places + 1) / (width, height) - 1, np.float32)


PLAIN = View()
MIRRORED = View(flip=True)


def views_of(
    *,
    flips: bool,
    rotations: Sequence[float] = (),
    scales: Sequence[float] = (),
    gammas: Sequence[float] = (),
    window_shifts: Sequence[float] = (),
) -> tuple[View, ...]:
    """Return the views of an ensemble, the picture as it is first. Each other one changes one thing."""
    return (
        PLAIN,
        *((MIRRORED,) if flips else ()),
        *(View(degrees=each) for each in rotations),
        *(View(scale=each) for each in scales),
        *(View(gamma=each) for each in gammas),
        *(View(window_shift=each) for each in window_shifts),
    )


def shifted(window: Window, share: float) -> Window:
    """Return a window moved by ``share`` of its width, each of them where there are several."""
    step = share * (window.high - window.low)
    others = tuple((low + share * (high - low), high + share * (high - low)) for low, high in window.others)
    return replace(window, low=window.low + step, high=window.high + step, others=others)


def _curve(gamma: float) -> np.ndarray:
    """Return ``(256,)`` uint8: grey level -> grey level."""
    return np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
