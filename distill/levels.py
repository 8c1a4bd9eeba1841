"""Stored probabilities against gold, counted: how many voxels of each of the 256 levels are the object, and how many are not.

Everything that calibration asks of single voxels follows from these two rows of counts, case by case, so no volume has to be kept. Only
the box around what the teacher drew is counted, widened by 30 %: elsewhere there is easy background, which would make every figure good.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy import ndimage

from distill.errors import CalibrationError

LEVELS = 256
DRAWN = 5
"""Level (of 255) from which a voxel belongs to what the teacher drew at all: refinement's own 2 %."""
BINS = 15
"""Equal-width bins of calibration errors; 15 to 20 are usual."""
_CLIP = 0.5 / 255
"""A stored 0 or 255 means less, or more, than can be stored: half a level is the best guess, and keeps logits finite."""
_SURE = 1e-12
"""No probability is nearer to 0 or 1, so that one voxel on the wrong side costs much and not everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelCounts:
    """One case of one class."""

    counts: Integer[np.ndarray, "2 256"]
    """Row 0: voxels outside gold, row 1: inside; column: stored probability times 255."""
    missed: int = 0
    """Gold voxels outside the box, which no threshold on a probability can bring back."""

    @property
    def probability(self) -> Float[np.ndarray, " 256"]:
        """The probability that each column stands for."""
        return np.arange(LEVELS) / 255

    @property
    def voxels(self) -> int:
        """How many were counted."""
        return int(self.counts.sum())


def count_levels(
    levels: UInt8[np.ndarray, "z y x"],
    gold: Bool[np.ndarray, "z y x"],
    margin: float = 0.3,
    judged: Bool[np.ndarray, "z y x"] | None = None,
) -> LevelCounts:
    """Count the voxels in the box around everything of level 5 or more, widened on each side by ``margin`` of its length.

    Args:
        levels: Probability times 255.
        gold: The expert's mask on the same grid.
        margin: Share of the box's sides; a case where nothing was drawn is counted whole.
        judged: Where the expert said what is there; by default everywhere. No other voxel is counted.

    Raises:
        CalibrationError: if the two are not on one grid.
    """
    if levels.shape != gold.shape:
        message = (
            f"probabilities and gold must be on one grid, but have shapes {levels.shape} and {gold.shape}. Was one not resampled back?"
        )
        raise CalibrationError(message)
    box = _widened_box(levels >= DRAWN, margin)
    known = np.ones(gold[box].shape, bool) if judged is None else judged[box]
    rows = [np.bincount(levels[box][known & (gold[box] == inside)], minlength=LEVELS) for inside in (False, True)]
    return LevelCounts(counts=np.stack(rows), missed=int(gold.sum() - gold[box].sum()))


def _widened_box(drawn: Bool[np.ndarray, "z y x"], margin: float) -> tuple[slice, ...]:
    """Return the box around a mask with ``margin`` of each side's length added at both ends; everything if there is no mask."""
    found = ndimage.find_objects(drawn.astype(np.uint8))
    if not found or found[0] is None:
        return tuple(slice(None) for _ in drawn.shape)
    more = [math.ceil(margin * (side.stop - side.start)) for side in found[0]]
    return tuple(slice(max(0, side.start - extra), side.stop + extra) for side, extra in zip(found[0], more, strict=True))


def logits_of_levels() -> Float[np.ndarray, " 256"]:
    """Return the logit of each level, with 0 and 255 moved inwards by half a level."""
    clipped = np.clip(np.arange(LEVELS) / 255, _CLIP, 1 - _CLIP)
    return np.asarray(np.log(clipped / (1 - clipped)))


def tempered(temperature: float) -> Float[np.ndarray, " 256"]:
    """Return what each level means after its logit was divided by ``temperature``, which is above 0."""
    return np.clip(1 / (1 + np.exp(-logits_of_levels() / temperature)), _SURE, 1 - _SURE)


def log_loss(case: LevelCounts, probability: Float[np.ndarray, " 256"]) -> float:
    """Return the mean negative log-likelihood of gold in nats per voxel, where each level means ``probability`` (0 and 1 excluded)."""
    total = case.counts[1] @ np.log(probability) + case.counts[0] @ np.log1p(-probability)
    return float(-total / max(case.voxels, 1))


def brier_score(case: LevelCounts, probability: Float[np.ndarray, " 256"]) -> float:
    """Return the mean squared difference of probability and gold."""
    total = case.counts[1] @ (1 - probability) ** 2 + case.counts[0] @ probability**2
    return float(total / max(case.voxels, 1))


def calibration_errors(case: LevelCounts, probability: Float[np.ndarray, " 256"], bins: int = BINS) -> tuple[float, float]:
    """Return ECE and ACE: the mean gap between probability and frequency over bins, weighted by their voxels and over non-empty bins alike."""
    which = np.minimum((probability * bins).astype(np.int64), bins - 1)
    total = case.counts.sum(axis=0)
    size = np.bincount(which, weights=total, minlength=bins)
    said = np.bincount(which, weights=total * probability, minlength=bins)
    was = np.bincount(which, weights=case.counts[1], minlength=bins)
    gap, filled = np.abs(said - was), size > 0
    if not filled.any():
        return 0.0, 0.0
    return float(gap.sum() / size.sum()), float(np.mean(gap[filled] / size[filled]))
