"""How much to believe: thresholds set on a few gold cases that nothing else uses.

With gold on the ``calibration`` part, the probability threshold and the smoothing of each class are those that bring the
teacher's masks nearest to gold (a systematic over- or under-segmentation is what a student would learn, random wobble averages
out), and the agreement from which a mask is accepted is the lowest at which the accepted calibration cases lose at most
``risk`` of Dice on average. Without gold the documented defaults stand, and the result says so.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np

from distill.errors import CalibrationError
from distill.quality import dice, volume_bias
from distill.refine import ClassRule, clean_mask, smooth_probability
from storage import Archive, ClassInfo, LabelSetNotFoundError

THRESHOLDS = tuple(round(0.25 + 0.025 * n, 3) for n in range(23))
SMOOTHING_MM = (0.0, 0.7, 1.0, 1.4, 2.0)
LEAST_PATIENTS = 3
"""With fewer gold patients a threshold would be fitted to their noise; the defaults stand instead."""


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


@dataclass(frozen=True, slots=True)
class _GoldCase:
    probability: np.ndarray
    gold: np.ndarray
    score: float
    spacing_zyx_mm: tuple[float, float, float]
    patient: str


def calibrate(
    archive: Archive,
    classes: Sequence[ClassInfo],
    *,
    source: str = "teacher/r1",
    rules: dict[int, ClassRule] | None = None,
    risk: float = 0.2,
    gold: str = "gold",
    smoothing_mm: Sequence[float] = SMOOTHING_MM,
) -> dict[int, ClassCalibration]:
    """Set each class's rule on the cases of the ``calibration`` part that carry gold and the source label set.

    Args:
        archive: the archive; only its ``calibration`` part is read.
        classes: which classes.
        source: the teacher's label set, with probabilities.
        rules: what the recipe fixed; thresholds and smoothing in them are starting points.
        risk: largest mean Dice loss (1 - Dice) among accepted masks.
        gold: name of the gold label set.
        smoothing_mm: lengths to choose from; ``(0.0,)`` leaves slices as they are.

    Raises:
        CalibrationError: if ``risk`` is not between 0 and 1.
    """
    if not 0 < risk < 1:
        message = f"risk must lie between 0 and 1 (the mean Dice loss tolerated in accepted masks), but is {risk}."
        raise CalibrationError(message)
    start = rules or {}
    return {
        info.id: _calibrate_class(_gold_cases(archive, info.id, source, gold), info.id, start.get(info.id, ClassRule()), risk, smoothing_mm)
        for info in classes
    }


def _gold_cases(archive: Archive, class_id: int, source: str, gold: str) -> list[_GoldCase]:
    found = []
    for record in archive.cases(part="calibration"):
        case = archive[record.id]
        try:
            labels, truth = case.labels(source), case.labels(gold)
        except LabelSetNotFoundError:
            continue
        order = [info.id for info in labels.history.classes]
        score = labels.scores.get(f"pairwise_dice/{class_id}")
        if class_id not in order or score is None or labels.probability is None:
            continue
        probability = np.asarray(labels.probability[order.index(class_id)], np.float32) / 255.0
        found.append(_GoldCase(probability, truth.read() == class_id, score, case.spacing_zyx_mm, record.patient))
    return [each for each in found if each.gold.any()]


def _calibrate_class(
    cases: list[_GoldCase], class_id: int, start: ClassRule, risk: float, smoothing_mm: Sequence[float]
) -> ClassCalibration:
    patients = len({case.patient for case in cases})
    if patients < LEAST_PATIENTS:
        note = f"{patients} gold patients in the calibration part, {LEAST_PATIENTS} needed: the default thresholds stand and are not calibrated"
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
    candidates = [replace(start, threshold=t, smooth_mm=s) for s, t in product(smoothing_mm, THRESHOLDS)]
    chosen = max(candidates, key=lambda rule: float(np.mean(_dices(cases, rule))))
    accept, note = _accept_threshold(cases, chosen, risk)
    rule = replace(chosen, accept_from=accept, review_from=min(start.review_from, accept))
    return ClassCalibration(
        class_id=class_id,
        rule=rule,
        patients=patients,
        dice_before=float(np.mean(_dices(cases, start))),
        dice_after=float(np.mean(_dices(cases, rule))),
        volume_bias_before=_bias(cases, start),
        volume_bias_after=_bias(cases, rule),
        note=note,
    )


def _mask(case: _GoldCase, rule: ClassRule) -> np.ndarray:
    return clean_mask(smooth_probability(case.probability, rule, case.spacing_zyx_mm) >= rule.threshold, rule)


def _dices(cases: list[_GoldCase], rule: ClassRule) -> np.ndarray:
    return np.array([dice(_mask(case, rule), case.gold) for case in cases])


def _bias(cases: list[_GoldCase], rule: ClassRule) -> float:
    return float(np.mean([volume_bias(_mask(case, rule), case.gold) for case in cases]))


def _accept_threshold(cases: list[_GoldCase], rule: ClassRule, risk: float) -> tuple[float, str]:
    """Return the lowest agreement at which accepted calibration cases lose at most ``risk`` Dice on average, and a note."""
    order = np.argsort([-case.score for case in cases], kind="stable")
    losses = 1 - _dices([cases[n] for n in order], rule)
    running = np.cumsum(losses) / np.arange(1, len(losses) + 1)
    within = np.flatnonzero(running <= risk)
    if not len(within):
        return (
            rule.accept_from,
            f"no agreement threshold keeps the mean Dice loss under {risk:.2f} on calibration (best {running.min():.2f}); the default {rule.accept_from} stands",
        )
    last = int(within[-1])
    if last == len(cases) - 1:
        # Every calibration case passes: accept down to a little below the worst score seen, and no further.
        return max(0.0, cases[order[last]].score - 0.05), "all calibration cases are within the risk"
    return cases[order[last]].score, f"{last + 1} of {len(cases)} calibration cases are within the risk"


def as_json(calibrations: dict[int, ClassCalibration]) -> dict[str, dict[str, object]]:
    """Return calibrations as JSON values, by class id."""
    return {str(class_id): asdict(each) for class_id, each in calibrations.items()}
