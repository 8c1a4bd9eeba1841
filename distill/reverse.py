"""Reverse classification: does a mask teach how to find the object where an expert has drawn it?

Valindria et al. 2017 (arXiv 1702.03407): take one case and its mask as the only training example, segment a few cases that have gold by it, and
let the best Dice reached stand for the quality of the mask. A mask of something else teaches to find something else. Here the learner is the
simplest that works without a GPU: the nearest neighbours of a voxel in grey values at four scales and place in the body, on samples of voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import cKDTree

from distill.semantic import body_box

REVERSE = "2"
"""Raised whenever the same masks and gold lead to other answers."""
_SCALES_PX = (1.0, 2.0, 4.0)
_PLACE = 2.0
"""Weight of the place in the body, 0 to 1 across it, beside grey values of unit variance: a tenth of the body weighs a fifth of a deviation."""
_INSIDE, _OUTSIDE = 600, 1800
"""Voxels sampled of the object and of the rest."""
_NEIGHBOURS = 9


@dataclass(frozen=True, slots=True)
class Sample:
    """Voxels of one case, as far as reverse classification looks at it."""

    features: Float[np.ndarray, "n f"]
    inside: Bool[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    """How many voxels each stands for."""


def sample_of(
    mask: Bool[np.ndarray, "z y x"], grey: Float[np.ndarray, "z y x"], seed: int = 0, judged: Bool[np.ndarray, "z y x"] | None = None
) -> Sample | None:
    """Draw voxels inside and outside a mask; None if it is empty, or if nothing but the object was judged.

    Args:
        mask: of the case to be judged, or gold.
        grey: the picture in its window, 0 to 1.
        seed: same seed, same voxels.
        judged: where an expert said what is there; no other voxel is drawn. By default everywhere.
    """
    rng = np.random.default_rng(seed)
    rest = ~mask if judged is None else ~mask & judged
    groups = [(np.flatnonzero(mask), _INSIDE), (np.flatnonzero(rest), _OUTSIDE)]
    if not len(groups[0][0]) or (judged is not None and not len(groups[1][0])):
        return None
    chosen = [rng.choice(where, min(most, len(where)), replace=False) for where, most in groups]
    weight = np.concatenate([np.full(len(some), len(where) / max(1, len(some))) for some, (where, _) in zip(chosen, groups, strict=True)])
    voxels = np.concatenate(chosen)
    return Sample(_features(grey)[voxels], mask.ravel()[voxels], weight)


def reverse_accuracy(case: Sample | None, references: Sequence[Sample]) -> float:
    """Return the best Dice with gold that the case's mask teaches to reach, over the references; NaN without any, 0 for an empty mask.

    Args:
        case: what is judged; None for an empty mask.
        references: cases of other patients, sampled with their gold.
    """
    if case is None:
        return 0.0 if references else float("nan")
    tree = cKDTree(case.features)
    return max((_taught_dice(tree, case, reference) for reference in references), default=float("nan"))


def _taught_dice(tree: cKDTree, case: Sample, reference: Sample) -> float:
    _, near = tree.query(reference.features, k=min(_NEIGHBOURS, len(case.inside)))
    near = near.reshape(len(reference.inside), -1)
    found = case.inside[near].mean(axis=1) > 0.5
    both = float(reference.weight[found & reference.inside].sum())
    return 2 * both / float(reference.weight[found].sum() + reference.weight[reference.inside].sum())


def _features(grey: np.ndarray) -> np.ndarray:
    """Return ``(voxels, f)``: grey values at four scales, standardised over the case, and place in the body."""
    flat = [0.0 if size == 1 else 1.0 for size in grey.shape]
    scales = [grey, *(np.asarray(ndimage.gaussian_filter(grey, [s * each for each in flat])) for s in _SCALES_PX)]
    values = [(each - each.mean()) / max(float(each.std()), 1e-6) for each in scales]
    places = [
        _PLACE * (index - low) / max(high - low, 1.0) for index, (low, high) in zip(np.indices(grey.shape), body_box(grey), strict=True)
    ]
    return np.stack([each.ravel() for each in (*values, *places)], axis=1).astype(np.float32)
