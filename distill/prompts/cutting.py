"""Where to cut a map of scores, learnt on slices whose mask is known: from which score on a pixel is the class, and from which peak on it is there at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np

from distill.prompts.pieces import LOOSE_PX, innermost, parts_of, widened
from distill.prompts.slice_hint import box_of
from distill.quality import dice

MARGIN = 0.05
"""The box is moved outward by this share of its sides, and by 2 pixels at least: teachers were trained with loose boxes (MedSAM, Ma et al. 2024)."""
CANDIDATES = 40
"""Cuts that are tried, at quantiles of the scores."""
HIGHEST_QUANTILE = 0.9995
TOWARDS_USUAL = 1 / 3
"""The sides of a box are moved so far towards the usual ones, on a logarithmic scale: pieces are cut from a coarse grid. On 160 cine MR slices of 12 patients
with three choices of exemplars, mean Dice of the masks that follow: 0.727 without, 0.733 with a third, 0.709 with two thirds, 0.649 with all of it."""
LARGEST_EXPONENT = 500.0
"""Of double precision, which ends at 709."""
SMALLEST_SHARE = 0.25
"""A piece smaller than this share of the usual area says where the object is and not how large; then the usual box is taken around it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """The scores of one slice by what other slices taught, and the truth."""

    class_id: int
    scores: np.ndarray
    """``(H, W)`` float32."""
    mask: np.ndarray
    """``(H, W)`` bool."""
    left_open: np.ndarray | None = None
    """``(H, W)`` bool: pixels of which nobody said what they are; None where there are none."""

    @property
    def is_whole(self) -> bool:
        """Whether every pixel was judged, so that the size of the mask is known."""
        return self.left_open is None or not bool(self.left_open.any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What was learnt."""

    score: float
    """From which score on a pixel is taken for the class."""
    peak: float | None
    """From which highest score on a slice has the class; None where no slice without it was seen, and every slice is taken to have it."""
    spread: float
    """How far peaks lie apart: what a confidence is measured by."""
    usual_box_px: tuple[float, float]
    """Median height and width of the boxes of the known masks."""
    usual_area_px: float
    held_out_dice: float
    """Mean Dice of the pieces with the known masks at this cut."""
    presence_accuracy: float
    """Mean of the shares of slices with and without the class that the peak tells right; NaN where it was not learnt."""

    @property
    def confidence_of_absence(self) -> float:
        """Return how far an absence may be trusted."""
        return 0.5 if np.isnan(self.presence_accuracy) else float(self.presence_accuracy)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Place:
    """Where a class is believed to be on one slice."""

    box_xyxy_px: tuple[float, float, float, float]
    centre_xy_px: tuple[float, float]
    """The middle of its innermost pixel."""
    confidence: float


def learn_cut(held: Sequence[Held], *, presence: bool = True) -> Cut:
    """Choose the cut with the highest mean Dice on slices that have the class, and the peak that tells best which ones do.

    Args:
        held: slices of one class, at least one of them with it.
        presence: whether to learn a peak.
    """
    shown = [each for each in held if each.mask.any()]
    missing = [each for each in held if not each.mask.any()]
    pool = np.concatenate([each.scores.ravel() for each in shown])
    share = float(np.mean([each.mask.mean() for each in shown]))
    cuts = np.unique(np.quantile(pool, np.linspace(max(0.0, 1 - 4 * share), HIGHEST_QUANTILE, CANDIDATES)))
    means = [float(np.mean([dice(largest_piece(each.scores, cut), each.mask, each.left_open) for each in shown])) for cut in cuts]
    at = int(np.argmax(means))
    sized = [each for each in shown if each.is_whole] or shown
    boxes = np.array([box_of(each.mask) for each in sized])
    peaks = np.array([each.scores.max() for each in shown])
    peak, accuracy = _presence(peaks, np.array([each.scores.max() for each in missing])) if presence and missing else (None, np.nan)
    return Cut(
        score=float(cuts[at]),
        peak=peak,
        spread=float(max(np.std(peaks), 1e-3)),
        usual_box_px=(float(np.median(boxes[:, 3] - boxes[:, 1])), float(np.median(boxes[:, 2] - boxes[:, 0]))),
        usual_area_px=float(np.median([each.mask.sum() for each in sized])),
        held_out_dice=means[at],
        presence_accuracy=accuracy,
    )


def _presence(with_it: np.ndarray, without: np.ndarray) -> tuple[float, float]:
    """Return the peak at which the mean of sensitivity and specificity is highest, midway between its neighbours, and that mean."""
    values = np.unique(np.concatenate([with_it, without]))
    places = np.concatenate([[values[0] - 1e-3], (values[1:] + values[:-1]) / 2])
    balanced = [((with_it > place).mean() + (without <= place).mean()) / 2 for place in places]
    best = int(np.argmax(balanced))
    return float(places[best]), float(balanced[best])


def largest_piece(scores: np.ndarray, cut: float) -> np.ndarray:
    """Return the 8-connected piece above the cut with the largest excess, ``(H, W)`` bool; where none is, the pixels of the highest score."""
    above = scores > cut
    if not above.any():
        return np.asarray(scores >= scores.max())
    pieces = np.asarray(cc3d.connected_components(above.astype(np.uint8), connectivity=8))
    excess = np.bincount(pieces.ravel(), weights=np.where(above, scores - cut, 0).ravel())
    excess[0] = -1
    return np.asarray(pieces == excess.argmax())


def place_of(scores: np.ndarray, cut: Cut) -> Place:
    """Return the box, moved outward, and the innermost pixel of the largest piece."""
    mask = largest_piece(scores, cut.score)
    centre = innermost(parts_of(mask)[0])
    low, high = _extent(mask, centre, cut)
    floor = cut.score if cut.peak is None else cut.peak
    confidence = 1 / (1 + np.exp(min(-(float(scores.max()) - floor) / cut.spread, LARGEST_EXPONENT)))
    return Place(
        box_xyxy_px=widened((*low.tolist(), *high.tolist()), MARGIN, (scores.shape[0], scores.shape[1]), least_px=LOOSE_PX),
        centre_xy_px=centre,
        confidence=float(confidence),
    )


def _extent(mask: np.ndarray, innermost_xy: tuple[float, float], cut: Cut) -> tuple[np.ndarray, np.ndarray]:
    """Return the lower and upper corner (x, y) of a box for a piece, as much of its own size as can be trusted."""
    usual = np.array(cut.usual_box_px[::-1])
    box = box_of(mask)
    if box is None or mask.sum() < SMALLEST_SHARE * cut.usual_area_px:
        centre, sides = np.array(innermost_xy), usual
    else:
        centre = (box[:2] + box[2:]) / 2
        sides = (box[2:] - box[:2]) ** (1 - TOWARDS_USUAL) * usual**TOWARDS_USUAL
    return centre - sides / 2, centre + sides / 2


def present_run(peaks: Sequence[float], cut: Cut) -> np.ndarray:
    """Return the slices that have the class: the neighbours above the peak with the largest excess, so that no lone slice far off counts.

    Peaks of a volume are averaged with those of the neighbours first, (1 2 1) / 4.
    """
    if cut.peak is None:
        return np.arange(len(peaks))
    heights = np.asarray(peaks, float)
    if len(heights) > 2:
        padded = np.pad(heights, 1, mode="edge")
        heights = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    above = heights > cut.peak
    if not above.any():
        return np.array([], int)
    runs = np.asarray(cc3d.connected_components(above.astype(np.uint8)[None, None], connectivity=6))[0, 0]
    excess = np.bincount(runs, weights=np.where(above, heights - cut.peak, 0))
    excess[0] = -1
    return np.flatnonzero(runs == excess.argmax())
