"""The plot of what gold is worth, as inline SVG that follows the page's colours."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

from students.findings import CurveRow, GoldCurve, Taught
from students.plots import ticks

Place = Callable[[int, float], tuple[float, float]]
"""Of a number of patients and a Dice, in the picture."""
_WIDTH, _HEIGHT, _LEFT, _TOP = 520, 260, 58, 10
_LEGEND_PX = 18
_WORDS: dict[Taught, str] = {"gold": "gold alone", "mixed": "gold beside pseudo-labels"}
_LEAST_SPAN = 0.05
"""Of the Dice axis, so that rounding does not look like a slope."""


def curve_plot(curve: GoldCurve, references: Mapping[str, float]) -> str:
    """Return Dice over the number of patients whose gold was learnt from, with bands of 95 % intervals.

    Args:
        curve: With at least one row, or nothing is drawn.
        references: Name -> Dice of what has no number of patients: dashed lines.
    """
    rows = [row for row in curve.rows if row.dice.mean is not None]
    if not rows:
        return ""
    counts = sorted({row.patients for row in rows})
    seen = [value for row in rows for value in (row.dice.mean, row.dice.low, row.dice.high) if value is not None] + [*references.values()]
    marks = _marks(min(seen), max(seen))
    low, high = marks[0], marks[-1]

    def place(patients: int, dice: float) -> tuple[float, float]:
        first, last = math.log(counts[0]), math.log(counts[-1])
        across = (math.log(patients) - first) / (last - first) if last > first else 0.5
        return _LEFT + (0.04 + 0.92 * across) * _WIDTH, _TOP + (high - dice) / (high - low) * _HEIGHT

    parts = _grid(marks)
    for count in counts:
        parts.append(f'<text x="{place(count, low)[0]:.1f}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">{count}</text>')
    legend: list[tuple[str, str]] = []
    for taught, words in _WORDS.items():
        own = [row for row in rows if row.taught == taught]
        if own:
            parts += _line(own, taught, place)
            legend.append((f"line {taught}", words))
    for n, (name, value) in enumerate(references.items()):
        y = place(counts[0], value)[1]
        kind = f"line limit reference{n % 3}"
        parts.append(
            f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"><title>{escape(name)}</title></line>'
        )
        legend.append((kind, f"{name}: {value:.3f}"))
    parts += [part for n, (kind, words) in enumerate(legend) for part in _legend(n, kind, words)]
    height = _TOP + _HEIGHT + 44 + _LEGEND_PX * len(legend)
    label = "Dice over the number of patients whose gold was learnt from"
    return f'<svg viewBox="0 0 {_LEFT + _WIDTH + 12} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _marks(least: float, most: float) -> list[float]:
    """Return round numbers around all there is, no higher than 1."""
    short = max(0.0, _LEAST_SPAN - (most - least))
    found = [value for value in ticks(max(0.0, least - short), most) if value <= 1]
    return found if found[-1] >= most else [*found, 1.0]


def _grid(marks: Sequence[float]) -> list[str]:
    parts = []
    for value in marks:
        y = _TOP + (marks[-1] - value) / (marks[-1] - marks[0]) * _HEIGHT
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    middle = _TOP + _HEIGHT / 2
    return [
        *parts,
        f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 31}" text-anchor="middle">patients whose gold was learnt from (axis by their logarithm)</text>',
        f'<text transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">Dice with gold</text>',
    ]


def _line(own: Sequence[CurveRow], taught: Taught, place: Place) -> list[str]:
    """Return the band, the line and the dots of one way of teaching."""
    points = [(*place(row.patients, row.dice.mean), row) for row in own if row.dice.mean is not None]
    upper = [place(row.patients, row.dice.high) for row in own if row.dice.high is not None]
    lower = [place(row.patients, row.dice.low) for row in reversed(own) if row.dice.low is not None]
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *lower])
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
    return [
        f'<polygon class="band {taught}" points="{band}"/>',
        f'<polyline class="line {taught}" points="{line}"/>',
        *(
            f'<circle class="{taught}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{_WORDS[taught]}, {row.patients} '
            f"{'patient' if row.patients == 1 else 'patients'}: {row.dice.mean:.3f} [{row.dice.low:.3f}, {row.dice.high:.3f}]</title></circle>"
            for x, y, row in points
        ),
    ]


def _legend(n: int, kind: str, words: str) -> list[str]:
    y = _TOP + _HEIGHT + 50 + n * _LEGEND_PX
    return [
        f'<line class="{kind}" x1="{_LEFT}" x2="{_LEFT + 20}" y1="{y - 4}" y2="{y - 4}"/>',
        f'<text x="{_LEFT + 26}" y="{y}">{escape(words)}</text>',
    ]
