"""Probabilities against frequencies, as the filter's report plots them: before the temperature of calibration, and after it."""

import numpy as np

from distill.audit_masks import AuditPlan, Found
from distill.audit_records import CalibrationPlot, Group, Reliability, ReliabilityBin
from distill.levels import BINS, LevelCounts, brier_score, calibration_errors, tempered

ABOUT: dict[Group, str] = {
    "test": "test cases, whose gold no step has seen",
    "archive": "archive cases that happen to have gold: hindsight, nothing was chosen by it",
    "calibration": "calibration cases: they set the thresholds, so their figures flatter",
}
"""What must be known of figures about each part."""


def calibration_plot(class_id: int, plan: AuditPlan, found: Found) -> CalibrationPlot | None:
    """Return probabilities against frequencies on gold that set no threshold, or else on the calibration cases."""
    groups: list[Group] = [group for group in ("test", "archive") if (class_id, group) in found.levels]
    if not groups and (class_id, "calibration") in found.levels:
        groups = ["calibration"]
    if not groups:
        return None
    counts = LevelCounts(counts=sum((found.levels[class_id, group] for group in groups), np.zeros((2, 256), np.int64)))
    masks, about = sum(found.drawn_gold[class_id, group] for group in groups), "; ".join(ABOUT[group] for group in groups)
    calibration = plan.calibrations.get(class_id)
    fit = None if calibration is None else calibration.temperature
    return CalibrationPlot(
        before=reliability(counts, np.arange(256) / 255, about, masks),
        after=None if fit is None else reliability(counts, tempered(fit.temperature), about, masks),
        temperature=None if fit is None else fit.temperature,
    )


def reliability(counts: LevelCounts, probability: np.ndarray, about: str, masks: int) -> Reliability:
    """Return frequencies over probabilities of counted voxels, bin by bin, and their mean gap.

    Args:
        counts: of one case, or summed over several.
        probability: what each of the 256 levels means.
        about: which cases these are, in words.
        masks: how many.
    """
    which = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    total = counts.counts.sum(axis=0)
    size = np.bincount(which, weights=total, minlength=BINS)
    said, was = (np.bincount(which, weights=each, minlength=BINS) for each in (total * probability, counts.counts[1]))
    bins = tuple(
        ReliabilityBin(said=float(said[n] / size[n]), was=float(was[n] / size[n]), share=float(size[n] / size.sum()))
        for n in range(BINS)
        if size[n]
    )
    return Reliability(
        about=about, masks=masks, ece=calibration_errors(counts, probability)[0], brier=brier_score(counts, probability), bins=bins
    )
