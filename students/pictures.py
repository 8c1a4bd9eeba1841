"""Pictures of the report: slices with outlines, as PNG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from distill.quality import surface

_SIDE_PX = 300
"""Of each slice in the page."""

_MARGIN_PX = 6
"""Voxels shown around the outlines, at least."""

_MARGIN_SHARE = 0.2
"""Of the outlines' extent, shown around them on each side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """One mask to draw over the image."""

    name: str
    rgb: tuple[int, int, int]
    ids: UInt8[np.ndarray, "z y x"]


def grey(image_zyx: np.ndarray, window: tuple[slice, ...]) -> UInt8[np.ndarray, "z y x"]:
    """Return intensities as 0 to 255, between the 0.5 and 99.5 percentile of the part that is shown."""
    finite = np.nan_to_num(image_zyx.astype(np.float32))
    low, high = np.percentile(finite[window], [0.5, 99.5])
    scaled: np.ndarray = np.clip((finite - low) / max(high - low, 1e-6), 0, 1) * 255
    return scaled.astype(np.uint8)


def overlay_png(image_zyx: np.ndarray, outlines: Sequence[Outline], spacing_zyx_mm: Sequence[float]) -> str:
    """Return three orthogonal slices below each other (one for a flat image) as a ``data:`` address.

    The part that is shown holds all outlines, so that what somebody painted elsewhere is seen too.

    Args:
        image_zyx: Native intensities.
        outlines: Drawn in order; the slices go through the object of the first one that is not empty.
        spacing_zyx_mm: So that thick slices are not squeezed.
    """
    there = next((o.ids > 0 for o in outlines if (o.ids > 0).any()), np.ones(image_zyx.shape, dtype=bool))
    centre = [int(np.argmax(there.sum(axis=tuple(n for n in range(3) if n != axis)))) for axis in range(3)]
    window = _window(np.any([there, *(o.ids > 0 for o in outlines)], axis=0))
    shades = grey(image_zyx, window)
    axes = (0,) if image_zyx.shape[0] == 1 else (0, 1, 2)
    tiles = [_tile(shades, window, outlines, spacing_zyx_mm, axis, centre[axis]) for axis in axes]
    parts: list[np.ndarray] = []
    for tile in tiles:
        parts += [_framed(tile), np.zeros((4, _SIDE_PX, 3), np.uint8)]
    return _png(np.concatenate(parts[:-1], axis=0))


def _tile(
    shades: np.ndarray, box: tuple[slice, ...], outlines: Sequence[Outline], spacing_mm: Sequence[float], axis: int, index: int
) -> np.ndarray:
    """Return one slice, cropped to the outlines, enlarged, with outlines over it."""
    window = tuple(part for n, part in enumerate(box) if n != axis)
    mm = [spacing_mm[n] for n in range(3) if n != axis]
    rows, columns = (s.stop - s.start for s in window)
    zoom = _SIDE_PX / max(rows * mm[0], columns * mm[1])
    size = (max(1, round(columns * mm[1] * zoom)), max(1, round(rows * mm[0] * zoom)))
    picture = Image.fromarray(np.take(shades, index, axis)[window]).resize(size, Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(picture)[..., None], 3, axis=2)
    for outline in outlines:
        flat = np.take(outline.ids, index, axis)[window]
        for value in np.unique(flat[flat > 0]):
            mask = Image.fromarray(np.uint8(255) * (flat == value).astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
            canvas[_rim(np.asarray(mask) > 0)] = outline.rgb
    # Up is up: in z-y and z-x slices the first voxel row is the lowest.
    return canvas[::-1] if axis else canvas


def _framed(tile: np.ndarray) -> np.ndarray:
    """Return a tile in the middle of a black square, so that pictures beside each other line up."""
    spare = [_SIDE_PX - size for size in tile.shape[:2]]
    framed: np.ndarray = np.pad(tile, ((spare[0] // 2, spare[0] - spare[0] // 2), (spare[1] // 2, spare[1] - spare[1] // 2), (0, 0)))
    return framed


def _rim(mask: np.ndarray) -> np.ndarray:
    """Return an outline two pixels wide, inside the mask."""
    outer: np.ndarray = surface(mask)
    rim: np.ndarray = outer | surface(mask & ~outer)
    return rim


def _window(seen: np.ndarray) -> tuple[slice, ...]:
    """Return the part around what is seen, with a margin."""
    found = []
    for axis, size in enumerate(seen.shape):
        hit = np.flatnonzero(seen.any(axis=tuple(n for n in range(seen.ndim) if n != axis)))
        first, last = int(hit[0]), int(hit[-1]) + 1
        margin = max(_MARGIN_PX, round(_MARGIN_SHARE * (last - first)))
        found.append(slice(max(0, first - margin), min(size, last + margin)))
    return tuple(found)


def _png(rgb: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
