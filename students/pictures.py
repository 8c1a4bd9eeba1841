"""Pictures of the report: slices with outlines, as PNG."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped, UInt8
from PIL import Image

from distill.quality import surface
from storage import Case

_SIDE_PX = 300
"""Of each slice in the page."""

_MARGIN_PX = 6
"""Voxels shown around the outlines, at least."""

_MARGIN_SHARE = 0.2
"""Of the outlines' extent, shown around them on each side."""

_MOST_TINTED = 0.5
"""Of a picture: what covers more of it is hatched, or there would be a colour to see and no picture."""

_HATCH_PX, _HATCH_EVERY_PX = 2, 9
"""Thickness and distance of the diagonal lines, on the screen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """One mask to draw over the image."""

    name: str
    rgb: tuple[int, int, int]
    ids: UInt8[np.ndarray, "z y x"]


def shown_image(case: Case, label_set: str) -> Shaped[np.ndarray, "z y x"]:
    """Return the channel that whoever drew a label set was shown, to have its masks judged by what they were drawn on.

    The first channel, where several were shown at once, nobody drew, or nobody said which one it was.
    """
    told = case.labels(label_set).history.parameters.get("window_channels") if label_set in case.label_sets() else None
    word = told.removeprefix("channel:") if isinstance(told, str) else ""
    channel = int(word) if word.isdecimal() and int(word) < case.record.shape_czyx[0] else 0
    return np.asarray(case.image[channel])


def grey(image_zyx: np.ndarray, window: tuple[slice, ...]) -> UInt8[np.ndarray, "z y x"]:
    """Return intensities as 0 to 255, between the 0.5 and 99.5 percentile of the part that is shown."""
    finite = np.nan_to_num(image_zyx.astype(np.float32))
    low, high = np.percentile(finite[window], [0.5, 99.5])
    scaled: np.ndarray = np.clip((finite - low) / max(high - low, 1e-6), 0, 1) * 255
    return scaled.astype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shade:
    """Voxels to tint, such as those that nobody should learn from."""

    rgb: tuple[int, int, int]
    mask: Bool[np.ndarray, "z y x"]


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
    window = window_around(np.any([there, *(o.ids > 0 for o in outlines)], axis=0))
    shades = grey(image_zyx, window)
    axes = (0,) if image_zyx.shape[0] == 1 else (0, 1, 2)
    tiles = [_tile(shades, window, outlines, spacing_zyx_mm, axis, centre[axis]) for axis in axes]
    parts: list[np.ndarray] = []
    for tile in tiles:
        parts += [_framed(tile), np.zeros((4, _SIDE_PX, 3), np.uint8)]
    return _png(np.concatenate(parts[:-1], axis=0))


def strip_png(
    image_zyx: np.ndarray, outlines: Sequence[Outline], spacing_zyx_mm: Sequence[float], shade: Shade | None = None, side_px: int = 200
) -> str:
    """Return three orthogonal slices beside each other (one for a flat image) as a ``data:`` address; arguments as for ``overlay_png``.

    Args:
        image_zyx: Native intensities.
        outlines: Drawn in order; the slices go through the object of the first one that is not empty.
        spacing_zyx_mm: So that thick slices are not squeezed.
        shade: What to tint under the outlines.
        side_px: Of each slice.
    """
    there = next((o.ids > 0 for o in outlines if (o.ids > 0).any()), np.ones(image_zyx.shape, dtype=bool))
    centre = [int(np.argmax(there.sum(axis=tuple(n for n in range(3) if n != axis)))) for axis in range(3)]
    window = window_around(np.any([there, *(o.ids > 0 for o in outlines)], axis=0))
    shades = grey(image_zyx, window)
    axes = (0,) if image_zyx.shape[0] == 1 else (0, 1, 2)
    tiles = [_framed(_tile(shades, window, outlines, spacing_zyx_mm, axis, centre[axis], side_px, shade), side_px) for axis in axes]
    gap = np.zeros((side_px, 4, 3), np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)]
    return _png(np.concatenate(parts[:-1], axis=1))


def _tile(
    shades: np.ndarray,
    box: tuple[slice, ...],
    outlines: Sequence[Outline],
    spacing_mm: Sequence[float],
    axis: int,
    index: int,
    side_px: int = _SIDE_PX,
    shade: Shade | None = None,
) -> np.ndarray:
    """Return one slice, cropped to the outlines, enlarged, with outlines over it."""
    window = tuple(part for n, part in enumerate(box) if n != axis)
    mm = [spacing_mm[n] for n in range(3) if n != axis]
    rows, columns = (s.stop - s.start for s in window)
    zoom = side_px / max(rows * mm[0], columns * mm[1])
    size = (max(1, round(columns * mm[1] * zoom)), max(1, round(rows * mm[0] * zoom)))
    picture = Image.fromarray(np.take(shades, index, axis)[window]).resize(size, Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(picture)[..., None], 3, axis=2)
    if shade is not None:
        tint(canvas, enlarged(np.take(shade.mask, index, axis)[window], size), shade.rgb, strength=0.45)
    for outline in outlines:
        flat = np.take(outline.ids, index, axis)[window]
        for value in np.unique(flat[flat > 0]):
            canvas[rim(enlarged(flat == value, size))] = outline.rgb
    # Up is up: in z-y and z-x slices the first voxel row is the lowest.
    return canvas[::-1] if axis else canvas


def tint(canvas: UInt8[np.ndarray, "y x rgb"], mask: Bool[np.ndarray, "y x"], rgb: tuple[int, int, int], *, strength: float) -> None:
    """Colour a part of a picture in place; a part that is most of it only along diagonal lines, so that what lies under it is seen.

    Args:
        canvas: The picture; changed.
        mask: Which pixels.
        rgb: With what.
        strength: From 0, which changes nothing, to 1, which leaves nothing.
    """
    part = mask
    if mask.mean() > _MOST_TINTED:
        rows, columns = np.indices(mask.shape)
        part = mask & ((rows + columns) % _HATCH_EVERY_PX < _HATCH_PX)
    canvas[part] = ((1 - strength) * canvas[part] + strength * np.asarray(rgb)).astype(np.uint8)


def enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask at the size of its picture, ``(width, height)``."""
    return np.asarray(Image.fromarray(np.uint8(255) * mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0


def _framed(tile: np.ndarray, side_px: int = _SIDE_PX) -> np.ndarray:
    """Return a tile in the middle of a black square, so that pictures beside each other line up."""
    spare = [side_px - size for size in tile.shape[:2]]
    framed: np.ndarray = np.pad(tile, ((spare[0] // 2, spare[0] - spare[0] // 2), (spare[1] // 2, spare[1] - spare[1] // 2), (0, 0)))
    return framed


def rim(mask: Bool[np.ndarray, "y x"], thick_px: int = 2) -> Bool[np.ndarray, "y x"]:
    """Return an outline so many pixels wide, inside the mask."""
    outline = np.zeros_like(mask)
    for _ in range(thick_px):
        outline |= surface(mask & ~outline)
    return outline


def window_around(seen: np.ndarray) -> tuple[slice, ...]:
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
