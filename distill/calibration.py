"""How much to believe: thresholds set on a few gold cases that nothing else uses.

With gold on the ``calibration`` part, the probability threshold and the smoothing of each class are those that bring the
teacher's masks nearest to gold (a systematic over- or under-segmentation is what a student would learn, random wobble averages
out), and the agreement from which a mask is accepted is the lowest at which the accepted calibration cases lose at most
``risk`` of Dice on average. That average is of the calibration cases; where a guarantee for new patients is asked for
(``distill.conformal``), the same patients cannot also choose how masks are cut, and conformal risk control sets the agreement.
A temperature, a predicted Dice and the guarantees at the recipe's own cut are written down beside. Without gold the documented
defaults stand, and the result says so: every figure is then agreement, not accuracy.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Literal

import numpy as np

from distill.cleaning import ClassRule
from distill.conformal import Guarantee
from distill.errors import CalibrationError
from distill.evidence import Evidence, GoldCase, cut_mask, evidence_of, gold_cases
from distill.intensity import IntensitySpec
from distill.quality import dice, volume_bias
from distill.reliability import QualityFit, TemperatureFit, fit_quality, fit_temperature
from distill.rings import Ring, ring
from distill.risk_control import mask_guarantee, missed_guarantee, voxel_guarantee
from storage import Archive, ClassInfo

CALIBRATION = "2"
"""Raised whenever calibration finds other figures or writes down more of them."""
THRESHOLDS = tuple(round(0.25 + 0.025 * n, 3) for n in range(23))
SMOOTHING_MM = (0.0, 0.7, 1.0, 1.4, 2.0)
LEAST_PATIENTS = 3
"""With fewer gold patients a threshold would be fitted to their noise; the defaults stand instead."""
RING_LEVEL = 0.10
"""Share of new patients for whom one of the two sides of the ring may fail; takes 19 patients."""
Wanted = Literal["none", "mask"]
"""Which guarantee sets the rules: none, or the one on the Dice lost in accepted masks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCalibration:
    """What was set for one class, from how much, and what it gained."""

    class_id: int
    rule: ClassRule
    patients: int
    """Gold patients used; 0 means the defaults stand."""
    dice_before: float
    """Mean Dice of the teacher's masks at the default rule, over the calibration cases."""
    dice_after: float
    """The same at the chosen rule; optimistic, as the rule was chosen on these cases."""
    volume_bias_before: float
    """Mean of (mask volume - gold volume) / gold volume at the default rule."""
    volume_bias_after: float
    note: str
    """What a reader of the report must know: defaults kept, risk out of reach, ..."""
    temperature: TemperatureFit | None = None
    quality: QualityFit | None = None
    """From scores to a predicted Dice at the rule."""
    guarantees: tuple[Guarantee, ...] = ()
    """On accepted masks, on voxels outside the band, on what is missed; each says which masks it is about, or why there is none."""
    ring: Ring | None = None


def calibrate(  # noqa: PLR0913 - keyword-only, one for each thing a recipe may say about it
    archive: Archive,
    classes: Sequence[ClassInfo],
    *,
    source: str = "teacher/r1",
    rules: dict[int, ClassRule] | None = None,
    risk: float = 0.2,
    gold: str = "gold",
    smoothing_mm: Sequence[float] = SMOOTHING_MM,
    guarantee: Wanted = "none",
    intensity: IntensitySpec | None = None,
) -> dict[int, ClassCalibration]:
    """Set each class's rule on the cases of the ``calibration`` part that carry gold and the source label set.

    Args:
        archive: the archive; only its ``calibration`` part is read.
        classes: which classes.
        source: the teacher's label set, with probabilities.
        rules: what the recipe fixed; thresholds and smoothing in them are starting points.
        risk: largest mean Dice loss (1 - Dice) among accepted masks; with a guarantee, the level of it.
        gold: name of the gold label set.
        smoothing_mm: lengths to choose from; ``(0.0,)`` leaves slices as they are.
        guarantee: ``mask`` leaves threshold and smoothing as they are and sets ``accept_from`` by conformal risk control, where there
            are patients enough and a threshold that holds the level; otherwise as for ``none``, and the note says that nothing is guaranteed.
        intensity: grey values by which a rule mends edges.

    Raises:
        CalibrationError: if ``risk`` is not between 0 and 1.
    """
    if not 0 < risk < 1:
        message = f"risk must lie between 0 and 1 (the mean Dice loss tolerated in accepted masks), but is {risk}."
        raise CalibrationError(message)
    found = {}
    for info in classes:
        rule = (rules or {}).get(info.id, ClassRule())
        looks = (intensity or IntensitySpec()) if rule.rectify_edges else None
        cases = gold_cases(archive, info.id, source=source, gold=gold, intensity=looks)
        found[info.id] = _calibrate_class(cases, info.id, rule, risk, smoothing_mm, guarantee)
    return found


def _calibrate_class(
    judged: list[GoldCase], class_id: int, start: ClassRule, risk: float, smoothing_mm: Sequence[float], wanted: Wanted
) -> ClassCalibration:
    cases = [case for case in judged if case.gold.any()]
    patients = len({case.patient for case in cases})
    if patients < LEAST_PATIENTS:
        return _uncalibrated(class_id, start, patients)
    evidence = [evidence_of(case, start) for case in judged]
    unit: Literal["mm", "px"] = "mm" if all(case.spacing_known for case in judged) else "px"
    guarantees = guarantees_of(evidence, start, risk)
    promised = guarantees[0] if wanted == "mask" and guarantees[0].feasible else None
    rule, note = _fixed(start, promised) if promised is not None else _tuned(cases, start, risk, smoothing_mm)
    return ClassCalibration(
        class_id=class_id,
        rule=rule,
        patients=patients,
        dice_before=float(np.mean(_dices(cases, start))),
        dice_after=float(np.mean(_dices(cases, rule))),
        volume_bias_before=_bias(cases, start),
        volume_bias_after=_bias(cases, rule),
        note=note if promised is not None else f"{note}; {_why_none(guarantees[0], wanted)}",
        temperature=fit_temperature([each.counts for each in evidence], [each.patient for each in evidence]),
        quality=_quality(cases, rule),
        guarantees=guarantees,
        ring=_ring(evidence, start, unit),
    )


def _uncalibrated(class_id: int, start: ClassRule, patients: int) -> ClassCalibration:
    note = (
        f"{patients} gold patients in the calibration part, {LEAST_PATIENTS} needed: the default thresholds stand and are not calibrated; "
        "figures are agreement, not accuracy"
    )
    return ClassCalibration(
        class_id=class_id,
        rule=start,
        patients=0,
        dice_before=np.nan,
        dice_after=np.nan,
        volume_bias_before=np.nan,
        volume_bias_after=np.nan,
        note=note,
    )


def guarantees_of(evidence: Sequence[Evidence], rule: ClassRule, level: float) -> tuple[Guarantee, Guarantee, Guarantee]:
    """Return what can be guaranteed of masks cut by ``rule``: of accepted masks, of voxels outside a band, of what is missed."""
    patients, cut = [each.patient for each in evidence], cut_in_words(rule)
    scores, counts = [each.scores["pairwise_dice"] for each in evidence], [each.counts for each in evidence]
    return (
        mask_guarantee(scores, [each.dice for each in evidence], patients, level=level, subject=f"masks ({cut})"),
        voxel_guarantee(counts, patients, level=level, threshold=rule.threshold, subject=f"drawings ({cut})"),
        missed_guarantee(counts, patients, level=level, subject=f"drawings ({_smoothing(rule)})"),
    )


def _ring(evidence: Sequence[Evidence], rule: ClassRule, unit: Literal["mm", "px"]) -> Ring:
    outer, inner = [each.outer_mm for each in evidence], [each.inner_mm for each in evidence]
    subject = f"mask ({cut_in_words(rule)})"
    return ring(outer, inner, [each.patient for each in evidence], level=RING_LEVEL, unit=unit, subject=subject)


def cut_in_words(rule: ClassRule) -> str:
    """Say how a mask is cut, since a guarantee is about one cut and no other."""
    cleaned = (", largest component" if rule.largest_component else "") + (", edges by intensity" if rule.rectify_edges else "")
    return f"cut at {rule.threshold:.2f}, {_smoothing(rule)}{cleaned}"


def _smoothing(rule: ClassRule) -> str:
    return f"smoothed by {rule.smooth_mm:g} mm" if rule.smooth_mm > 0 else "not smoothed"


def _fixed(start: ClassRule, promised: Guarantee) -> tuple[ClassRule, str]:
    """Return the rule with the guaranteed threshold, and the note that says what is guaranteed."""
    accept = start.accept_from if promised.threshold is None else promised.threshold
    note = (
        f"guaranteed for new patients like the {promised.patients} of calibration: masks accepted from an agreement of {accept:.3f} on lose at most "
        f"{promised.level:.2f} of Dice per patient on average ({promised.kept or 0:.0%} of the calibration masks are accepted)"
    )
    return replace(start, accept_from=accept, review_from=min(start.review_from, accept)), note


def _why_none(guarantee: Guarantee, wanted: Wanted) -> str:
    """Say why nothing is guaranteed: there are too few patients, no threshold holds the level, or nobody asked."""
    if guarantee.feasible and wanted == "none":
        return "nothing is guaranteed for new patients, as the same patients chose the thresholds (refine: {guarantee: mask})"
    return guarantee.statement[:1].lower() + guarantee.statement[1:].rstrip(".")


def _quality(cases: Sequence[GoldCase], rule: ClassRule) -> QualityFit:
    return fit_quality([case.scores for case in cases], _dices(cases, rule).tolist(), [case.patient for case in cases])


def _tuned(cases: Sequence[GoldCase], start: ClassRule, risk: float, smoothing_mm: Sequence[float]) -> tuple[ClassRule, str]:
    """Return the cut nearest to gold, with the agreement that the calibration cases themselves bear out, and a note."""
    candidates = [replace(start, threshold=t, smooth_mm=s) for s, t in product(smoothing_mm, THRESHOLDS)]
    chosen = max(candidates, key=lambda rule: float(np.mean(_dices(cases, rule))))
    accept, note = _accept_threshold(cases, chosen, risk)
    return replace(chosen, accept_from=accept, review_from=min(start.review_from, accept)), note


def _dices(cases: Sequence[GoldCase], rule: ClassRule) -> np.ndarray:
    return np.array([dice(cut_mask(case, rule), case.gold) for case in cases])


def _bias(cases: Sequence[GoldCase], rule: ClassRule) -> float:
    return float(np.mean([volume_bias(cut_mask(case, rule), case.gold) for case in cases]))


def _accept_threshold(cases: Sequence[GoldCase], rule: ClassRule, risk: float) -> tuple[float, str]:
    """Return the lowest agreement at which accepted calibration cases lose at most ``risk`` Dice on average, and a note."""
    agreement = [case.scores["pairwise_dice"] for case in cases]
    order = np.argsort([-each for each in agreement], kind="stable")
    losses = 1 - _dices([cases[n] for n in order], rule)
    running = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    # Cases of one and the same agreement are accepted together or not at all.
    ends = np.append(np.diff(np.asarray(agreement)[order]) != 0, True)
    within = np.flatnonzero((running <= risk) & ends)
    if not len(within):
        return (
            rule.accept_from,
            f"no agreement threshold keeps the mean Dice loss under {risk:.2f} on calibration (best {running[ends].min():.2f}); the default {rule.accept_from} stands",
        )
    last = int(within[-1])
    if last == len(cases) - 1:
        # Every calibration case passes: accept down to a little below the worst score seen, and no further.
        return max(0.0, agreement[order[last]] - 0.05), "all calibration cases are within the risk"
    return agreement[order[last]], f"{last + 1} of {len(cases)} calibration cases are within the risk"


def as_json(calibrations: dict[int, ClassCalibration]) -> dict[str, dict[str, object]]:
    """Return calibrations as JSON values, by class id."""
    return {str(class_id): asdict(each) for class_id, each in calibrations.items()}
