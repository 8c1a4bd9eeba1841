"""How much each case counts in nnU-Net's loss."""

from typing import Any

import torch
from torch import Tensor, nn


class CaseWeightedLoss(nn.Module):
    """nnU-Net's loss, and where weights are set that of each sample by itself, by its weight."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.weights: list[float] | None = None

    def forward(self, output: Any, target: Any) -> Tensor:
        """Return the mean over the batch of weight times loss; outputs and targets may be lists, of several resolutions."""
        if self.weights is None:
            plain: Tensor = self.loss(output, target)
            return plain
        terms = [weight * self.loss(_sample(output, n), _sample(target, n)) for n, weight in enumerate(self.weights)]
        return torch.stack(terms).mean()


def _sample(batch: Any, n: int) -> Any:
    return [level[n : n + 1] for level in batch] if isinstance(batch, (list, tuple)) else batch[n : n + 1]
