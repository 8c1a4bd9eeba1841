"""STAPLE: how far each of several teachers can be believed, and what they say together (Warfield, Zou and Wells 2004).

The truth is hidden; each teacher calls a true voxel with its sensitivity and a false one with its specificity. Expectation
maximisation goes back and forth between how likely each voxel is and how good each teacher is. It takes teachers to err independently, which
copies of one teacher do not; so it stands between teachers only, and within one the plain mean.

Voxels with the same votes and the same prior have the same answer, so the work is done per kind of voxel: as exact, and it costs nothing.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

FIRST_GUESS = 0.99
"""Sensitivity and specificity to begin with; near one says that teachers are mostly right, which tells the class from its absence."""
ITERATIONS = 200
TOLERANCE = 1e-6
MARGIN_SHARE = 0.10
"""By how much the box around what any teacher drew is widened, as a share of its sides. Of the whole volume nearly all is background,
which makes every teacher's specificity one, and true what a single one drew."""
LEAST_MARGIN_VOXELS = 2
_LEAST = 1e-6
"""Nobody is always right: keeps logarithms finite."""
_LEVELS = 256
_PRIOR = 0.01
"""Nothing is certain before anybody votes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consensus:
    """What several teachers say together about one class of one case."""

    posterior: np.ndarray
    """``(z, y, x)`` float32: probability that a voxel is the class; 0 outside the widened box."""
    sensitivity: tuple[float, ...]
    """Of each teacher; 1 where none drew anything, since then nothing was missed."""
    specificity: tuple[float, ...]
    """Of each teacher, inside the widened box."""


def staple(votes_jzyx: np.ndarray, prior_zyx: np.ndarray | None = None) -> Consensus:
    """Fuse the masks of ``J`` teachers.

    Args:
        votes_jzyx: ``(J, z, y, x)`` bool.
        prior_zyx: ``(z, y, x)`` uint8, 255 = certain: how likely each voxel is the class before anybody votes. By default every voxel
            of the box is as likely as the share of votes in it.

    Returns:
        What they say together. Where none drew anything, nothing is there.
    """
    union = np.asarray(votes_jzyx.any(axis=0))
    posterior = np.zeros(union.shape, np.float32)
    if not union.any():
        return Consensus(posterior=posterior, sensitivity=(1.0,) * len(votes_jzyx), specificity=(1.0,) * len(votes_jzyx))
    box = widened_box(union)
    votes = votes_jzyx[(slice(None), *box)]
    levels = np.zeros(votes.shape[1:], np.uint8) if prior_zyx is None else prior_zyx[box]
    kinds, kind, counts = np.unique(_codes(votes, levels), return_inverse=True, return_counts=True)
    patterns = (kinds[None] // _LEVELS >> np.arange(len(votes))[:, None]) % 2 == 1
    prior = np.full(len(kinds), votes.mean()) if prior_zyx is None else kinds % _LEVELS / (_LEVELS - 1)
    belief, sensitivity, specificity = _maximise(patterns, counts.astype(float), np.clip(prior, _PRIOR, 1 - _PRIOR))
    posterior[box] = belief[kind].reshape(levels.shape)
    return Consensus(posterior=posterior, sensitivity=tuple(sensitivity.tolist()), specificity=tuple(specificity.tolist()))


def widened_box(mask_zyx: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box around a mask that is not empty, wider at each side by a share of it, two voxels at least, inside the volume."""
    (tight,) = ndimage.find_objects(mask_zyx.astype(np.int8))
    grown = [
        slice(max(0, side.start - more), min(size, side.stop + more))
        for side, size in zip(tight, mask_zyx.shape, strict=True)
        for more in [max(LEAST_MARGIN_VOXELS, int(np.ceil(MARGIN_SHARE * (side.stop - side.start))))]
    ]
    return grown[0], grown[1], grown[2]


def _codes(votes: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return one number per voxel: its votes as bits above its level of prior."""
    weights = (1 << np.arange(len(votes), dtype=np.int64)).reshape(-1, 1, 1, 1)
    return np.asarray((votes * weights).sum(axis=0) * _LEVELS + levels)


def _maximise(patterns: np.ndarray, counts: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run expectation maximisation over ``K`` kinds of voxels.

    Args:
        patterns: ``(J, K)`` bool, the votes of each kind.
        counts: ``(K,)`` voxels of each kind.
        prior: ``(K,)`` strictly between 0 and 1.

    Returns:
        ``(K,)`` probability, ``(J,)`` sensitivity and ``(J,)`` specificity.
    """
    sensitivity = specificity = np.full(len(patterns), FIRST_GUESS)
    belief = prior
    for _ in range(ITERATIONS):
        yes, no = np.log(sensitivity / (1 - specificity)), np.log((1 - sensitivity) / specificity)
        log_odds = np.log(prior / (1 - prior)) + np.where(patterns, yes[:, None], no[:, None]).sum(axis=0)
        before, belief = belief, 1 / (1 + np.exp(-np.clip(log_odds, -500, 500)))
        true, false = counts * belief, counts * (1 - belief)
        sensitivity = _share((patterns * true).sum(axis=1), true.sum())
        specificity = _share((~patterns * false).sum(axis=1), false.sum())
        if np.abs(belief - before).max() < TOLERANCE:
            break
    return belief, sensitivity, specificity


def _share(part: np.ndarray, whole: float) -> np.ndarray:
    return np.clip(part / max(whole, _LEAST), _LEAST, 1 - _LEAST)
