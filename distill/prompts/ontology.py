"""Which of many nameless masks is which class: each mask to the class that it looks like, each class at most so often, the rest to none.

A class expects of each trait a mean and a standard deviation: from a range that somebody wrote (the middle 95 %), or from experts' labels of a
few cases. A mask costs its mean squared deviation; being no class costs ``reject``. The cheapest assignment of all masks of a
slice at once is found (Kuhn 1955, as scipy solves it), so that a mask goes to its second-best class where another fits the best one better.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import expit

from distill.prompts.everything_options import TRAITS, Look

HALF_RANGE_SDS = 2.0
"""95 % of a normal distribution lie within two standard deviations."""
LEAST_SD = {
    "intensity": 0.0,
    "percentile": 4.0,
    "area": 0.15,
    "x": 0.02,
    "y": 0.02,
    "z": 0.02,
    "eccentricity": 0.08,
    "solidity": 0.03,
    "contrast": 0.1,
}
"""How much a trait varies at least from patient to patient, whatever few exemplars say: about what masks of one organ on neighbouring slices differ."""
LEAST_RELATIVE_SD = 0.05
"""The same of intensities, as a share of the mean."""
FAR = 36.0
"""A squared deviation counts at most so much: beyond six standard deviations, further is not more wrong."""
_X = TRAITS.index("x")
_FORBIDDEN = 1e6
SAME = 0.5
"""Of two masks that share more of the smaller one than this, both show one object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What a class looks like, as numbers."""

    mean: np.ndarray
    """``(T,)`` in the order of ``TRAITS``; NaN where nothing is expected."""
    sd: np.ndarray
    """``(T,)`` above zero, or NaN."""
    side: Literal["left", "right"] | None = None
    most: int = 1

    def costs(self, traits: np.ndarray) -> np.ndarray:
        """Return ``(M,)``: the mean squared deviation of each mask of ``traits (M, T)``; forbidden ones cost more than anything."""
        squared = np.minimum(((traits - self.mean) / self.sd) ** 2, FAR)
        known = np.isfinite(self.mean)
        costs = squared[:, known].mean(axis=1) if known.any() else np.zeros(len(traits))
        if self.side is not None:
            other = traits[:, _X] < 0.5 if self.side == "left" else traits[:, _X] > 0.5
            costs = np.where(other, _FORBIDDEN, costs)
        return np.asarray(costs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A mask that was given a class."""

    mask: int
    class_id: int
    confidence: float
    """Logistic of the log-likelihood's margin to the second best: another class or none for this mask, another mask for this class."""


def expect(look: Look | None, seen: np.ndarray) -> Expectation | None:
    """Return what a class is expected to look like: what was said of each trait, else what was seen of it; None if neither says anything.

    Args:
        look: the recipe's.
        seen: ``(N, T)`` traits of gold masks; without any, ``N`` is 0.
    """
    look = look or Look()
    mean, sd = _fitted(seen)
    for n, name in enumerate(TRAITS):
        bounds = getattr(look, name)
        if bounds is not None:
            low, high = np.log(bounds) if name == "area" else bounds
            mean[n], sd[n] = (low + high) / 2, (high - low) / 2 / HALF_RANGE_SDS
    if not np.isfinite(mean).any() and look.side is None:
        return None
    return Expectation(mean=mean, sd=sd, side=look.side, most=look.most)


def _fitted(seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of each trait, the latter wide enough for a mask that was not seen."""
    if not len(seen):
        return np.full(len(TRAITS), np.nan), np.full(len(TRAITS), np.nan)
    mean = seen.mean(axis=0)
    least = np.array([LEAST_SD[name] for name in TRAITS])
    intensity = TRAITS.index("intensity")
    least[intensity] = max(LEAST_RELATIVE_SD * abs(mean[intensity]), 1e-6)
    spread = seen.std(axis=0, ddof=1) if len(seen) > 1 else 2 * least
    return mean, np.maximum(spread * np.sqrt(1 + 1 / len(seen)), least)  # of a new value around the mean of so many


def assign(
    traits: np.ndarray, overlap: np.ndarray, expected: Mapping[int, Expectation], *, reject: float, unsure: np.ndarray | None = None
) -> list[Choice]:
    """Give each mask of a slice a class or none.

    Two masks of which one covers more than half of the other are one object: the cheaper one is taken, and the others are shared out anew.

    Args:
        traits: ``(M, T)``.
        overlap: ``(M, M)`` shared pixels over those of the smaller mask.
        expected: by class id.
        reject: what being no class costs.
        unsure: ``(M,)`` what taking each mask costs besides, whatever the class.
    """
    if not len(traits) or not expected:
        return []
    ids = list(expected)
    costs = np.stack([expected[key].costs(traits) for key in ids], axis=1) + (0.0 if unsure is None else unsure[:, None])
    known = np.array([max(1, int(np.isfinite(expected[key].mean).sum())) for key in ids])
    free = costs.copy()
    while True:
        taken = _cheapest(free, [expected[key].most for key in ids], reject)
        twins = _covered(taken, costs, overlap)
        if not twins:
            break
        free[twins] = _FORBIDDEN
    likelihood = -0.5 * known * np.minimum(costs, FAR)
    sure = _confidences(likelihood, taken, -0.5 * known * reject, overlap)
    return [Choice(mask=mask, class_id=ids[column], confidence=each) for (mask, column), each in zip(taken, sure, strict=True)]


def _cheapest(costs: np.ndarray, most: Sequence[int], reject: float) -> list[tuple[int, int]]:
    """Return (mask, column) of the cheapest assignment in which every mask may also be none."""
    count = len(costs)
    slots = np.repeat(np.arange(costs.shape[1]), np.minimum(most, count))
    table = np.concatenate([costs[:, slots], np.full((count, count), reject)], axis=1)
    rows, columns = linear_sum_assignment(table)
    return [(int(row), int(slots[column])) for row, column in zip(rows, columns, strict=True) if column < len(slots)]


def _covered(taken: Sequence[tuple[int, int]], costs: np.ndarray, overlap: np.ndarray) -> list[int]:
    """Return the masks that show the same object as a cheaper one."""
    kept: list[int] = []
    twins: list[int] = []
    for mask, _ in sorted(taken, key=lambda pair: costs[pair[0], pair[1]]):
        (twins if any(overlap[mask, other] > SAME for other in kept) else kept).append(mask)
    return twins


def _confidences(likelihood: np.ndarray, taken: Sequence[tuple[int, int]], none: np.ndarray, overlap: np.ndarray) -> list[float]:
    """Return how sure each taken (mask, class column) is.

    Args:
        likelihood: log-likelihood ``(M, K)``.
        taken: pairs.
        none: log-likelihood ``(K,)`` of being no class.
        overlap: ``(M, M)``; masks of the same object are no rivals.
    """
    sure = []
    for mask, column in taken:
        own = {each for each, key in taken if key == column}
        rivals = [n for n in range(len(likelihood)) if n not in own and overlap[mask, n] <= SAME]
        others = [none[column], *np.delete(likelihood[mask], column), *likelihood[rivals, column]]
        sure.append(float(expit(likelihood[mask, column] - max(others))))
    return sure


def shared(masks: np.ndarray) -> np.ndarray:
    """Return ``(M, M)``: the pixels that two of ``masks (M, H, W)`` bool share, over those of the smaller one."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    areas = flat.sum(axis=1)
    share: np.ndarray = (flat @ flat.T) / np.maximum(np.minimum(areas[:, None], areas[None]), 1)
    return share
