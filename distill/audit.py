"""What did the filter do, and was it right? The numbers of the filter's own report.

Cases are read one after the other: what stays in memory is a line of numbers for each mask, never a voxel. Where experts have drawn cases,
confidence is held against Dice, separately for test cases, archive cases (in hindsight) and calibration cases, since the last set the
thresholds and flatter them. Without gold every figure is an agreement and is called so.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from distill.audit_calibration import ABOUT, calibration_plot
from distill.audit_gallery import gallery
from distill.audit_groups import group_rows, part_row, witness
from distill.audit_masks import AuditPlan, Found, Mask, ordered_by_quality, walk
from distill.audit_records import (
    GROUPS,
    ClassAudit,
    Dot,
    FilterReport,
    Group,
    GroupRow,
    Kind,
    RingRow,
    RiskCoverage,
    ScoreRank,
    Thresholds,
)
from distill.cleaning import ClassRule
from distill.quality import normalised_aurc, spearman
from distill.rings import Ring
from distill.risk_coverage import risk_coverage
from distill.subgroups import SIGNIFICANT, holm
from storage import Archive, ClassInfo

AUDIT = "5"
"""Raised whenever the report's figures change."""
MOST_DOTS = 400
LEAST_RANKED = 5
"""Masks that a rank correlation takes at least: of two it is always +1 or -1."""
LEAST_JUDGED = 0.9
"""Share of what experts drew, below which it is said loudly that figures are about a part of it."""
MOSTLY = 0.5
"""Share of a case that is ignored, from which on it is said loudly."""
PREDICTED = "predicted_dice"
"""The Dice that calibration predicts of a mask, where there was gold enough to learn that."""


def audit(archive: Archive, plan: AuditPlan, *, progress: Callable[[int], None] | None = None) -> FilterReport:
    """Look at every case that carries the filter's label set.

    Args:
        archive: where; nothing is written.
        plan: whose filter.
        progress: called with how many cases are read.
    """
    found = walk(archive, plan, progress)
    ordered = {info.id: ordered_by_quality(found.masks, info.id) for info in plan.classes}
    found.masks = [mask for _, masks in ordered.values() for mask in masks]
    population = [mask for mask in found.masks if mask.part == "archive"] or found.masks
    whose = "the archive part" if any(mask.part == "archive" for mask in found.masks) else "all parts, as the archive part holds none"
    classes = _adjusted([_class_audit(info, ordered[info.id][0], plan, found, population) for info in plan.classes])
    return FilterReport(
        label_set=plan.target,
        source=plan.source,
        cases=sum(found.parts.values()),
        patients=len(found.patients),
        parts=dict(found.parts),
        population=whose,
        gold_cases=dict(found.gold),
        gold_notes=_gold_notes(found),
        reviewed=len(archive.catalog.reviews(plan.source)),
        classes=tuple(classes),
        flags=tuple(_flag(each, row) for each in classes for row in each.groups if row.flagged),
        warnings=(
            *(f"{each.class_name}: {_warned(each.thresholds)}" for each in classes if each.thresholds.warning),
            *_warnings(found, population),
            *(f"{each.class_name}: {words}" for each in classes for words in _of_a_part(each)),
        ),
        notes=_notes(population),
        gallery=gallery(population),
    )


def _class_audit(info: ClassInfo, confidence: str, plan: AuditPlan, found: Found, population: Sequence[Mask]) -> ClassAudit:
    mine = [mask for mask in population if mask.class_id == info.id]
    known = [mask for mask in found.masks if mask.class_id == info.id and not np.isnan(mask.dice)]
    unseen = [mask for mask in known if mask.part != "calibration"]
    measured = (unseen or known) if known else mine
    everyone = [mask for mask in found.masks if mask.class_id == info.id]
    kind: Kind = "Dice with gold" if known else "agreement"
    return ClassAudit(
        class_id=info.id,
        class_name=info.name,
        confidence=confidence,
        predicted=_predictor(unseen or known, confidence),
        kind=kind,
        verdicts=dict(Counter(mask.verdict for mask in mine)),
        reasons=dict(
            Counter(mask.reason for mask in mine)
            + Counter({reason: count for (class_id, reason), count in found.not_drawn.items() if class_id == info.id})
        ),
        parts=tuple(part_row(each, group, ABOUT[group] if known else "", kind) for group, each in _by_part(everyone).items()),
        measured={group: len(each) for group, each in _by_part(measured).items()},
        curves=_gold_curves(known) if known else _agreement_curve(mine, confidence),
        groups=group_rows(mine, measured, kind),
        scores=_score_ranks(unseen),
        calibration=calibration_plot(info.id, plan, found),
        dots=_dots(unseen or known, confidence),
        thresholds=_thresholds(info.id, plan),
    )


def _by_part(masks: Sequence[Mask]) -> dict[Group, list[Mask]]:
    """Return the masks of each part that has some."""
    parts = {group: [mask for mask in masks if mask.part == group] for group in GROUPS}
    return {group: each for group, each in parts.items() if each}


def _gold_curves(known: Sequence[Mask]) -> tuple[RiskCoverage, ...]:
    return tuple(
        risk_coverage(masks, [1 - mask.dice for mask in masks], about=ABOUT[group], words="1 - Dice with gold", group=group)
        for group, masks in _by_part(known).items()
    )


def _agreement_curve(masks: Sequence[Mask], confidence: str) -> tuple[RiskCoverage, ...]:
    name = witness(masks)
    known = [mask for mask in masks if name in mask.scores]
    if not known:
        return ()
    about = f"no gold: agreement ({name}) of the archive's masks, which an error that all opinions share leaves untouched"
    curve = risk_coverage(known, [1 - mask.scores[name] for mask in known], about=about, words=f"1 - {name} (agreement)", group=None)
    # Ordered by itself, an agreement is perfect, which says nothing.
    return (curve.model_copy(update={"normalised_aurc": None, "gain_at_80": None}) if name == confidence else curve,)


def _adjusted(classes: Sequence[ClassAudit]) -> list[ClassAudit]:
    """Adjust the p values of all classes together, and flag what stays significant."""
    adjusted = iter(holm([row.p for each in classes for row in each.groups]))
    done = []
    for each in classes:
        rows = []
        for row in each.groups:
            p = next(adjusted)
            rows.append(row.model_copy(update={"p_adjusted": p, "flagged": p is not None and p < SIGNIFICANT}))
        done.append(each.model_copy(update={"groups": tuple(rows)}))
    return done


def _flag(each: ClassAudit, row: GroupRow) -> str:
    whole = each.groups[0].removed.share or 0.0
    often = "more" if (row.removed.share or 0.0) > whole else "less"
    return (
        f"{each.class_name}: {row.attribute.replace('_', ' ')} {row.value} is removed {often} often than the rest, {row.removed.count} of {row.removed.of} masks "
        f"({row.removed.share or 0:.0%}; of all {whole:.0%}; p = {row.p_adjusted or 0:.2g}, {row.test}, Holm)"
    )


def _score_ranks(known: Sequence[Mask]) -> tuple[ScoreRank, ...]:
    """Say how well each score orders masks by Dice, the best first."""
    found = []
    skipped = {"volume_mm3", "slices_asked", f"{PREDICTED}_low", f"{PREDICTED}_high"}
    for name in sorted({score for mask in known for score in mask.scores} - skipped):
        own = [mask for mask in known if name in mask.scores]
        values, dices = [mask.scores[name] for mask in own], [mask.dice for mask in own]
        rank, gain = spearman(values, dices), normalised_aurc(values, [1 - each for each in dices])
        enough = len(own) >= LEAST_RANKED
        found.append(
            ScoreRank(
                score=name,
                masks=len(own),
                spearman=rank if enough and np.isfinite(rank) else None,
                normalised_aurc=gain if enough and np.isfinite(gain) else None,
            )
        )
    return tuple(sorted(found, key=lambda each: -abs(each.spearman or 0.0)))


def _predictor(known: Sequence[Mask], confidence: str) -> str:
    """Return what is held against Dice: the predicted one where every mask has it, else what orders them."""
    return PREDICTED if known and all(PREDICTED in mask.scores for mask in known) else confidence


def _dots(known: Sequence[Mask], confidence: str) -> tuple[Dot, ...]:
    """Return predicted against true Dice of at most so many masks, drawn at random with a fixed seed."""
    name = _predictor(known, confidence)
    chosen = np.sort(np.random.default_rng(0).permutation(len(known))[:MOST_DOTS])
    return tuple(
        Dot(
            case=mask.case,
            predicted=mask.scores[name],
            dice=mask.dice,
            verdict=mask.verdict,
            low=mask.scores.get(f"{name}_low"),
            high=mask.scores.get(f"{name}_high"),
        )
        for mask in (known[int(n)] for n in chosen)
    )


def _thresholds(class_id: int, plan: AuditPlan) -> Thresholds:
    rule, calibration = plan.rules.get(class_id, ClassRule()), plan.calibrations.get(class_id)
    stated = () if calibration is None else calibration.guarantees
    return Thresholds(
        probability=rule.threshold,
        ignore_band=rule.ignore_band,
        smooth_mm=rule.smooth_mm,
        largest_component=rule.largest_component,
        volume_mm3=rule.volume_mm3,
        accept_from=rule.accept_from,
        review_from=rule.review_from,
        identity_from={name: least for name, least in _identity(rule).items() if least > 0},
        patients=0 if calibration is None else calibration.patients,
        note="no calibration: documented defaults" if calibration is None else calibration.note,
        warning="" if calibration is None else calibration.warning,
        remedy="" if calibration is None else calibration.remedy,
        guaranteed=calibration is not None and calibration.guaranteed,
        unguaranteed="nothing was calibrated" if calibration is None else calibration.unguaranteed,
        guarantees=tuple(dict.fromkeys(each.statement for each in stated)),
        ring=None if calibration is None or calibration.ring is None else _ring_row(calibration.ring),
        assumptions=tuple(dict.fromkeys(assumption for each in stated if each.feasible for assumption in each.assumptions)),
    )


def _ring_row(ring: Ring) -> RingRow:
    return RingRow(
        level=ring.outer.level + ring.inner.level,
        patients=ring.outer.patients,
        needed=max(ring.outer.needed, ring.inner.needed),
        outer=ring.outer.threshold if ring.feasible else None,
        inner=ring.inner.threshold if ring.feasible else None,
        unit=ring.unit,
        coverage=ring.coverage,
        statement=ring.statement,
    )


def _warned(thresholds: Thresholds) -> str:
    return f"{thresholds.warning}.{f' To do: {thresholds.remedy}.' if thresholds.remedy else ''}"


def _identity(rule: ClassRule) -> dict[str, float]:
    """Return the scores below which a mask is taken for another object; nothing is below 0."""
    return {"prior": rule.prior_from, "oof_dice": rule.student_from, "rca_dice": rule.reverse_from}


def _warnings(found: Found, population: Sequence[Mask]) -> tuple[str, ...]:
    """Return what a reader must know before any figure."""
    notes = []
    if not found.gold.total():
        notes.append(
            "No case has gold, so nothing here is accuracy: every figure is an agreement, and an error that all opinions share goes unseen."
        )
    elif not (found.gold["test"] or found.gold["archive"]):
        notes.append("Only calibration cases have gold. They set the thresholds, so every figure against gold here flatters.")
    if population and not any(mask.kept for mask in population):
        notes.append("Nothing was kept, so there is nothing to learn from: look at the reasons and at the rejected masks below.")
    if not population:
        notes.append("The teacher has drawn nothing that could be filtered.")
    return tuple(notes)


def partial_words(report: FilterReport) -> list[str]:
    """Return those of a report's warnings that say that figures, or labels, are of a part only."""
    return [f"{each.class_name}: {words}" for each in report.classes for words in _of_a_part(each)]


def _of_a_part(each: ClassAudit) -> list[str]:
    """Say where figures of kept masks are about a small part of the object, or of the cases that are learnt from."""
    said = []
    for row in each.parts:
        if row.judged is not None and row.judged < LEAST_JUDGED:
            said.append(
                f"in {row.part} cases the Dice of kept masks is about {row.judged:.0%} of what experts drew; the rest was not asked about or not believed, and is ignored. "
                "Prompt the object from end to end, or have masks carried on: prompts: {source: [weak, propagate]}."
            )
        if row.part == "archive" and row.ignored is not None and row.ignored >= MOSTLY:
            said.append(
                f"on average {row.ignored:.0%} of the voxels of an archive case with a kept mask are ignored: a student learns from the others alone."
            )
    return said


def _gold_notes(found: Found) -> tuple[str, ...]:
    """Return what experts left open."""
    partly, part = found.partly.total(), ", ".join(f"{count} {name}" for name, count in found.partly.items() if count)
    notes = (
        [f"In {partly} of these ({part}) a part was left open (255): figures against gold are about what they judged."] if partly else []
    )
    return (*notes, f"Gold of {found.left_open} more leaves everything open, and says nothing.") if found.left_open else tuple(notes)


def _notes(population: Sequence[Mask]) -> tuple[str, ...]:
    """Return how figures came about, where that depends on the archive."""
    if len({mask.patient for mask in population}) == len(population):
        return ()
    return ("Patients have several masks each: intervals draw patients, and groups are compared by the rates of their patients.",)
