"""Batches from several kinds of cases: gold, pseudo-labelled, and without any label, each in a fixed share.

A batch of two cannot be a quarter gold. So the numbers are dealt out over the steps: after any number of steps the patches of a kind differ
from their share by less than one.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from students.batches import Batch
from students.data import PatchSource
from students.learning import GoldSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """How many patches of a batch are of which kind."""

    gold: int
    unlabeled: int
    labeled: int


def dealt(share: float, batch: int, step: int) -> int:
    """Return how many patches of a step are of a kind that has a share of all."""
    exact = share * batch
    # A share like 1/3 must not lose a patch to rounding.
    return math.floor((step + 1) * exact + 1e-9) - math.floor(step * exact + 1e-9)


class MixedSource:
    """Patches of gold cases beside those of pseudo-labelled cases, and of cases without labels."""

    def __init__(
        self,
        *,
        batch: int,
        labeled: PatchSource | None,
        gold: PatchSource | None,
        unlabeled: PatchSource | None,
        how: GoldSpec,
        unlabeled_share: float,
    ) -> None:
        self._batch, self._how, self._unlabeled_share = batch, how, unlabeled_share
        self._labeled, self._gold, self._unlabeled = labeled, gold, unlabeled

    def mixture(self, step: int, fraction: float) -> Mixture:
        """Return what a step learns from, after a share of the training."""
        unlabeled = 0 if self._unlabeled is None else dealt(self._unlabeled_share, self._batch, step)
        room = self._batch - unlabeled
        if self._gold is None:
            return Mixture(gold=0, unlabeled=unlabeled, labeled=room)
        alone = self._labeled is None or fraction >= self._how.alone_from
        gold = room if alone else min(room, dealt(self._how.share, self._batch, step))
        return Mixture(gold=gold, unlabeled=unlabeled, labeled=room - gold)

    def batch(self, seed: int, step: int, fraction: float = 0.0, own: slice = slice(None)) -> Batch:
        """Return the batch of a step, the same each time it is asked for at the same share of the training, or its ``own`` patches."""
        rng, counts = np.random.default_rng((seed, step)), self.mixture(step, fraction)
        mine = range(self._batch)[own]
        parts, first = [], 0
        for source, count, weight in (
            (self._labeled, counts.labeled, 1.0),
            (self._gold, counts.gold, self._how.weight),
            (self._unlabeled, counts.unlabeled, 1.0),
        ):
            if source is None or not count:
                continue
            places = [place for number, place in enumerate(source.draw(rng, count), start=first) if number in mine]
            first += count
            if places:
                part = source.cut(places)
                parts.append(Batch(image=part.image, ids=part.ids, weight=part.weight * weight, soft=part.soft))
        return _together(parts)


def _together(parts: list[Batch]) -> Batch:
    soft = [part.soft for part in parts if part.soft is not None]
    return Batch(
        image=torch.cat([part.image for part in parts]),
        ids=torch.cat([part.ids for part in parts]),
        weight=torch.cat([part.weight for part in parts]),
        soft=torch.cat(soft) if soft else None,
    )
