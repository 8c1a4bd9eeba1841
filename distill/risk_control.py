"""What conformal risk control bounds in masks: Dice lost in accepted ones, wrong voxels outside a band, and what is missed.

Each function takes what was measured on calibration patients and returns a threshold with its sentence (``distill.conformal``).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Integer

from distill.conformal import (
    Guarantee,
    Kind,
    check_numbers,
    control_risk,
    enough_patients,
    lowest_level,
    means_by_patient,
    monotonised,
    needed_patients,
    promise,
    refusal,
    too_few,
)
from distill.errors import CalibrationError
from distill.levels import DRAWN, LEVELS, LevelCounts

USEFUL = 0.5
"""Share of masks that a threshold must accept to be worth advice about how to reach it."""
_ROUNDING = 1e-9
"""So that a voxel exactly at the edge of the band is outside it."""


def mask_guarantee(
    scores: Sequence[float],
    dices: Sequence[float],
    patients: Sequence[str],
    *,
    level: float,
    score_name: str = "pairwise_dice",
    subject: str = "masks",
) -> Guarantee:
    """Find the least score from which masks may be accepted, so that accepted masks lose at most ``level`` Dice per patient on average.

    A patient's loss is the mean over all their masks of 1 - Dice where the mask is accepted, and of 0 where it is not. It falls as the
    threshold rises. Divided by the share accepted it is the mean loss among the accepted; that one is an estimate, not a guarantee.

    Args:
        scores: Of each mask; high is good.
        dices: Of each mask with gold; NaN (nothing drawn where nothing is) loses nothing.
        patients: Of each mask.
        level: Tolerated mean loss.
        score_name: For the statement.
        subject: For the statement: which masks, such as ``masks cut at 0.50``.

    Raises:
        CalibrationError: if the lists do not fit, a score is NaN or a Dice is not between 0 and 1.
    """
    value, losses = np.asarray(scores, dtype=float), _losses(scores, dices, patients)
    thresholds = np.unique(value)
    table = means_by_patient(losses[:, None] * (value[:, None] >= thresholds), patients)
    count = len(table)
    # The calibration scores are not fixed beforehand, but the smallest that holds is above the infimum over all numbers, and losses fall.
    found = control_risk(table, thresholds.tolist(), level)
    if found is None:
        refused = _refused("mask", level, count, f"no threshold on {score_name} bounds the Dice lost in accepted masks by {level:.2f}")
        useful = [(value >= cut).mean() >= USEFUL for cut in thresholds]
        return (
            replace(refused, would_do=enough_patients(table[:, useful], level), would_hold_at=lowest_level(table[:, useful]))
            if count
            else refused
        )
    accepted = value >= found
    statement = (
        f"Over new patients and draws of {count} calibration patients, the expected Dice lost by {subject} accepted from {score_name} {found:.3f} on "
        f"(mean over all masks of a patient of 1 - Dice if accepted, 0 if not) is at most {level:.2f}. "
        f"Estimate, not guaranteed: {accepted.mean():.0%} are accepted, and those lose {losses[accepted].mean():.2f} on average."
    )
    lost = float(table[:, thresholds == found].mean())
    return promise("mask", level, count, statement, threshold=found, found=lost, kept=float(accepted.mean()))


def _refused(kind: Kind, level: float, patients: int, why: str) -> Guarantee:
    """Say that there are too few patients or, where there are enough, why they do not help."""
    needed = needed_patients(level)
    return refusal(kind, level, patients, f"with {patients} patients, {why}" if patients >= needed else too_few(level, needed, patients))


def _losses(scores: Sequence[float], dices: Sequence[float], patients: Sequence[str]) -> np.ndarray:
    check_numbers(scores, "score")
    if not len(scores) == len(dices) == len(patients):
        message = f"each mask needs a score, a Dice and a patient, but there are {len(scores)}, {len(dices)} and {len(patients)}."
        raise CalibrationError(message)
    return np.asarray(np.nan_to_num(1 - np.asarray(dices, dtype=float), nan=0.0))


def voxel_guarantee(
    cases: Sequence[LevelCounts], patients: Sequence[str], *, level: float, threshold: float = 0.5, subject: str = "masks"
) -> Guarantee:
    """Find the half width of a band around ``threshold`` so that of the voxels outside it at most ``level`` are wrong on average.

    A patient's loss is the mean over their cases of the share of wrong voxels among the accepted ones (probability at least the half
    width away from the threshold). Only voxels of 2 % or more are counted, since background that nothing was drawn on would make
    any share small; what of the object lies there is for ``missed_guarantee``. The share can rise as fewer are accepted, so its largest value at this or any greater half width is bounded
    instead, which is more.

    Args:
        cases: Counts of the box around what was drawn.
        patients: Of each case.
        level: Tolerated share of wrong voxels.
        threshold: Probability from which a voxel is the object.
        subject: For the statement.
    """
    distance = np.abs(np.arange(LEVELS) / 255 - threshold)
    widths = np.arange(int(255 * distance.max()) + 1) / 255
    accepted = (distance >= widths[:, None] - _ROUNDING).astype(float)  # counts are exact in float64, and products of floats are fast
    rows = [_wrong_and_accepted(case, accepted, threshold) for case in cases]
    wrong = means_by_patient(_table([row[0] for row in rows], widths), patients)
    kept = means_by_patient(_table([row[1] for row in rows], widths), patients)
    count = len(wrong)
    found = control_risk(monotonised(wrong), widths.tolist(), level)
    if found is None or not kept[:, widths == found].any():
        return _refused("voxel", level, count, f"no half width of the band bounds the share of wrong voxels by {level:.2f}")
    share = float(kept[:, widths == found].mean())
    statement = (
        f"Over new patients and draws of {count} calibration patients, the expected share of wrong voxels among those of {subject} whose probability "
        f"is at least {found:.3f} away from {threshold:.2f} (mean over a patient's cases; voxels below a probability of 2 % are not counted) "
        f"is at most {level:.2f}. {share:.0%} of the calibration voxels are that far away."
    )
    return promise("voxel", level, count, statement, threshold=found, found=float(wrong[:, widths == found].mean()), kept=share)


def missed_guarantee(cases: Sequence[LevelCounts], patients: Sequence[str], *, level: float, subject: str = "masks") -> Guarantee:
    """Find the highest probability threshold at which at most ``level`` of the object is missed on average (false-negative control).

    A patient's loss is the mean over their cases of the share of gold voxels below the threshold; cases without gold lose nothing.

    Args:
        cases: Counts of the box around what was drawn.
        patients: Of each case.
        level: Tolerated share of the object.
        subject: For the statement.
    """
    thresholds = np.arange(LEVELS)[::-1] / 255
    objects = [int(case.counts[1].sum()) + case.missed for case in cases]
    covered = [np.cumsum(case.counts[1][::-1]) for case in cases]
    rows = [1 - inside / size if size else np.zeros(LEVELS) for inside, size in zip(covered, objects, strict=True)]
    losses = means_by_patient(_table(rows, thresholds), patients)
    count = len(losses)
    found = control_risk(losses, thresholds.tolist(), level)
    if found is None:
        return _refused("missed", level, count, f"even the widest mask cannot be said to miss at most {level:.2f} of the object")
    statement = (
        f"Over new patients and draws of {count} calibration patients, the expected share of the object that {subject} cut at a probability of {found:.3f} miss "
        f"(mean over a patient's cases) is at most {level:.2f}."
    )
    return promise("missed", level, count, statement, threshold=found, found=float(losses[:, thresholds == found].mean()))


def doubtful_counts(case: LevelCounts) -> Integer[np.ndarray, "2 256"]:
    """Return the counts of the voxels on which something was drawn."""
    counts = case.counts.copy()
    counts[:, :DRAWN] = 0
    return counts


def _wrong_and_accepted(case: LevelCounts, accepted: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the wrong share among accepted voxels, and the accepted share, for each row of ``accepted``."""
    counts = doubtful_counts(case)
    wrong = np.where(np.arange(LEVELS) / 255 >= threshold, counts[0], counts[1])
    taken = accepted @ counts.sum(axis=0)
    return (accepted @ wrong) / np.maximum(taken, 1), taken / max(int(counts.sum()), 1)


def _table(rows: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    return np.stack(rows) if len(rows) else np.zeros((0, len(thresholds)))
