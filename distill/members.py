"""What the members of ensembles say, reduced to what is kept of them where they were computed.

On a CPU that is at once, by ``distill.uncertainty.summarise``. On a GPU the same is computed there, so that of ``E`` members' logits three maps and
a few figures are brought down, for many questions in one go, and nothing waits for them before they are read. Only the region around
the box is looked at, since nothing is believed outside of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.answers import Answer
from distill.patches import Region
from distill.teachers.transfer import Arriving, transfer_to
from distill.uncertainty import LN2, EnsembleSummary, Weights, pairwise_dice, summarise


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in which picture an ensemble lies."""

    region: Region
    size_px: tuple[int, int]


class Members:
    """Collects ensembles, and gives their answers back in the order in which they came."""

    def __init__(self, weights: Weights = "equal") -> None:
        self._weights = weights
        self._ready: list[Answer] = []
        self._there: list[torch.Tensor] = []
        self._places: list[_Place] = []
        self._arriving: Arriving | None = None

    def add(
        self, logits: torch.Tensor, iou: torch.Tensor, region: Region, size_px: tuple[int, int], candidates: torch.Tensor | None = None
    ) -> None:
        """Take one ensemble; all of them must be on one device.

        Args:
            logits: ``(E, h, w)`` of its members, in one frame: those of ``region``.
            iou: ``(E,)`` predicted.
            region: rows and columns where something is believed.
            size_px: (height, width) of the picture.
            candidates: ``(C, h, w)`` logits of the candidates for the unjittered box.
        """
        place, weights = _Place(region, size_px), weights_of(logits, iou, self._weights)
        if is_far(logits):
            self._there += [*reduced(logits, candidates, weights), iou]
            self._places.append(place)
            return
        summary = summarise(logits.numpy(), None if weights is None else weights.numpy())
        if candidates is not None:
            summary = replace(summary, multimask_dice=pairwise_dice(candidates.numpy() > 0))
        self._ready.append(Answer(summary=summary, region=region, size_px=size_px, iou=_mean(iou.tolist())))

    def depart(self) -> None:
        """Have everything that was taken brought here; call it once, after the last one."""
        if self._there:
            self._arriving = transfer_to(self._there[0].device).fetch(self._there)
            self._there = []

    def wait(self) -> list[Answer]:
        """Return what each ensemble says."""
        if self._arriving is None:
            return self._ready
        arrays = self._arriving.wait()
        each = [arrays[n : n + 4] for n in range(0, len(arrays), 4)]
        return [
            Answer(summary=_summary(*found[:3]), region=place.region, size_px=place.size_px, iou=_mean(found[3].tolist()))
            for place, found in zip(self._places, each, strict=True)
        ]


def is_far(tensor: torch.Tensor) -> bool:
    """Say whether looking at a tensor means to wait for another device."""
    return tensor.device.type != "cpu"


def weights_of(logits: torch.Tensor, iou: torch.Tensor, kind: Weights) -> torch.Tensor | None:
    """Return what each member counts ``(E,)``, in sum 1; None where all count alike. Where nothing speaks for any of them they do so too.

    Args:
        logits: ``(E, h, w)``.
        iou: ``(E,)`` predicted.
        kind: by what.
    """
    if kind == "equal":
        return None
    share = iou.double().clamp(min=0) if kind == "predicted_iou" else _dice_of_pairs(logits > 0).sum(dim=1) - 1
    total = share.sum()
    return torch.where(total > 0, share / total.clamp(min=1e-9), 1 / len(share)).to(logits.dtype)


def reduced(
    logits: torch.Tensor, candidates: torch.Tensor | None = None, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute what ``summarise`` does, within rounding, with nothing that waits for the device: no branch and no copy of a number.

    Args:
        logits: ``(E, h, w)`` float32.
        candidates: ``(C, h, w)``; their agreement is one more figure.
        weights: ``(E,)``; see ``summarise``.

    Returns:
        The mean probability ``(h, w)`` float32; vote and mutual information ``(2, h, w)`` uint8; pairwise Dice, stability, area and, where there are
        candidates, their pairwise Dice, as ``(3,)`` or ``(4,)`` float64.
    """
    clipped = logits.clamp(-30, 30)
    probabilities = torch.sigmoid(clipped)
    entropies = torch.nn.functional.softplus(-clipped) + (1 - probabilities) * clipped
    if weights is None:
        mean, own_entropy = probabilities.mean(dim=0), entropies.mean(dim=0)
    else:
        mean, own_entropy = (torch.tensordot(weights, each, 1) for each in (probabilities, entropies))
    certain = mean.clamp(1e-6, 1 - 1e-6)
    entropy = -(certain * certain.log() + (1 - certain) * torch.log1p(-certain))
    yes = logits > 0
    maps = torch.stack([yes.float().mean(dim=0), (entropy - own_entropy) / LN2])
    mean_logit = logits.mean(dim=0)
    inner, outer = ((mean_logit > edge).sum().double() for edge in (1, -1))
    stability = inner / outer.clamp(min=1)  # without an outer area there is no inner one
    figures = [_pairwise_dice(yes), stability, (mean > 0.5).sum().double()]
    figures += [] if candidates is None else [_pairwise_dice(candidates > 0)]
    return mean, (255 * maps.clamp(0, 1)).round().to(torch.uint8), torch.stack(figures)


def _pairwise_dice(masks: torch.Tensor) -> torch.Tensor:
    """Return the mean Dice over all pairs of ``(E, h, w)`` bool masks, as ``distill.uncertainty.pairwise_dice`` defines it."""
    if len(masks) < 2:
        return torch.ones((), dtype=torch.float64, device=masks.device)
    return _dice_of_pairs(masks).triu(1).sum() / (len(masks) * (len(masks) - 1) / 2)


def _dice_of_pairs(masks: torch.Tensor) -> torch.Tensor:
    """Return the Dice of each mask with each, ``(E, E)`` float64; two empty ones agree."""
    flat = masks.flatten(1).float()
    shared = (flat @ flat.T).double()
    sizes = shared.diagonal()
    total = sizes[:, None] + sizes[None]
    return (2 * shared / total.clamp(min=1)).masked_fill(total == 0, 1.0)


def _summary(probability: np.ndarray, maps: np.ndarray, figures: np.ndarray) -> EnsembleSummary:
    agreement, stability, area_px, *candidates = figures.tolist()
    return EnsembleSummary(
        probability=probability,
        pairwise_dice=agreement,
        stability=stability,
        area_px=round(area_px),
        vote=maps[0],
        mutual_information=maps[1],
        multimask_dice=candidates[0] if candidates else None,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
