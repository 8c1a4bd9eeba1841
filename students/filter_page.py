"""The filter's own report: one HTML page that needs nothing but itself, and the same figures as JSON beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.audit_masks import judged_mask
from distill.audit_records import Average, ClassAudit, Dot, FilterReport, PartRow, Share, Shown
from distill.cleaning import ClassRule
from distill.quality import few_words
from storage import IGNORE, Archive, Case
from students.filter_plots import dot_plot, reliability_plot, risk_coverage_plot
from students.pictures import Outline, Shade, shown_image, strip_png

GOLD_RGB, PSEUDO_RGB, TEACHER_RGB, IGNORE_RGB = (255, 196, 0), (0, 190, 255), (255, 80, 160), (180, 140, 255)
REJECTED_RGB = (255, 255, 255)
"""Apart in lightness as well as in hue, so that colour-blind readers can tell them."""
HEADINGS: dict[str, str] = {
    "kept": "Kept: these masks are learnt from",
    "ignored": "Ignored: how much of a case nobody should learn from",
    "review": "For review: a person decides",
    "rejected": "Rejected: never learnt from, and their surroundings neither",
}
_SIDE_PX = 190
WHOLE = 0.995
"""Share of an object from which on nothing is said of the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What the page shows of one class beside its figures."""

    audit: ClassAudit
    best: PartRow | None
    """The part whose quality is shown large: test cases before archive cases before calibration cases, never several at once."""
    counted: str
    """Whose masks are counted."""
    measured: str
    """Whose quality is known, by part."""
    risk: str
    reliability: str
    dots: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One picture with its words."""

    shown: Shown
    png: str


def write_filter_page(
    report: FilterReport, archive: Archive, path: str | Path, *, gold: str = "gold", rules: Mapping[int, ClassRule] | None = None
) -> Path:
    """Write the page, and the JSON beside it under the same name; return the page's path.

    Args:
        report: from ``distill.audit.audit``.
        archive: where the images and masks of the gallery are.
        path: of the page, ``filter.html`` for example.
        gold: label set to outline where a case has it.
        rules: of each class, by which masks were cleaned: nothing is left of a rejected one in the label set, so it is cut once more to be shown.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=PackageLoader("students"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    cards = [Card(shown=shown, png=_picture(report, archive, shown, gold, rules or {})) for shown in report.gallery]
    page = environment.get_template("filter.html").render(
        r=report,
        sections=[_section(each, report) for each in report.classes],
        galleries=[(words, _by_part([card for card in cards if card.shown.heading == name])) for name, words in HEADINGS.items()],
        flat=all(archive[shown.case].record.shape_czyx[1] == 1 for shown in report.gallery),
        outlines=[
            ("teacher, as drawn", TEACHER_RGB),
            ("pseudo-label, as refinement cut it", PSEUDO_RGB),
            ("the same of a rejected mask", REJECTED_RGB),
            ("gold", GOLD_RGB),
            ("ignored (hatched where it is most of a picture)", IGNORE_RGB),
        ],
        share=share_words,
        average=average_words,
        known=known_words,
        bars=bars_words,
        few=few_words,
        percent=percent_words,
        part_only=lambda judged: percent_words(judged) if judged is not None and judged < WHOLE else "",
    )
    _put(target.with_suffix(".json"), report.model_dump_json(indent=1) + "\n")
    _put(target, page)
    return target


def _put(target: Path, text: str) -> None:
    """Replace a file at once, so that half a page is never seen."""
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)


def _by_part(cards: Sequence[Card]) -> list[tuple[str, list[Card]]]:
    """Return the cards of each part apart; what is known of one part says nothing of another."""
    parts = dict.fromkeys(card.shown.part for card in cards)
    return [(part, [card for card in cards if card.shown.part == part]) for part in parts]


def _section(each: ClassAudit, report: FilterReport) -> Section:
    return Section(
        audit=each,
        best=next((row for row in each.parts if row.whole_quality is not None), None),
        counted=f"masks of {report.population}",
        measured=measured_words(each.measured),
        risk=risk_coverage_plot(each.curves),
        reliability=reliability_plot(each.calibration) if each.calibration is not None else "",
        dots=dot_plot(each.dots, each.predicted),
    )


def bars_words(dots: Sequence[Dot]) -> str:
    """Say what the error bars of the dots are, and how many hold the true Dice; nothing where no Dice is predicted."""
    barred = [(dot.low, dot.dice, dot.high) for dot in dots if dot.low is not None and dot.high is not None]
    if not barred:
        return ""
    if all(low <= 0 and high >= 1 for low, _, high in barred):
        return "Error bars are from 0 to 1: there were too few gold patients to know more."
    held = sum(low <= dice <= high for low, dice, high in barred)
    return f"Bars are the error bars of the predicted Dice, nominally 90 %: {held} of {len(barred)} hold the true one."


def share_words(share: Share) -> str:
    """Write a share as ``3.0 % [1.0, 8.0], 5 of 167``."""
    if share.share is None or share.low is None or share.high is None:
        return "none drawn"
    return f"{100 * share.share:.1f} % [{100 * share.low:.1f}, {100 * share.high:.1f}], {share.count:,} of {share.of:,}"


def percent_words(share: float | None) -> str:
    """Write a share without its count: ``42.0 %``."""
    return "not known" if share is None else f"{100 * share:.1f} %"


def measured_words(measured: Mapping[str, int]) -> str:
    """Write how many masks of each part a figure is about: ``30 test and 60 archive masks``."""
    counts = [f"{count:,} {part}" for part, count in measured.items() if count]
    return f"{' and '.join(counts)} masks" if counts else "no masks"


def known_words(shown: Shown) -> str:
    """Write a mask's Dice, or why it has none."""
    if shown.dice is not None:
        return f"Dice {shown.dice:.3f}"
    return "nothing to find and nothing drawn" if shown.gold == "known" else f"Dice not known ({shown.gold})"


def average_words(average: Average | None) -> str:
    """Write a mean with its interval, or that there is none."""
    return "not known" if average is None else f"{average.mean:.3f} [{average.low:.3f}, {average.high:.3f}]"


def picture_layers(
    case: Case, class_ids: Sequence[int], *, teacher: str, pseudo: str, gold: str | None
) -> tuple[list[Outline], Shade | None]:
    """Return what is drawn over a case: the outlines of some classes, and what is ignored.

    Args:
        case: which case.
        class_ids: only these classes.
        teacher: label set of the teacher.
        pseudo: label set of the filter; its ignored voxels are tinted.
        gold: label set of the expert; None where a reviewer is not to be told.
    """
    there = case.label_sets()
    wanted = (("teacher", TEACHER_RGB, teacher), ("pseudo-label", PSEUDO_RGB, pseudo), ("gold", GOLD_RGB, gold))
    outlines, shade = [], None
    for name, rgb, label_set in wanted:
        if label_set is None or label_set not in there:
            continue
        ids = case.labels(label_set).read()
        if label_set == pseudo:
            shade = Shade(rgb=IGNORE_RGB, mask=ids == IGNORE)
        for value in [int(each) for each in set(ids.ravel().tolist()) if each not in class_ids]:
            ids[ids == value] = 0
        outlines.append(Outline(name=name, rgb=rgb, ids=ids))
    return outlines, shade


def _picture(report: FilterReport, archive: Archive, shown: Shown, gold: str, rules: Mapping[int, ClassRule]) -> str:
    case = archive[shown.case]
    outlines, shade = picture_layers(case, [shown.class_id], teacher=report.source, pseudo=report.label_set, gold=gold)
    if shown.heading == "rejected":
        rejected = judged_mask(case, case.labels(report.label_set), shown.class_id, rules.get(shown.class_id, ClassRule()))
        outlines.insert(1, Outline(name="rejected", rgb=REJECTED_RGB, ids=rejected.astype(np.uint8)))
    # Gold and pseudo-label under the teacher's line would hide each other where they agree, so the expert comes last.
    return strip_png(shown_image(case, report.source), outlines, case.spacing_zyx_mm, shade, _SIDE_PX)
