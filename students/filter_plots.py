"""Plots of the filter's report, as inline SVG that follows the page's colours."""

from collections.abc import Callable, Sequence
from html import escape
from math import floor

from distill.audit_records import CalibrationPlot, Dot, Reliability, RiskCoverage

_WIDTH, _HEIGHT, _LEFT, _TOP = 380, 260, 58, 10
_LEGEND_PX = 18
Place = Callable[[float, float], tuple[float, float]]


def risk_coverage_plot(curves: Sequence[RiskCoverage]) -> str:
    """Return mean risk over coverage, a line per group; dashed is the mean risk of all, which a random choice would keep."""
    if not curves:
        return ""
    top = max(point.risk for curve in curves for point in curve.points)
    place, frame = _frame((0.0, 1.0), (0.0, _ceiling(top)), "coverage: share of masks kept, the most confident first", curves[0].risk)
    parts = []
    for n, curve in enumerate(curves):
        name = curve.group or "agreement"
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(point.coverage, point.risk) for point in curve.points))
        parts.append(f'<polyline class="line {name}" points="{line}"><title>{escape(curve.about)}</title></polyline>')
        (x0, y), (x1, _) = place(0, curve.whole), place(1, curve.whole)
        parts.append(f'<line class="line {name} limit" x1="{x0:.1f}" x2="{x1:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts += _legend(n, name, f"{name}: {curve.masks} masks, AURC {curve.aurc:.3f}")
    return _svg(frame, parts, len(curves), "Risk over coverage")


def reliability_plot(plot: CalibrationPlot, across: str = "probability as it is cut", as_it_is: str = "as it is") -> str:
    """Return the frequency of the object over its stored probability; on the diagonal a probability means what it says.

    Args:
        plot: Before a temperature, and after it where there is one.
        across: Words of the axis.
        as_it_is: What the line before it is called.
    """
    shown: list[tuple[str, Reliability]] = [("before", plot.before)] + ([("after", plot.after)] if plot.after is not None else [])
    place, frame = _frame((0.0, 1.0), (0.0, 1.0), across, "share of voxels in gold")
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts = [f'<line class="limit" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>']
    for n, (name, one) in enumerate(shown):
        dots = [(*place(each.said, each.was), each) for each in one.bins]
        parts.append(f'<polyline class="line {name}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y, _ in dots)}"/>')
        parts += [
            f'<circle class="{name}" cx="{x:.1f}" cy="{y:.1f}" r="{2 + 6 * each.share**0.5:.1f}">'
            f"<title>said {each.said:.2f}, was {each.was:.2f}, {each.share:.1%} of voxels</title></circle>"
            for x, y, each in dots
        ]
        words = as_it_is if name == "before" else f"after temperature {plot.temperature:.2f}"
        parts += _legend(n, name, f"{words}: ECE {one.ece:.3f}, Brier {one.brier:.3f}")
    return _svg(frame, parts, len(shown), "Reliability of probabilities")


def dot_plot(dots: Sequence[Dot], score: str) -> str:
    """Return Dice over the score that judges, a dot per mask, with the error bars of a predicted Dice where they say anything."""
    if not dots:
        return ""
    barred = [(each, *ends) for each in dots if (ends := _bars(each)) is not None]
    low_x, low_y = (
        _floor(min(values)) for values in ([each.predicted for each in dots] + [low for _, low, _ in barred], [each.dice for each in dots])
    )
    place, frame = _frame((low_x, 1.0), (low_y, 1.0), score, "Dice with gold")
    parts = []
    for each, low, high in barred:
        (x0, y), (x1, _) = place(low, each.dice), place(high, each.dice)
        parts.append(f'<line class="bar {escape(each.verdict)}" x1="{x0:.1f}" x2="{x1:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for each in dots:
        x, y = place(each.predicted, each.dice)
        bars = "" if each.low is None or each.high is None else f" ({each.low:.2f} to {each.high:.2f})"
        title = (
            f"<title>{escape(each.case)}: {escape(score)} {each.predicted:.3f}{bars}, Dice {each.dice:.3f}, {escape(each.verdict)}</title>"
        )
        parts.append(f'<circle class="{escape(each.verdict)}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">{title}</circle>')
    verdicts = [name for name in ("accept", "ignore", "review", "reject") if any(each.verdict == name for each in dots)]
    parts += [
        f'<circle class="{name}" cx="{_LEFT + 8 + 95 * n}" cy="{_TOP + _HEIGHT + 46}" r="4"/>'
        f'<text x="{_LEFT + 18 + 95 * n}" y="{_TOP + _HEIGHT + 50}">{name}</text>'
        for n, name in enumerate(verdicts)
    ]
    return _svg(frame, parts, 1, "Predicted and true quality")


def _bars(dot: Dot) -> tuple[float, float] | None:
    """Return the ends of a dot's error bars; nothing where there are none, or all that is said is 0 to 1."""
    if dot.low is None or dot.high is None or (dot.low <= 0 and dot.high >= 1):
        return None
    return dot.low, dot.high


def _frame(xs: tuple[float, float], ys: tuple[float, float], across: str, up: str) -> tuple[Place, list[str]]:
    """Return where a value goes, and the grid with its words."""

    def place(x: float, y: float) -> tuple[float, float]:
        return _LEFT + (x - xs[0]) / (xs[1] - xs[0]) * _WIDTH, _TOP + (ys[1] - y) / (ys[1] - ys[0]) * _HEIGHT

    parts = []
    for n in range(6):
        x, y = xs[0] + n / 5 * (xs[1] - xs[0]), ys[0] + n / 5 * (ys[1] - ys[0])
        at_x, at_y = place(x, ys[0])[0], place(xs[0], y)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{at_y:.1f}" y2="{at_y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{y:.3g}</text>')
        parts.append(f'<text x="{at_x:.1f}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">{x:.2g}</text>')
    parts.append(f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 31}" text-anchor="middle">{escape(across)}</text>')
    middle = _TOP + _HEIGHT / 2
    parts.append(f'<text transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
    return place, parts


def _legend(n: int, name: str, words: str) -> list[str]:
    y = _TOP + _HEIGHT + 50 + n * _LEGEND_PX
    return [
        f'<line class="line {name}" x1="{_LEFT}" x2="{_LEFT + 20}" y1="{y - 4}" y2="{y - 4}"/>',
        f'<text x="{_LEFT + 26}" y="{y}">{escape(words)}</text>',
    ]


def _svg(frame: Sequence[str], parts: Sequence[str], lines: int, label: str) -> str:
    height = _TOP + _HEIGHT + 40 + lines * _LEGEND_PX
    return f'<svg viewBox="0 0 {_LEFT + _WIDTH + 12} {height}" role="img" aria-label="{label}">{"".join([*frame, *parts])}</svg>'


def _ceiling(value: float) -> float:
    """Return the next of a few round numbers, for the upper end of an axis."""
    return next((step for step in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8) if value <= step), 1.0)


def _floor(value: float) -> float:
    """Return a round number below, for the lower end of an axis."""
    return max(0.0, floor(value * 10) / 10) if value < 0.95 else 0.9
