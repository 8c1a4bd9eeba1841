"""One HTML page that needs nothing but itself: figures, plots, and pictures of the best, the median and the worst case."""

from dataclasses import dataclass
from pathlib import Path

from distill.quality import few_words
from storage import IGNORE, Archive, Case
from students.pictures import Outline, overlay_png
from students.plots import bland_altman, strip_plot
from students.results import ClassResult, Comparison, Evaluation, Measured
from students.spec import Cost

_GOLD, _STUDENT, _TEACHER = (255, 196, 0), (0, 190, 255), (255, 80, 160)
"""Outlines: apart in lightness as well as in hue, so that colour-blind readers can tell them."""

Column = tuple[str, str, str, int]
"""Name of the metric, heading, explanation, and digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """In what lengths and volumes are shown."""

    length: str
    volume: str
    per_ml: float
    """Units of volume in a millilitre."""


MILLIMETRES = Units(length="mm", volume="ml", per_ml=1.0)
PIXELS = Units(length="px", volume="px", per_ml=1000.0)
"""For cases without a spacing: one pixel was taken for a millimetre."""
MIXED = Units(length="mm or px", volume="ml or 1000 px", per_ml=1.0)
"""For cases of both kinds in one table."""


def columns_in(units: Units, tolerance: float) -> tuple[Column, ...]:
    """Return the columns of the tables, with the units in their headings."""
    return (
        ("dice", "Dice", "Overlap of the two masks, 0 to 1; 1 is identical.", 3),
        ("nsd", "NSD", f"Share of both surfaces that lies within {tolerance:g} {units.length} of the other, 0 to 1.", 3),
        ("hd95_mm", f"HD95 ({units.length})", "95th percentile of surface distances; smaller is better.", 2),
        ("volume_bias", "volume bias (%)", "(predicted - reference) / reference: positive is too much.", 1),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One case of the gallery."""

    title: str
    case: str
    dice: float
    png: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What the page shows about one class."""

    name: str
    rows: tuple[tuple[Comparison, ClassResult], ...]
    strip: str
    volumes: str
    pictures: tuple[Picture, ...]


def write_report(evaluation: Evaluation, archive: Archive, path: str | Path) -> Path:
    """Write the page, and the JSON beside it under the same name; return the page's path.

    Args:
        evaluation: From `students.evaluate.evaluate`.
        archive: Where the images and label sets for the pictures are.
        path: Of the page, ``report.html`` for example.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=PackageLoader("students"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    units = MIXED if evaluation.spacing_known == "mixed" else MILLIMETRES if evaluation.spacing_known else PIXELS
    page = environment.get_template("report.html").render(
        e=evaluation,
        columns=columns_in(units, evaluation.tolerance_mm),
        sections=[_section(evaluation, archive, info.id, units) for info in evaluation.classes],
        cell=cell,
        outlines=[("gold", _GOLD), ("student", _STUDENT), ("teacher", _TEACHER)],
        cost=cost_words,
        few=few_words,
    )
    partial = target.with_name(target.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(target)
    evaluation.save(target.with_suffix(".json"))
    return target


def cell(measured: Measured, metric: str, digits: int) -> str:
    """Return a mean with its interval, in the unit of the column."""
    if measured.mean is None or measured.low is None or measured.high is None:
        return "n/a"
    scale = 100 if metric == "volume_bias" else 1
    mean, low, high = (f"{value * scale:.{digits}f}" for value in (measured.mean, measured.low, measured.high))
    return f"{mean} [{low}, {high}]"


def cost_words(cost: Cost) -> tuple[str, ...]:
    """Return a cost's figures with units a person reads."""
    flops = f"{cost.flops_per_case / 1e9:,.1f}"
    memory = "not seen" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:,.0f}"
    return (
        cost.name,
        f"{cost.parameters / 1e6:,.2f}",
        flops,
        f"{cost.seconds_per_case:,.3f}",
        memory,
        f"{cost.device}, {cost.threads} {'thread' if cost.threads == 1 else 'threads'}",
    )


def _section(evaluation: Evaluation, archive: Archive, class_id: int, units: Units) -> Section:
    rows = [(c, next(r for r in c.classes if r.class_id == class_id)) for c in evaluation.comparisons]
    against_gold = [c for c in evaluation.comparisons if c.role != "agreement"]
    return Section(
        name=rows[0][1].class_name,
        rows=tuple(rows),
        strip=strip_plot(against_gold, class_id),
        volumes=bland_altman(evaluation.comparisons[0], class_id, units.volume, units.per_ml),
        pictures=_gallery(evaluation, archive, class_id),
    )


def _gallery(evaluation: Evaluation, archive: Archive, class_id: int) -> tuple[Picture, ...]:
    """Return the best, the median and the worst case of the student by Dice with gold."""
    student = evaluation.comparisons[0]
    known = [(s.dice, s.case) for s in student.scores if s.class_id == class_id and s.dice is not None]
    if not known:
        return ()
    ranked = sorted(known)
    picks = {"worst": ranked[0], "median": ranked[len(ranked) // 2], "best": ranked[-1]}
    shown = []
    for title in ("best", "median", "worst"):
        score, case = picks[title]
        shown.append(Picture(title=title, case=case, dice=score, png=_overlay(evaluation, archive[case])))
    return tuple(shown)


def _overlay(evaluation: Evaluation, stored: Case) -> str:
    """Draw gold, student and (where there is one) teacher over one case."""
    by_role = {c.role: c.first for c in evaluation.comparisons}
    wanted = [
        ("gold", _GOLD, evaluation.gold),
        ("student", _STUDENT, by_role["student"]),
        ("teacher", _TEACHER, by_role.get("teacher", "")),
    ]
    outlines = []
    for name, rgb, label_set in wanted:
        if label_set and label_set in stored.label_sets():
            ids = stored.labels(label_set).read()
            ids[ids == IGNORE] = 0
            outlines.append(Outline(name=name, rgb=rgb, ids=ids))
    return overlay_png(stored.read()[0], outlines, stored.spacing_zyx_mm)
