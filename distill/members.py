"""What the members of ensembles say, reduced to what is kept of them where they were computed.

On a CPU that is at once, by ``distill.uncertainty.summarise``. On a GPU the same is computed there, so that of ``E`` members' logits one map and
a few figures are brought down, for many questions in one go, and nothing waits for them before they are read.
"""

from collections.abc import Sequence

import numpy as np
import torch

from distill.teachers.transfer import Arriving, transfer_to
from distill.uncertainty import EnsembleSummary, summarise

FAR_BELOW = -20.0
"""The logit of pixels where nothing is believed."""


class Members:
    """Collects ensembles, and gives their summaries back in the order in which they came."""

    def __init__(self) -> None:
        self._ready: list[tuple[EnsembleSummary, float]] = []
        self._there: list[torch.Tensor] = []
        self._arriving: Arriving | None = None

    def add(self, logits: torch.Tensor, iou: torch.Tensor, outside: np.ndarray) -> None:
        """Take one ensemble; all of them must be on one device.

        Args:
            logits: ``(E, H, W)`` of its members, in one frame.
            iou: ``(E,)`` predicted.
            outside: ``(H, W)`` bool: where nothing is believed.
        """
        if is_far(logits):
            beyond = transfer_to(logits.device).send(outside)
            self._there += [*reduced(logits.masked_fill(beyond, FAR_BELOW)), iou]
            return
        members = np.where(outside, np.float32(FAR_BELOW), logits.numpy())
        self._ready.append((summarise(members), _mean(iou.tolist())))

    def depart(self) -> None:
        """Have everything that was taken brought here; call it once, after the last one."""
        if self._there:
            self._arriving = transfer_to(self._there[0].device).fetch(self._there)
            self._there = []

    def wait(self) -> list[tuple[EnsembleSummary, float]]:
        """Return summary and mean predicted IoU of each ensemble."""
        if self._arriving is None:
            return self._ready
        arrays = self._arriving.wait()
        return [(_summary(*arrays[n : n + 2]), _mean(arrays[n + 2].tolist())) for n in range(0, len(arrays), 3)]


def is_far(tensor: torch.Tensor) -> bool:
    """Say whether looking at a tensor means to wait for another device."""
    return tensor.device.type != "cpu"


def reduced(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute what ``summarise`` does, within rounding, with nothing that waits for the device: no branch and no copy of a number.

    Args:
        logits: ``(E, H, W)`` float32.

    Returns:
        The mean probability ``(H, W)`` float32, and pairwise Dice, stability and area as ``(3,)`` float64.
    """
    mean = torch.sigmoid(logits.clamp(-30, 30)).mean(dim=0)
    mean_logit = logits.mean(dim=0)
    inner, outer = ((mean_logit > edge).sum().double() for edge in (1, -1))
    stability = inner / outer.clamp(min=1)  # without an outer area there is no inner one
    return mean, torch.stack([_pairwise_dice(logits > 0), stability, (mean > 0.5).sum().double()])


def _pairwise_dice(masks: torch.Tensor) -> torch.Tensor:
    """Return the mean Dice over all pairs of ``(E, H, W)`` bool masks, as ``distill.uncertainty.pairwise_dice`` defines it."""
    flat = masks.flatten(1).float()
    if len(flat) < 2:
        return torch.ones((), dtype=torch.float64, device=masks.device)
    shared = (flat @ flat.T).double()
    sizes = shared.diagonal()
    total = sizes[:, None] + sizes[None]
    dice = (2 * shared / total.clamp(min=1)).masked_fill(total == 0, 1.0)
    return dice.triu(1).sum() / (len(flat) * (len(flat) - 1) / 2)


def _summary(probability: np.ndarray, figures: np.ndarray) -> EnsembleSummary:
    pairwise_dice, stability, area_px = figures.tolist()
    return EnsembleSummary(probability=probability, pairwise_dice=pairwise_dice, stability=stability, area_px=round(area_px))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
