"""Lesions are counted, not only measured: which were found, which were missed, and what was drawn where there is none.

A lesion is a connected piece of a mask (26 neighbours, 8 in a picture). A drawn piece and a lesion of gold belong together if their IoU reaches
``LEAST_IOU``, one to one, so that as many as possible do and, among these ways, IoU is largest: one blob over two lesions finds one of
them, and two pieces in one lesion are one hit and one false alarm. Low overlap is enough, as the question is whether a
lesion was seen; how well it was drawn is for Dice to say. (Localisation by IoU and assignment: Maier-Hein et al., Metrics Reloaded, 2024.)
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scipy.optimize import linear_sum_assignment

from distill.quality import mask_pair, union_box

LEAST_IOU = 0.1
"""From which a lesion counts as found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionScores:
    """How the lesions of one class of one case were found."""

    lesion_f1: float
    """Twice the hits over the sum of lesions and drawn pieces; NaN where there are none of either, 0 where there are only those of one side."""
    lesion_sensitivity: float
    """Share of gold's lesions that were found; NaN without any."""
    false_lesions: float
    """Drawn pieces that belong to no lesion."""


def score_lesions(
    predicted: Bool[np.ndarray, "*space"],
    gold: Bool[np.ndarray, "*space"],
    exclude: Bool[np.ndarray, "*space"] | None = None,
    least_iou: float = LEAST_IOU,
) -> LesionScores:
    """Return how many lesions were found, and how many pieces are none.

    Args:
        predicted: what was drawn, in 2D or 3D.
        gold: the expert's mask on the same grid.
        exclude: voxels that count as background in both.
        least_iou: from which a piece and a lesion belong together, above 0.
    """
    drawn, wanted = mask_pair(predicted, gold, exclude)
    if not drawn.any() and not wanted.any():
        return LesionScores(lesion_f1=float("nan"), lesion_sensitivity=float("nan"), false_lesions=0.0)
    box = union_box(drawn, wanted)
    pieces, lesions = _labelled(drawn[box]), _labelled(wanted[box])
    overlap = _overlap(pieces, lesions)
    hits, drawn_count, wanted_count = _matched(overlap, least_iou), overlap.shape[0] - 1, overlap.shape[1] - 1
    return LesionScores(
        lesion_f1=2 * hits / (drawn_count + wanted_count),
        lesion_sensitivity=hits / wanted_count if wanted_count else float("nan"),
        false_lesions=float(drawn_count - hits),
    )


def _labelled(mask: np.ndarray) -> np.ndarray:
    """Return the number of each voxel's piece; 0 outside."""
    import cc3d

    flat = mask.squeeze()
    room = flat if flat.ndim == 3 else np.atleast_2d(flat)[None]
    return np.asarray(cc3d.connected_components(room.astype(np.uint8), connectivity=26))


def _overlap(pieces: np.ndarray, lesions: np.ndarray) -> np.ndarray:
    """Return voxels by piece (row) and lesion (column), 0 being outside."""
    rows, columns = int(pieces.max()) + 1, int(lesions.max()) + 1
    pairs = pieces.astype(np.int64).ravel() * columns + lesions.ravel()
    return np.bincount(pairs, minlength=rows * columns).reshape(rows, columns)


def _matched(overlap: np.ndarray, least_iou: float) -> int:
    """Return how many pieces and lesions belong together."""
    shared = overlap[1:, 1:]
    union = overlap[1:].sum(axis=1)[:, None] + overlap[:, 1:].sum(axis=0)[None] - shared
    iou = shared / np.maximum(union, 1)
    worth = np.where(iou >= least_iou, 1 + iou / (1 + min(iou.shape)), 0.0)
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return int((worth[rows, columns] > 0).sum())
