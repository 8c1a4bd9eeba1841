"""Pictures of the report: slices with outlines as PNG, and plots as inline SVG that follow the page's colours."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from distill.quality import surface
from students.results import Comparison

_SIDE_PX = 300
"""Of each slice in the page."""

_MARGIN_PX = 6
"""Voxels shown around the object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """One mask to draw over the image."""

    name: str
    rgb: tuple[int, int, int]
    ids: UInt8[np.ndarray, "z y x"]


def grey(image_zyx: np.ndarray) -> UInt8[np.ndarray, "z y x"]:
    """Return intensities as 0 to 255 between their 0.5 and 99.5 percentile."""
    finite = np.nan_to_num(image_zyx.astype(np.float32))
    low, high = np.percentile(finite, [0.5, 99.5])
    scaled: np.ndarray = np.clip((finite - low) / max(high - low, 1e-6), 0, 1) * 255
    return scaled.astype(np.uint8)


def overlay_png(image_zyx: np.ndarray, outlines: Sequence[Outline], spacing_zyx_mm: Sequence[float]) -> str:
    """Return three orthogonal slices through the first outline's object (one for a flat image) as a ``data:`` address.

    Args:
        image_zyx: Native intensities.
        outlines: Drawn in order; the first one decides where to look, or the next that is not empty.
        spacing_zyx_mm: So that thick slices are not squeezed.
    """
    shades = grey(image_zyx)
    there = next((o.ids > 0 for o in outlines if (o.ids > 0).any()), np.ones_like(shades, dtype=bool))
    centre = [int(np.argmax(there.sum(axis=tuple(n for n in range(3) if n != axis)))) for axis in range(3)]
    axes = (0,) if image_zyx.shape[0] == 1 else (0, 1, 2)
    tiles = [_tile(shades, there, outlines, spacing_zyx_mm, axis, centre[axis]) for axis in axes]
    height = max(tile.shape[0] for tile in tiles)
    gap = np.zeros((height, 4, 3), np.uint8)
    parts: list[np.ndarray] = []
    for tile in tiles:
        parts += [np.pad(tile, ((0, height - tile.shape[0]), (0, 0), (0, 0))), gap]
    return _png(np.concatenate(parts[:-1], axis=1))


def _tile(
    shades: np.ndarray, there: np.ndarray, outlines: Sequence[Outline], spacing_mm: Sequence[float], axis: int, index: int
) -> np.ndarray:
    """Return one slice, cropped to the object, enlarged, with outlines over it."""
    window = _window(np.asarray(there.any(axis=axis)), there.shape[:axis] + there.shape[axis + 1 :])
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


def _rim(mask: np.ndarray) -> np.ndarray:
    """Return an outline two pixels wide, inside the mask."""
    outer: np.ndarray = surface(mask)
    rim: np.ndarray = outer | surface(mask & ~outer)
    return rim


def _window(seen: np.ndarray, shape: tuple[int, ...]) -> tuple[slice, slice]:
    found = []
    for axis, size in enumerate(shape):
        hit = np.flatnonzero(seen.any(axis=1 - axis))
        found.append(slice(max(0, int(hit[0]) - _MARGIN_PX), min(size, int(hit[-1]) + 1 + _MARGIN_PX)))
    return found[0], found[1]


def _png(rgb: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def strip_plot(comparisons: Sequence[Comparison], class_id: int) -> str:
    """Return an SVG with one dot per case and a bar with the mean's interval per comparison, Dice from 0 to 1."""
    left, width, row = 190, 460, 34
    low = min((s.dice for c in comparisons for s in c.scores if s.dice is not None), default=0.0)
    start = 0.5 if low >= 0.5 else 0.0

    def across(value: float) -> float:
        return left + (value - start) / (1 - start) * width

    ticks = np.linspace(start, 1, 6)
    height = row * len(comparisons) + 34
    parts = [f'<svg viewBox="0 0 {left + width + 30} {height}" role="img" aria-label="Dice of each case, by comparison">']
    for tick in ticks:
        x = across(float(tick))
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - 26}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{tick:.1f}</text>')
    for n, comparison in enumerate(comparisons):
        parts += _strip(comparison, class_id, 4 + row * n + row / 2, across)
    return "".join([*parts, "</svg>"])


def _strip(comparison: Comparison, class_id: int, y: float, across: Callable[[float], float]) -> list[str]:
    parts = [f'<text x="0" y="{y + 4:.1f}">{escape(comparison.name)}</text>']
    own = [s for s in comparison.scores if s.class_id == class_id and s.dice is not None]
    for n, score in enumerate(own):
        wobble = (n * 7 % 11 - 5) * 1.1
        x = across(score.dice or 0.0)
        title = f"<title>{score.case}: {score.dice:.3f}</title>"
        parts.append(f'<circle class="{comparison.role}" cx="{x:.1f}" cy="{y + wobble:.1f}" r="3.2">{title}</circle>')
    mean = next(c.metrics["dice"] for c in comparison.classes if c.class_id == class_id)
    if mean.mean is not None and mean.low is not None and mean.high is not None:
        box = f'x="{across(mean.low):.1f}" width="{max(across(mean.high) - across(mean.low), 1):.1f}" y="{y - 9:.1f}" height="18"'
        parts.append(f'<rect class="interval" {box}><title>95 % interval of the mean</title></rect>')
        parts.append(f'<line class="mean" x1="{across(mean.mean):.1f}" x2="{across(mean.mean):.1f}" y1="{y - 11:.1f}" y2="{y + 11:.1f}"/>')
    return parts


def bland_altman(comparison: Comparison, class_id: int) -> str:
    """Return an SVG of volume difference (ml) over mean volume (ml), with the mean difference and its 95 % limits of agreement."""
    own = [s for s in comparison.scores if s.class_id == class_id]
    if len(own) < 2:
        return ""
    mean = np.asarray([(s.first_ml + s.second_ml) / 2 for s in own])
    apart = np.asarray([s.first_ml - s.second_ml for s in own])
    middle, spread = float(apart.mean()), 1.96 * float(apart.std(ddof=1))
    reach = max(abs(middle) + spread, float(np.abs(apart).max()), 1e-9) * 1.15
    x0, x1 = float(mean.min()), float(mean.max() + 1e-9)
    width, height, left = 460, 210, 70

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * (width - 10) + 5, height / 2 - y / reach * (height / 2 - 10)

    parts = [f'<svg viewBox="0 0 {left + width + 130} {height + 36}" role="img" aria-label="Volume difference over mean volume">']
    lines: Mapping[str, float] = {"mean": middle, "+1.96 s.d.": middle + spread, "-1.96 s.d.": middle - spread}
    parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{height / 2}" y2="{height / 2}"/>')
    for name, value in lines.items():
        y = place(x0, value)[1]
        parts.append(f'<line class="limit" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left + width + 4}" y="{y + 4:.1f}">{name} {_short(value)}</text>')
    for score, x, y in zip(own, mean, apart, strict=True):
        cx, cy = place(float(x), float(y))
        title = f"<title>{score.case}: {_short(score.first_ml)} ml against {_short(score.second_ml)} ml</title>"
        parts.append(f'<circle class="{comparison.role}" cx="{cx:.1f}" cy="{cy:.1f}" r="3.4">{title}</circle>')
    parts.append(
        f'<text x="{left}" y="{height + 14}">{_short(x0)}</text><text x="{left + width}" y="{height + 14}" text-anchor="end">{_short(x1)}</text>'
    )
    parts.append(f'<text x="{left + width / 2}" y="{height + 30}" text-anchor="middle">mean of the two volumes (ml)</text>')
    parts.append(f'<text x="{left - 8}" y="{height / 2 + 4}" text-anchor="end">0 ml</text></svg>')
    return "".join(parts)


def _short(value: float) -> str:
    """Return a number with three significant digits."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:.{min(digits, 6)}f}"
