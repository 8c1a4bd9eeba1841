"""Guarantees from a few gold patients, with the sentence that says exactly what is guaranteed.

Two tools. *Split-conformal quantiles* (Vovk et al. 2005) bound how far a mask has to be grown or shrunk to be trusted (Mossina and
Friedrich 2025 for the growing; here in mm). *Conformal risk control* (Angelopoulos et al. 2022, "Conformal Risk Control") bounds the
mean of a loss that falls as a threshold rises. Both count patients, never slices or voxels, and both hold on average over draws of the
calibration patients. Where there are too few of them, or no threshold holds the level, the answer says so and carries no threshold.
``distill.risk_control`` and ``distill.rings`` say what is bounded in masks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from distill.errors import CalibrationError

Kind = Literal["outer-ring", "inner-ring", "mask", "voxel", "missed"]
ASSUMPTIONS = (
    "calibration patients and new patients are exchangeable (same population, scanner and protocol); void under any shift between them",
    "the same pipeline (prompts, teacher, ensemble, smoothing, threshold) for both",
    "nothing was trained, tuned or chosen on the calibration patients",
    "it holds on average over draws of the calibration patients, not for each draw; calibrate again after each round of relabelling",
)
"""What every guarantee here rests on; printed beside it."""
_ROUNDING = 1e-9
"""19 x 0.05 is not quite 0.95 in floating point, and a guarantee must not hang on that."""
_NO_ROOM = 1e-3
"""Between the mean loss and the level: nearer to it, it would take a thousand patients and more, which is no advice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """One statement about patients not seen yet, or why it cannot be made."""

    kind: Kind
    level: float
    """What the bounded quantity may be at most: a share of patients (rings) or a mean loss."""
    feasible: bool
    statement: str
    """What is bounded, over what it is averaged, and at which level; or, where it is not feasible, why."""
    patients: int
    """Gold patients there are ..."""
    needed: int
    """... and how many it takes for any statement at this level."""
    threshold: float | None = None
    """What to set: radius, least score or half width of a band; None where not feasible."""
    found: float | None = None
    """The bounded quantity on the calibration patients themselves, for comparison; not guaranteed."""
    kept: float | None = None
    """Share of the calibration masks or voxels that the threshold keeps, where it selects."""
    would_do: int | None = None
    """Where it is not feasible: how many patients it would take to keep half of the masks, if further ones were like these; None where no number would do, or it
    was not asked."""
    would_hold_at: float | None = None
    """Where it is not feasible: the lowest level that these patients would stand for with half of the masks kept; None where it was not asked."""
    assumptions: tuple[str, ...] = ASSUMPTIONS


def needed_patients(level: float, bound: float = 1.0) -> int:
    """Return how many patients it takes before a level can be stated at all: the smallest n with ``bound / (n + 1) <= level``.

    Args:
        level: Above 0 and below ``bound``.
        bound: Largest possible loss of one patient; 1 for quantiles, where it is the share of patients outside.

    Raises:
        CalibrationError: if the level is not in that range.
    """
    if not 0 < level < bound:
        message = f"a level must lie between 0 and {bound:g}, but is {level}. It is what may go wrong at most, such as 0.1."
        raise CalibrationError(message)
    return max(1, math.ceil(bound / level - 1 - _ROUNDING))


def conformal_quantile(scores: Sequence[float], level: float) -> float:
    """Return the value that a new patient's score exceeds with a probability of at most ``level``: the ceil((n+1)(1-level))-th smallest.

    Args:
        scores: One per patient, high is bad; infinity is allowed.
        level: Share of patients that may lie above.

    Raises:
        CalibrationError: if there are too few patients for the level; both numbers are named.
    """
    check_numbers(scores, "score")
    needed, found = needed_patients(level), len(scores)
    if found < needed:
        raise CalibrationError(too_few(level, needed, found))
    rank = math.ceil((found + 1) * (1 - level) - _ROUNDING)
    return float(np.sort(np.asarray(scores, dtype=float))[rank - 1])


def too_few(level: float, needed: int, found: int) -> str:
    """Say how many patients a level takes, and how many there are."""
    return f"{needed} patients needed for a level of {level:.2f}, {found} found"


def control_risk(losses: Float[np.ndarray, "n k"], thresholds: Sequence[float], level: float, bound: float = 1.0) -> float | None:
    """Return the first threshold at which the mean loss of a new patient is at most ``level`` in expectation; None if there is none.

    Args:
        losses: Loss of each of ``n`` patients at each of ``k`` thresholds, 0 to ``bound``, falling (or equal) from left to right.
        thresholds: In the order of the columns. They must not depend on the losses.
        level: The mean loss that is tolerated.
        bound: Largest possible loss.

    Raises:
        CalibrationError: if a loss rises along its row, leaves its range, or the tables do not fit.
    """
    needed_patients(level, bound)
    if losses.ndim != 2 or losses.shape[1] != len(thresholds):
        message = f"losses must be a table of patients x {len(thresholds)} thresholds, but have the shape {losses.shape}."
        raise CalibrationError(message)
    if losses.size and (losses.min() < 0 or losses.max() > bound or (np.diff(losses, axis=1) > _ROUNDING).any()):
        message = f"losses must lie between 0 and {bound:g} and fall along the thresholds; make them monotone first (see monotonised)."
        raise CalibrationError(message)
    within = (losses.sum(axis=0) + bound) / (len(losses) + 1) <= level + _ROUNDING
    return float(thresholds[int(np.argmax(within))]) if within.any() else None


def enough_patients(losses: Float[np.ndarray, "n k"], level: float, bound: float = 1.0) -> int | None:
    """Return how many patients ``control_risk`` would take, if further ones lost what these lose; None if no number would do.

    Args:
        losses: Of at least one patient, as ``control_risk`` takes them.
        level: The mean loss that is tolerated.
        bound: Largest possible loss.
    """
    least = float(losses.mean(axis=0).min())  # (n least + bound) / (n + 1) <= level, solved for n
    return math.ceil((bound - level) / (level - least) - _ROUNDING) if level - least > _NO_ROOM else None


def lowest_level(losses: Float[np.ndarray, "n k"], bound: float = 1.0) -> float:
    """Return the lowest level at which ``control_risk`` would find a threshold; arguments as for ``enough_patients``."""
    return (float(losses.sum(axis=0).min()) + bound) / (len(losses) + 1)


def monotonised(losses: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return, at each threshold, the largest loss at it or any later one: conservative, and falling from left to right."""
    return np.asarray(np.maximum.accumulate(losses[:, ::-1], axis=1)[:, ::-1])


def means_by_patient(rows: Float[np.ndarray, "m k"], patients: Sequence[str]) -> Float[np.ndarray, "n k"]:
    """Return the mean row of each patient, in the order of their names; each patient then counts once, however many masks there are."""
    if len(rows) != len(patients):
        message = f"each row needs its patient, but there are {len(rows)} rows and {len(patients)} patients."
        raise CalibrationError(message)
    names, which = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, which, rows)
    return np.asarray(sums / np.bincount(which, minlength=len(names))[:, None]) if len(names) else sums


def promise(
    kind: Kind, level: float, patients: int, statement: str, *, threshold: float, found: float, kept: float | None = None
) -> Guarantee:
    """Return the answer that a statement can be made of new patients."""
    return Guarantee(
        kind=kind,
        level=level,
        feasible=True,
        statement=statement,
        patients=patients,
        needed=needed_patients(level),
        threshold=threshold,
        found=found,
        kept=kept,
    )


def refusal(kind: Kind, level: float, patients: int, why: str) -> Guarantee:
    """Return the answer that nothing can be guaranteed; a level that too few patients stand for is no ground for accepting anything."""
    statement, needed = f"No guarantee: {why}.", needed_patients(level)
    return Guarantee(kind=kind, level=level, feasible=False, statement=statement, patients=patients, needed=needed)


def check_numbers(values: Sequence[float], what: str) -> None:
    """Refuse values that no order can be made of.

    Raises:
        CalibrationError: if one is NaN.
    """
    if np.isnan(np.asarray(values, dtype=float)).any():
        message = f"a {what} is NaN, so its patient cannot be ranked. Leave out the patient, for new patients too, or mend the {what}."
        raise CalibrationError(message)
