"""The picture that a reviewer judges by: whole slices with axes, lines that say what they are, and which of them is to be judged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont

from students.pictures import Shade, enlarged, grey, rim, tint, window_around

JUDGED_RGB = ((0, 190, 255), (255, 140, 0), (90, 220, 120), (235, 220, 60), (200, 120, 255), (255, 255, 255))
"""Of the classes to be judged, one after the other; apart in lightness as well as in hue."""
_SLICE_PX, _LONGEST_PX = 330, 1600
"""The longer side of a slice, and the widest page."""
_LEFT, _TOP, _BOTTOM, _GAP, _LINE = 38, 20, 20, 14, 18
"""Room for numbers left of, above and below each slice, between two of them, and for a line of words."""
_MOST_TICKS = 5
_SMALL = 0.4
"""Of a side of the slice: what is outlined on less than that is shown larger as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One mask, drawn as a line."""

    words: str
    """For the legend."""
    rgb: tuple[int, int, int]
    mask: Bool[np.ndarray, "z y x"]
    bold: bool
    """What is to be judged is bold; what it is compared with is thin."""


@dataclass(frozen=True, slots=True)
class _View:
    """One rectangle of one slice, and how large it is drawn."""

    z: int
    rows: slice
    columns: slice
    size_px: tuple[int, int]
    """Width and height."""
    caption: str


def review_sheet(
    image_zyx: np.ndarray,
    lines: Sequence[Line],
    spacing_zyx_mm: Sequence[float],
    *,
    title: Sequence[str],
    shade: Shade | None = None,
    most: int = 12,
) -> Image.Image:
    """Return up to ``most`` whole axial slices through what is outlined; small objects are shown once more, larger, below their slice.

    Axes count pixels from 0 as boxes of prompts do: pixel ``n`` reaches from ``n`` to ``n + 1``. A millimetre is as long down as across.

    Args:
        image_zyx: Native intensities.
        lines: Drawn in order.
        spacing_zyx_mm: Of the voxels.
        title: Lines of words above: case, class, scores.
        shade: What to tint under the lines.
        most: Slices shown; evenly spread over those with a line.
    """
    seen = np.any([line.mask for line in lines], axis=0) if lines else np.zeros(image_zyx.shape, bool)
    seen = seen if seen.any() else np.ones(image_zyx.shape, bool)
    hit = np.flatnonzero(seen.any(axis=(1, 2)))
    chosen = hit[np.unique(np.linspace(0, len(hit) - 1, min(most, len(hit))).round().astype(int))]
    shades = grey(image_zyx, (slice(None),) * 3)
    cells = [list(_views(int(z), seen, spacing_zyx_mm)) for z in chosen]
    tiles = [_stacked([_drawn(shades, view, lines, shade) for view in views]) for views in cells]
    return _page(tiles, [*title, *_notes(image_zyx.shape[0], len(hit), len(chosen))], _legend(lines, shade))


def _notes(depth: int, outlined: int, shown: int) -> list[str]:
    if depth == 1:
        return []
    return [
        f"{shown} of {outlined} outlined slices (0 to {depth - 1} there are), from the first to the last; x to the right, y down, in pixels"
    ]


def _views(z: int, seen: np.ndarray, spacing_zyx_mm: Sequence[float]) -> Iterator[_View]:
    """Yield the whole slice, and a closer look where what is outlined in the case is small."""
    height, width = seen.shape[1:]
    yield _view(z, slice(0, height), slice(0, width), spacing_zyx_mm, f"slice {z}")
    rows, columns = window_around(seen)[1:]
    if max((rows.stop - rows.start) / height, (columns.stop - columns.start) / width) < _SMALL:
        yield _view(z, rows, columns, spacing_zyx_mm, f"slice {z}, closer")


def _view(z: int, rows: slice, columns: slice, spacing_zyx_mm: Sequence[float], caption: str) -> _View:
    down, across = (rows.stop - rows.start) * spacing_zyx_mm[1], (columns.stop - columns.start) * spacing_zyx_mm[2]
    zoom = _SLICE_PX / max(down, across)
    return _View(z, rows, columns, (max(1, round(across * zoom)), max(1, round(down * zoom))), caption)


def _drawn(shades: np.ndarray, view: _View, lines: Sequence[Line], shade: Shade | None) -> Image.Image:
    """Return one view with its lines, its numbers and its caption."""
    part = view.z, view.rows, view.columns
    picture = Image.fromarray(shades[part]).resize(view.size_px, Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(picture)[..., None], 3, axis=2)
    if shade is not None:
        tint(canvas, enlarged(shade.mask[part], view.size_px), shade.rgb, strength=0.4)
    for line in lines:
        if line.mask[part].any():
            canvas[rim(enlarged(line.mask[part], view.size_px), 3 if line.bold else 1)] = line.rgb
    framed = Image.new("RGB", (_LEFT + view.size_px[0] + _GAP, _TOP + view.size_px[1] + _BOTTOM), "black")
    framed.paste(Image.fromarray(canvas), (_LEFT, _TOP))
    draw, font = ImageDraw.Draw(framed), ImageFont.load_default(12)
    draw.text((_LEFT, 2), view.caption, fill="white", font=font)
    for value, at in _ticks(view.columns, view.size_px[0]):
        draw.line((_LEFT + at, _TOP + view.size_px[1], _LEFT + at, _TOP + view.size_px[1] + 4), fill="white")
        draw.text((_LEFT + at, _TOP + view.size_px[1] + 5), str(value), fill="white", font=font, anchor="mt")
    for value, at in _ticks(view.rows, view.size_px[1]):
        draw.line((_LEFT - 4, _TOP + at, _LEFT, _TOP + at), fill="white")
        draw.text((_LEFT - 6, _TOP + at), str(value), fill="white", font=font, anchor="rm")
    return framed


def _ticks(pixels: slice, length_px: int) -> list[tuple[int, int]]:
    """Return round numbers within a range of pixels, and where each stands on an axis of so many screen pixels."""
    count = pixels.stop - pixels.start
    step = next(unit * 10**power for power in range(6) for unit in (1, 2, 5) if count <= _MOST_TICKS * unit * 10**power)
    first = -(-pixels.start // step) * step
    return [(value, round((value - pixels.start) / count * length_px)) for value in range(first, pixels.stop + 1, step)]


def _stacked(tiles: Sequence[Image.Image]) -> Image.Image:
    page = Image.new("RGB", (max(tile.width for tile in tiles), sum(tile.height for tile in tiles)), "black")
    top = 0
    for tile in tiles:
        page.paste(tile, (0, top))
        top += tile.height
    return page


def _legend(lines: Sequence[Line], shade: Shade | None) -> list[tuple[str, tuple[int, int, int], int]]:
    """Return words, colour and thickness of everything that is drawn over the slices."""
    drawn = [(line.words, line.rgb, 4 if line.bold else 1) for line in lines]
    return drawn + (
        [] if shade is None else [("tinted, or hatched where it is most of a slice: ignored, nobody learns from it", shade.rgb, 12)]
    )


def _page(tiles: Sequence[Image.Image], title: Sequence[str], legend: Sequence[tuple[str, tuple[int, int, int], int]]) -> Image.Image:
    """Put words above, then the legend, then the tiles in rows."""
    font = ImageFont.load_default(14)
    columns = max(1, min(len(tiles), 4, _LONGEST_PX // tiles[0].width))
    rows = -(-len(tiles) // columns)
    words = [*title, *(name for name, _, _ in legend)]
    width = max(columns * tiles[0].width, *(60 + int(font.getlength(each)) for each in words))
    above = _LINE * len(words) + 2 * _GAP
    page = Image.new("RGB", (width, above + rows * tiles[0].height), "black")
    draw = ImageDraw.Draw(page)
    for n, line in enumerate(title):
        draw.text((8, 6 + n * _LINE), line, fill="white", font=font)
    for n, (name, rgb, thick) in enumerate(legend, len(title)):
        draw.line((8, 15 + n * _LINE, 40, 15 + n * _LINE), fill=rgb, width=thick)
        draw.text((50, 6 + n * _LINE), name, fill="white", font=font)
    for n, tile in enumerate(tiles):
        page.paste(tile, (n % columns * tile.width, above + n // columns * tile.height))
    return page
