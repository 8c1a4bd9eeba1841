"""Plots of the report, as inline SVG that follows the page's colours."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from students.results import CaseScore, Comparison

LETTER_PX = 6.3
"""Mean width of a letter of the plots' labels (12 px, sans serif), a little generous so that no label reaches into its plot."""


def strip_plot(comparisons: Sequence[Comparison], class_id: int) -> str:
    """Return an SVG with one dot per case and a bar with the mean's interval per comparison, Dice from 0 to 1."""
    left, width, row = max(190, round(LETTER_PX * max((len(c.name) for c in comparisons), default=0)) + 14), 460, 34
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


def bland_altman(comparison: Comparison, class_id: int, unit: str = "ml", per_ml: float = 1.0) -> str:
    """Return an SVG of volume difference over mean volume, with the mean difference and its 95 % limits of agreement.

    Args:
        comparison: Of the student with gold.
        class_id: Whose volumes.
        unit: As the axes show it.
        per_ml: How many units a millilitre has; 1000 where a voxel was taken for a cubic millimetre.
    """
    own = [s for s in comparison.scores if s.class_id == class_id]
    if len(own) < 2:
        return ""
    mean = np.asarray([(s.first_ml + s.second_ml) / 2 * per_ml for s in own])
    apart = np.asarray([(s.first_ml - s.second_ml) * per_ml for s in own])
    middle, spread = float(apart.mean()), 1.96 * float(apart.std(ddof=1))
    lines: Mapping[str, float] = {"mean": middle, "+1.96 s.d.": middle + spread, "-1.96 s.d.": middle - spread}
    xs, ys = ticks(float(mean.min()), float(mean.max())), ticks(min(0.0, *lines.values(), *apart), max(0.0, *lines.values(), *apart))
    width, height, left, top = 460, 190, 84, 8

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - xs[0]) / (xs[-1] - xs[0]) * width, top + (ys[-1] - y) / (ys[-1] - ys[0]) * height

    parts = [f'<svg viewBox="0 0 {left + width + 130} {top + height + 40}" role="img" aria-label="Volume difference over mean volume">']
    parts += _axes(xs, ys, place, unit)
    for name, value in lines.items():
        y = place(xs[0], value)[1]
        parts.append(f'<line class="limit" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left + width + 4}" y="{y + 4:.1f}">{name} {_short(value)}</text>')
    parts += _volume_dots(comparison.role, own, [place(float(x), float(y)) for x, y in zip(mean, apart, strict=True)], unit, per_ml)
    return "".join([*parts, "</svg>"])


def _volume_dots(role: str, own: Sequence[CaseScore], places: Sequence[tuple[float, float]], unit: str, per_ml: float) -> list[str]:
    parts = []
    for score, (cx, cy) in zip(own, places, strict=True):
        title = f"<title>{score.case}: {_short(score.first_ml * per_ml)} {unit} against {_short(score.second_ml * per_ml)} {unit}</title>"
        parts.append(f'<circle class="{role}" cx="{cx:.1f}" cy="{cy:.1f}" r="3.4">{title}</circle>')
    return parts


def _axes(xs: Sequence[float], ys: Sequence[float], place: Callable[[float, float], tuple[float, float]], unit: str) -> list[str]:
    """Return grid lines with their values, and what the axes show."""
    parts = []
    (left, bottom), (right, top) = place(xs[0], ys[0]), place(xs[-1], ys[-1])
    for value in ys:
        y = place(xs[0], value)[1]
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts += [f'<text x="{place(x, ys[0])[0]:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{x:g}</text>' for x in xs]
    middle = (left + right) / 2
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 34:.1f}" text-anchor="middle">mean of student and gold ({unit})</text>')
    parts.append(
        f'<text transform="translate(12 {(top + bottom) / 2:.1f}) rotate(-90)" text-anchor="middle">student minus gold ({unit})</text>'
    )
    return parts


def ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers that enclose both ends."""
    span = max(high - low, 1e-9, 1e-6 * abs(high))
    size = 10 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


def _short(value: float) -> str:
    """Return a number with three significant digits."""
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:.{min(digits, 6)}f}"
