"""From one class's probabilities to its mask: smooth, cut, keep the pieces, fill the holes, and mend the edge where asked.

All lengths and volumes are the patient's where the spacing is known; where it is not, rules in mm3 do not apply and those in pixels do.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cc3d
import numpy as np
from scipy import ndimage

_CERTAIN = 0.2
"""Probabilities within this of 0 or 1 are certain, the others are the edge that intensity may decide (UR-SAM, Zhang et al. 2023)."""
_USUAL = (5.0, 95.0)
"""Percentiles of the certain object's intensities between which a voxel of the edge looks like the object."""
_LEAST_CERTAIN = 20
"""Voxels; intensities of fewer say nothing."""
_HALF = 0.5
_NEAR_PX = 3
"""Voxels around the object that its intensities are compared with, and that they may win or lose."""
_BINS, _SMOOTH_BINS, _LEAST_COUNT = 64, 3.0, 1e-2
"""Of a histogram of grey values: bins, standard deviation of its smoothing in bins, and what an empty bin counts."""
_SAYS_PX = 0.5
"""Smoothing of what intensity says; single voxels are noise."""
_MOST_SAID = 3.0
"""Of a log-likelihood ratio: nothing is surer than 20 to 1 by its grey value alone."""
_DOUBT = 0.02
"""However sure a teacher is, intensity is heard."""
_THICK = 2.0
"""Slices this many times as thick as their pixels are wide are thick: one of them that is lost is a small gap in what was drawn, however many mm it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRule:
    """How one class is refined. Thresholds come from ``calibration`` where there is gold; these defaults are documented guesses."""

    threshold: float = 0.5
    """Mean probability from which a voxel is the class."""
    ignore_band: float = 0.08
    """Half width in probability of the band around the threshold that nobody should learn from."""
    smooth_mm: float = 0.0
    """Standard deviation of the Gaussian that makes neighbouring slices agree; 0 leaves them as they are."""
    largest_component: bool = True
    """Keep the largest ``components`` pieces, and what was broken off them, only."""
    components: int = 1
    piece_share: float = 0.1
    """From this share of the largest piece on another one is large: it may be a part of the object, and if it goes, nobody knows what it is."""
    piece_gap_mm: float = 5.0
    """A large piece no further than this, between centres of voxels, from one that stays was broken off it, and stays too, if a cube as large as the
    largest is at least twice as wide, for no object is near one that is smaller than the way to it; 0 lets it go. One lost slice is near however thick,
    where slices are at least twice as thick as their pixels are wide. Not judged in cases without a known spacing. On 100 hippocampi the halves of broken ones lay 3 to 4 mm apart."""
    least_mm3: float = 0.0
    """Pieces smaller than this go, before the largest are chosen; not judged in cases without a known spacing."""
    least_px: int = 0
    """The same in voxels."""
    holes: Literal["slices", "3d", "none"] = "slices"
    """Which holes are filled: those closed within an axial slice, or only those closed on all sides."""
    holes_to_mm3: float | None = None
    """Larger holes stay; not judged in cases without a known spacing."""
    holes_to_px: int | None = None
    """The same in voxels; of one slice, where holes are filled slice by slice."""
    rectify_edges: bool | float = False
    """``True`` lets the intensity decide about voxels whose probability lies between 0.2 and 0.8 (`rectify_edges`); a number weighs what intensity says
    of every voxel near the object against the teacher's own belief (`weigh_edges`)."""
    disputed_from: float | None = None
    """Share of the ensemble's members in the minority from which a voxel of the object, or next to it, is ``ignore``, where votes were kept."""
    volume_mm3: tuple[float, float] | None = None
    """Volumes outside this range go to review; not judged in cases without a known spacing."""
    accept_from: float = 0.85
    """Ensemble agreement (mean pairwise Dice) from which a mask is accepted."""
    review_from: float = 0.70
    """... and from which it is for a person to judge; below, it is rejected."""
    prior_from: float = 0.001
    """How usual a mask must be in place, size and brightness (``distill.semantic``) not to be rejected, where that was measured."""
    student_from: float = 0.5
    """Dice with students that never saw the case, below which a mask is rejected, where that was measured."""
    reverse_from: float = 0.2
    """Reverse classification accuracy below which a mask is rejected, where that was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parted:
    """What becomes of the pieces of a mask, all ``(z, y, x)`` bool."""

    kept: np.ndarray
    dropped: np.ndarray
    """Large pieces that were taken away beside larger ones: parts of the object, or something else; nobody knows."""
    gaps: np.ndarray
    """Between pieces that were broken off and what they were broken off: the object goes through there, and nobody knows where exactly. In
    the 3 of 100 hippocampi that broke by the default rule, 96 to 100 % of it was hippocampus."""


def smooth_probability(
    probability: np.ndarray, rule: ClassRule, spacing_zyx_mm: tuple[float, float, float], known: np.ndarray | None = None
) -> np.ndarray:
    """Smooth ``(z, y, x)`` probabilities by ``rule.smooth_mm``, an isotropic length in the patient; one-slice cases stay as they are.

    Where not every voxel is ``known``, the others take no part and stay as they are (normalised convolution, Knutsson and Westin 1993): a slice that
    nobody asked about, or whose answer is not believed, says nothing about its neighbour.
    """
    if rule.smooth_mm <= 0 or probability.shape[0] == 1:
        return probability
    widths = [rule.smooth_mm / mm for mm in spacing_zyx_mm]
    if known is None or known.all():
        return np.asarray(ndimage.gaussian_filter(probability, widths, truncate=3.0))
    weights = ndimage.gaussian_filter(known.astype(np.float32), widths, truncate=3.0)
    smooth = ndimage.gaussian_filter(np.where(known, probability, 0), widths, truncate=3.0)
    return np.where(known, smooth / np.maximum(weights, 1e-6), probability).astype(probability.dtype)


def clean_mask(mask: np.ndarray, rule: ClassRule, spacing_zyx_mm: tuple[float, float, float] | None = None) -> np.ndarray:
    """Keep the pieces and fill the holes of a ``(z, y, x)`` mask that the rule says.

    Args:
        mask: bool.
        rule: which pieces (26 neighbours) and holes.
        spacing_zyx_mm: None where it is not known: rules in mm3 do not apply then.
    """
    return filled(part(mask, rule, spacing_zyx_mm).kept, rule, spacing_zyx_mm)


def filled(kept: np.ndarray, rule: ClassRule, spacing_zyx_mm: tuple[float, float, float] | None = None) -> np.ndarray:
    """Fill the holes of what stays of a mask (``part``); arguments as for ``clean_mask``."""
    return _filled(kept, rule.holes, _largest_hole(rule, _voxel_mm3(spacing_zyx_mm)))


def part(mask: np.ndarray, rule: ClassRule, spacing_zyx_mm: tuple[float, float, float] | None = None) -> Parted:
    """Take the pieces of a ``(z, y, x)`` mask apart; arguments as for ``clean_mask``."""
    voxel_mm3 = _voxel_mm3(spacing_zyx_mm)
    least = 0 if voxel_mm3 is None else math.ceil(rule.least_mm3 / voxel_mm3)
    mask = _without_specks(mask, max(rule.least_px, least))
    nothing = np.zeros(mask.shape, bool)
    if not rule.largest_component or not mask.any():
        return Parted(kept=mask, dropped=nothing, gaps=nothing)
    pieces, count = cc3d.connected_components(np.ascontiguousarray(mask, np.uint8), connectivity=26, return_N=True)
    if count <= rule.components:
        return Parted(kept=mask, dropped=nothing, gaps=nothing)
    kept = np.asarray(cc3d.largest_k(np.ascontiguousarray(mask, np.uint8), k=rule.components, connectivity=26)) > 0
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    large = np.setdiff1d(1 + np.flatnonzero(sizes >= rule.piece_share * sizes.max()), pieces[kept])
    gaps = nothing
    if spacing_zyx_mm is not None and rule.piece_gap_mm > 0 and large.size:
        [around] = ndimage.find_objects(mask.astype(np.int8))
        reach = min(rule.piece_gap_mm, _half_side(int(sizes.max()), around, spacing_zyx_mm))
        kept, gaps = kept.copy(), gaps.copy()
        kept[around], gaps[around] = _rejoined(kept[around], pieces[around], large.tolist(), reach, _steps(spacing_zyx_mm, reach))
    return Parted(kept=kept, dropped=np.isin(pieces, large) & ~kept, gaps=gaps)


def _half_side(voxels: int, around: Sequence[slice], spacing_zyx_mm: Sequence[float]) -> float:
    """Return half the side in mm of a cube, or of a square where a mask is flat, as large as a piece."""
    wide = [mm for mm, reach in zip(spacing_zyx_mm, around, strict=True) if reach.stop - reach.start > 1]
    side: float = float(voxels * np.prod(wide)) ** (1 / max(len(wide), 1))
    return side / 2


def _steps(spacing_zyx_mm: Sequence[float], reach_mm: float) -> list[float]:
    """Return how far a step along each axis counts: its length, but across thick slices no more than that one lost slice is within reach."""
    *_, second, thickest = sorted(spacing_zyx_mm)
    thick = thickest >= _THICK * second
    return [min(mm, reach_mm / 2) if thick and mm == thickest else mm for mm in spacing_zyx_mm]


def _rejoined(
    kept: np.ndarray, pieces: np.ndarray, left: Sequence[int], reach_mm: float, steps_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Add those of some pieces that lie within reach of what stays, the nearest first: parts of a long object hang on the one before.

    Distances are those between the centres of voxels. They are measured once around each piece, no further than it reaches (Prim 1957 grows a spanning tree in this order).

    Args:
        kept: ``(z, y, x)`` bool, what stays anyway.
        pieces: their numbers ``(z, y, x)``, 0 between them.
        left: numbers of those that may be added.
        reach_mm: how far is near.
        steps_mm: how far neighbours along each axis are apart.

    Returns:
        What stays, and what lies between it and the pieces that were added.
    """
    added, gaps = np.zeros(kept.shape, bool), np.zeros(kept.shape, bool)
    rim = [int((reach_mm + min(steps_mm)) / step + 1e-6) for step in steps_mm]
    wanted = np.isin(pieces, left)
    [about] = ndimage.find_objects(wanted.astype(np.int8))
    window = _widened(about, rim)  # nothing beyond lies between pieces
    pieces = np.where(kept | wanted, pieces, 0)[window]
    places = ndimage.find_objects(pieces)
    away = np.full(pieces.shape, np.inf)
    near = [(0.0, number) for number in np.unique(pieces[kept[window]]).tolist()]
    joined: set[int] = set()
    while near:
        mm, number = heapq.heappop(near)
        if number in joined:
            continue
        joined.add(number)
        around = _widened(places[number - 1], rim)
        piece = pieces[around] == number
        own = ndimage.distance_transform_edt(~piece, sampling=steps_mm)
        if mm > 0:
            added[window][around] |= piece
            gaps[window][around] |= away[around] + own <= mm + min(steps_mm)
        np.minimum(away[around], own, out=away[around])
        for way, other in _ways(own, pieces[around], reach_mm):
            if other not in joined:
                heapq.heappush(near, (way, other))
    return kept | added, gaps & ~(kept | added)


def _widened(around: Sequence[slice], rim: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(max(0, side.start - wide), side.stop + wide) for side, wide in zip(around, rim, strict=True))


def _ways(away_mm: np.ndarray, pieces: np.ndarray, reach_mm: float) -> list[tuple[float, int]]:
    """Return how far the pieces are of which something is within reach, and their numbers."""
    close = (away_mm > 0) & (away_mm <= reach_mm * (1 + 1e-6)) & (pieces > 0)
    numbers, which = np.unique(pieces[close], return_inverse=True)
    ways = np.full(len(numbers), np.inf)
    np.minimum.at(ways, which, away_mm[close])
    return list(zip(ways.tolist(), numbers.tolist(), strict=True))


def _voxel_mm3(spacing_zyx_mm: tuple[float, float, float] | None) -> float | None:
    return None if spacing_zyx_mm is None else float(np.prod(spacing_zyx_mm))


def _largest_hole(rule: ClassRule, voxel_mm3: float | None) -> int | None:
    """Return the size in voxels up to which holes are filled; None where nothing limits it."""
    by_volume = None if rule.holes_to_mm3 is None or voxel_mm3 is None else int(rule.holes_to_mm3 / voxel_mm3)
    return min((limit for limit in (rule.holes_to_px, by_volume) if limit is not None), default=None)


def _without_specks(mask: np.ndarray, least: int) -> np.ndarray:
    if least <= 1 or not mask.any():
        return mask
    return np.asarray(cc3d.dust(np.ascontiguousarray(mask, np.uint8), threshold=least, connectivity=26)) > 0


def _filled(mask: np.ndarray, holes: str, largest: int | None) -> np.ndarray:
    if holes == "none" or not mask.any():
        return mask
    if holes == "3d":
        return _filled_up_to(mask, largest)
    return np.stack([_filled_up_to(each, largest) for each in mask])


def _filled_up_to(mask: np.ndarray, largest: int | None) -> np.ndarray:
    """Fill the holes of a mask of any number of axes that have at most ``largest`` voxels; all if None."""
    filled = np.asarray(ndimage.binary_fill_holes(mask))
    if largest is None:
        return filled
    pieces, count = ndimage.label(filled & ~mask)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    small = sizes <= largest
    small[0] = False
    return np.asarray(mask | small[pieces])


def mend_edges(probability: np.ndarray, grey: np.ndarray, rule: ClassRule) -> np.ndarray:
    """Return the probabilities with the edge mended as a rule says; as they are where it says nothing."""
    if isinstance(rule.rectify_edges, bool):
        return rectify_edges(probability, grey) if rule.rectify_edges else probability
    return weigh_edges(probability, grey, rule.rectify_edges)


def weigh_edges(probability: np.ndarray, grey: np.ndarray, weight: float) -> np.ndarray:
    """Return the probabilities with intensity as further evidence: the logit plus ``weight`` times the log-likelihood ratio of the voxel's grey value.

    How grey the object is, and how grey what surrounds it within some voxels, is read from this very case: from histograms to which each voxel
    gives its probability, and its complement. So a voxel that the teacher doubts joins those it looks like. Far from the object nothing changes: there are
    other things that look like it. (Naive Bayes with a location prior, as mixture models of brain tissue have it: Ashburner and Friston 2005.)

    Args:
        probability: ``(z, y, x)``, 0 to 1.
        grey: ``(z, y, x)``, any scale.
        weight: of the ratio; voxels that are neighbours say nearly the same, so that what is best is for gold to say.
    """
    near = np.asarray(ndimage.binary_dilation(probability > _HALF, iterations=_NEAR_PX))
    if np.count_nonzero(probability > _HALF) < _LEAST_CERTAIN:
        return probability
    low, high = float(grey.min()), float(grey.max())
    bins = np.clip(((grey - low) / max(high - low, 1e-9) * _BINS).astype(int), 0, _BINS - 1)
    ratio = _log_share(bins[near], probability[near]) - _log_share(bins[near], 1 - probability[near])
    says = ndimage.gaussian_filter(ratio[bins], _SAYS_PX if grey.shape[0] > 1 else (0, _SAYS_PX, _SAYS_PX))
    sure = np.clip(probability, _DOUBT, 1 - _DOUBT)
    odds = np.log(sure / (1 - sure)) + weight * np.clip(says, -_MOST_SAID, _MOST_SAID)
    return np.where(near, 1 / (1 + np.exp(-odds)), probability).astype(probability.dtype)


def _log_share(bins: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the logarithm of the smoothed share of each bin."""
    share = ndimage.gaussian_filter1d(np.bincount(bins, weights=counted, minlength=_BINS), _SMOOTH_BINS) + _LEAST_COUNT
    return np.asarray(np.log(share / share.sum()))


def rectify_edges(probability: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """Return the probabilities with those of the edge decided by intensity, as UR-SAM does (Zhang et al. 2023, arXiv 2311.10529).

    A voxel between 0.2 and 0.8 becomes 0.8 where its grey value lies in the usual range of the certain object, and 0.2 elsewhere.

    Args:
        probability: ``(z, y, x)``, 0 to 1.
        grey: ``(z, y, x)``, any scale.
    """
    certain = probability >= 1 - _CERTAIN
    if np.count_nonzero(certain) < _LEAST_CERTAIN:
        return probability
    low, high = np.percentile(grey[certain], _USUAL)
    edge = (probability > _CERTAIN) & ~certain
    alike = (grey >= low) & (grey <= high)
    return np.where(edge, np.where(alike, 1 - _CERTAIN, _CERTAIN), probability).astype(probability.dtype)
