"""One HTML page that needs nothing but itself: figures, plots, and pictures of the best, the median and the worst case."""

from dataclasses import dataclass
from pathlib import Path

from distill.quality import TRUSTED_PATIENTS, few_words
from storage import IGNORE, Archive, Case
from students.figures import Measured
from students.findings import LesionsOfSize
from students.pictures import Outline, overlay_png, shown_image
from students.plots import bland_altman, strip_plot
from students.report_parts import confidence_parts, curve_svg, group_parts, p_words
from students.results import ClassResult, Comparison, Evaluation
from students.spec import Cost
from students.units import Units, units_of

_GOLD, _STUDENT, _TEACHER = (255, 196, 0), (0, 190, 255), (255, 80, 160)
"""Outlines: apart in lightness as well as in hue, so that colour-blind readers can tell them."""

Column = tuple[str, str, str, int]
"""Name of the metric, heading, explanation, and digits."""


def columns_in(units: Units, tolerance: float) -> tuple[Column, ...]:
    """Return the columns of the tables, with the units in their headings."""
    return (
        ("dice", "Dice", "Overlap of the two masks, 0 to 1; 1 is identical.", 3),
        ("nsd", "NSD", f"Share of both surfaces that lies within {tolerance:g} {units.length} of the other, 0 to 1.", 3),
        ("hd95_mm", f"HD95 ({units.length})", "95th percentile of surface distances; smaller is better.", 2),
        ("volume_bias", "volume bias (%)", "(predicted - reference) / reference: positive is too much.", 1),
    )


def shape_columns(evaluation: Evaluation, class_id: int) -> tuple[Column, ...]:
    """Return the further columns of a class that is a tube or lesions."""
    every: dict[str, Column] = {
        "cl_dice": (
            "cl_dice",
            "clDice",
            "Overlap of centre lines with the other mask, 0 to 1: a tube that is cut in two loses, one that is too thin does not.",
            3,
        ),
        "lesion_f1": ("lesion_f1", "lesion F1", "Of counted lesions: twice those found over lesions and drawn pieces, 0 to 1.", 3),
        "lesion_sensitivity": (
            "lesion_sensitivity",
            "lesions found",
            "Share of gold's lesions that a drawn piece meets with an IoU of 0.1 or more.",
            3,
        ),
        "false_lesions": ("false_lesions", "false lesions", "Drawn pieces per case that are no lesion.", 2),
    }
    return tuple(every[name] for name in evaluation.metrics_of(class_id))


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
    anchor: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Comparison, ClassResult], ...]
    strip: str
    volumes: str
    pictures: tuple[Picture, ...]
    lesions: tuple[LesionsOfSize, ...]


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
    units = units_of(evaluation.spacing_known)
    page = environment.get_template("report.html").render(
        e=evaluation,
        columns=columns_in(units, evaluation.tolerance_mm),
        sections=[_section(evaluation, archive, info.id, units) for info in evaluation.classes],
        confidence=confidence_parts(evaluation),
        groups=group_parts(evaluation),
        curve=curve_svg(evaluation),
        p_words=p_words,
        cell=cell,
        outlines=[("gold", _GOLD), ("student", _STUDENT), ("teacher", _TEACHER)],
        cost=cost_words,
        few=few_words,
        each_alone=all(score.patient == score.case for score in evaluation.comparisons[0].scores),
        trusted=TRUSTED_PATIENTS,
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
    return f"{mean} [{low},\u00a0{high}]"  # broken before the interval where there is no room, never within it


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
        anchor=f"class-{class_id}",
        columns=(*columns_in(units, evaluation.tolerance_mm), *shape_columns(evaluation, class_id)),
        rows=tuple(rows),
        strip=strip_plot(against_gold, class_id),
        volumes=bland_altman(evaluation.comparisons[0], class_id, units.volume, units.per_ml),
        pictures=_gallery(evaluation, archive, class_id),
        lesions=tuple(each for each in evaluation.lesion_sizes if each.class_id == class_id),
    )


def _gallery(evaluation: Evaluation, archive: Archive, class_id: int) -> tuple[Picture, ...]:
    """Return the best, the median and the worst case of the student by Dice with gold, and the one on which it differs most from its teacher."""
    student = {s.case: s.dice for s in evaluation.comparisons[0].scores if s.class_id == class_id and s.dice is not None}
    if not student:
        return ()
    ranked = sorted((dice, case) for case, dice in student.items())
    picks = [("best", ranked[-1][1]), ("median", ranked[len(ranked) // 2][1]), ("worst", ranked[0][1])]
    with_teacher = next((c for c in evaluation.comparisons if c.role == "agreement"), None)
    apart = sorted((s.dice, s.case) for s in (with_teacher.scores if with_teacher else ()) if s.class_id == class_id and s.dice is not None)
    if apart and apart[0][1] in student and apart[0][1] not in {case for _, case in picks}:
        picks.append((f"furthest from the teacher (Dice {apart[0][0]:.3f} with it)", apart[0][1]))
    return tuple(Picture(title=title, case=case, dice=student[case], png=_overlay(evaluation, archive[case])) for title, case in picks)


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
    return overlay_png(shown_image(stored, by_role.get("teacher", "")), outlines, stored.spacing_zyx_mm)
