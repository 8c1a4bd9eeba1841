"""Lesions are counted, not only measured: which were found, which were missed, and what was drawn where there is none.

A lesion is a connected piece of a mask (26 neighbours, 8 in a picture). A drawn piece and a lesion of gold belong together if their IoU reaches
``LEAST_IOU``, one to one, so that as many as possible do and, among these ways, IoU is largest: one blob over two lesions finds one of
them, and two pieces in one lesion are one hit and one false alarm. Low overlap is enough, as the question is whether a
lesion was seen; how well it was drawn is for Dice to say. (Localisation by IoU and assignment: Maier-Hein et al., Metrics Reloaded, 2024.)
Only pieces and lesions that meet are ever paired, so that noise of ten thousand specks costs no more room than the specks.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

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
    by_decade: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Decade of volume -> gold's lesions in it, and how many of them were found; decade 2 is from 100 to 1000 mm3."""


def score_lesions(
    predicted: Bool[np.ndarray, "*space"],
    gold: Bool[np.ndarray, "*space"],
    exclude: Bool[np.ndarray, "*space"] | None = None,
    least_iou: float = LEAST_IOU,
    *,
    voxel_mm3: float = 1.0,
) -> LesionScores:
    """Return how many lesions were found, and how many pieces are none.

    Args:
        predicted: what was drawn, in 2D or 3D.
        gold: the expert's mask on the same grid.
        exclude: voxels that count as background in both.
        least_iou: from which a piece and a lesion belong together, above 0.
        voxel_mm3: volume of a voxel, for the decades; 1 counts voxels.
    """
    drawn, wanted = mask_pair(predicted, gold, exclude)
    if not drawn.any() and not wanted.any():
        return LesionScores(lesion_f1=float("nan"), lesion_sensitivity=float("nan"), false_lesions=0.0)
    box = union_box(drawn, wanted)
    pieces, lesions = _labelled(drawn[box]), _labelled(wanted[box])
    sizes = np.bincount(lesions.ravel())[1:]
    found = _found(pieces, lesions, least_iou)
    hits, drawn_count, wanted_count = int(found.sum()), int(pieces.max()), len(sizes)
    return LesionScores(
        lesion_f1=2 * hits / (drawn_count + wanted_count),
        lesion_sensitivity=hits / wanted_count if wanted_count else float("nan"),
        false_lesions=float(drawn_count - hits),
        by_decade=_by_decade(sizes * voxel_mm3, found),
    )


def decade_words(decade: int, unit: str) -> str:
    """Return the bounds of a decade of volume as people read them: ``100 to 1,000 mm3``."""
    low, high = (f"{10.0**each:,.0f}" if each >= 0 else f"{10.0**each:g}" for each in (decade, decade + 1))
    return f"{low} to {high} {unit}"


def _by_decade(volumes: np.ndarray, found: np.ndarray) -> dict[int, tuple[int, int]]:
    """Return lesions and hits by decade; a rounding error below a power of ten is that power."""
    decades = np.array([math.floor(math.log10(volume) + 1e-9) for volume in volumes], int)
    return {int(each): (int((decades == each).sum()), int(found[decades == each].sum())) for each in np.unique(decades)}


def _labelled(mask: np.ndarray) -> np.ndarray:
    """Return the number of each voxel's piece; 0 outside."""
    import cc3d

    flat = mask.squeeze()
    room = flat if flat.ndim == 3 else np.atleast_2d(flat)[None]
    return np.asarray(cc3d.connected_components(room.astype(np.uint8), connectivity=26))


def _found(pieces: np.ndarray, lesions: np.ndarray, least_iou: float) -> np.ndarray:
    """Return of each lesion whether a piece belongs to it."""
    piece_sizes, lesion_sizes = (np.bincount(each.ravel())[1:] for each in (pieces, lesions))
    found = np.zeros(len(lesion_sizes), bool)
    meet = (pieces > 0) & (lesions > 0)
    codes, shared = np.unique(pieces[meet].astype(np.int64) * (len(lesion_sizes) + 1) + lesions[meet], return_counts=True)
    of_piece, of_lesion = (each - 1 for each in np.divmod(codes, len(lesion_sizes) + 1))
    iou = shared / (piece_sizes[of_piece] + lesion_sizes[of_lesion] - shared)
    near = iou >= least_iou
    if near.any():
        found[_matched(of_piece[near], of_lesion[near], iou[near])] = True
    return found


def _matched(pieces: np.ndarray, lesions: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Return the lesions that get a piece of their own, of pairs that may belong together.

    Each piece may also go to nobody, at a cost above that of every pair: so as many as possible belong together, and of these ways the one of largest IoU is taken.
    """
    rows, row = np.unique(pieces, return_inverse=True)
    columns, column = np.unique(lesions, return_inverse=True)
    nobody = np.arange(len(rows))
    cost = np.concatenate([1 - iou / (1 + min(len(rows), len(columns))), np.full(len(rows), 2.0)])
    places = np.concatenate([row, nobody]), np.concatenate([column, len(columns) + nobody])
    _, chosen = min_weight_full_bipartite_matching(csr_array((cost, places)))
    there: np.ndarray = columns[chosen[chosen < len(columns)]]
    return there
