"""What an ensemble says about one piece of a class, and how the pieces on a slice become one answer about the class.

The union: a pixel is as likely the class as it is the likeliest piece, as many members say yes to it as to the piece that most say yes to, and its doubt is that of
the likeliest piece. Scores are averaged, each piece weighted with the mean area of its members' masks. For pieces that do not overlap this
is what the united masks of the members score: a Dice of unions is the mean of the pieces' Dice by area.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.patches import Patch, Region
from distill.uncertainty import OUTSIDE, EnsembleSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one ensemble says, as far as it is believed."""

    summary: EnsembleSummary
    """Its maps are rows and columns ``region`` of the picture."""
    region: Region
    size_px: tuple[int, int]
    """(height, width) of the picture."""
    iou: float
    """Predicted, mean of the members."""

    @property
    def probability(self) -> np.ndarray:
        """``(H, W)`` float32, of the whole picture."""
        rows, columns = self.region
        return Patch(values=self.summary.probability, corner_yx=(rows.start, columns.start), around=OUTSIDE).on(self.size_px)

    @property
    def mask(self) -> np.ndarray:
        """``(H, W)`` bool, of the whole picture."""
        return self.probability > 0.5

    @property
    def members_px(self) -> float:
        """Mean area of the members' masks."""
        return float(self.summary.vote.sum(dtype=np.int64)) / 255


def united(answers: Sequence[Answer]) -> tuple[EnsembleSummary, float]:
    """Return what the answers about all pieces on a slice say about the class: a summary whose maps are the whole picture, and the predicted IoU.

    Args:
        answers: at least one; their order does not matter but for the last bits of the scores.
    """
    first = answers[0]
    whole = first.summary.placed(first.region, first.size_px)
    if len(answers) == 1:
        return whole, first.iou
    for answer in answers[1:]:
        _add(whole, answer)
    weights = [answer.members_px for answer in answers]
    each = [answer.summary for answer in answers]
    candidates = [summary.multimask_dice for summary in each if summary.multimask_dice is not None]
    summary = replace(
        whole,
        pairwise_dice=_mean([one.pairwise_dice for one in each], weights),
        stability=_mean([one.stability for one in each], weights),
        area_px=int((whole.probability > 0.5).sum()),
        multimask_dice=_mean(candidates, weights) if len(candidates) == len(each) else None,
    )
    return summary, _mean([answer.iou for answer in answers], weights)


def _add(whole: EnsembleSummary, answer: Answer) -> None:
    """Unite the maps of a piece with those of the others, in place."""
    region, piece = answer.region, answer.summary
    likelier, as_likely = piece.probability > whole.probability[region], piece.probability == whole.probability[region]
    doubt = whole.mutual_information[region]
    doubt[:] = np.where(likelier, piece.mutual_information, np.where(as_likely, np.maximum(doubt, piece.mutual_information), doubt))
    np.maximum(whole.probability[region], piece.probability, out=whole.probability[region])
    np.maximum(whole.vote[region], piece.vote, out=whole.vote[region])


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean by weight; the plain one where nobody has seen anything."""
    return float(np.average(values, weights=weights if sum(weights) > 0 else None))
