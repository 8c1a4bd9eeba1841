"""Method. A small U-Net learns from pseudo-labels by masked cross-entropy and Dice.

AdamW with a polynomial decay over the budget, bf16 where the machine has it, and an exponential moving average of the weights, which
is what is validated and kept. Held-out patients say when to stop, by agreement with *their* pseudo-labels; no gold is read.
A batch depends on (seed, step) alone, so a resumed run continues as if nothing had happened.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distill.quality import dice_per_class
from students.augment import SLICES, Augmentation, augment
from students.batches import Batch, BatchSource, batches_ahead
from students.course import Course, Progressing
from students.data import PatchSource
from students.devices import best_device, half_precision_pays
from students.losses import consistency_loss, segmentation_loss, targets_from_ids, targets_from_probability
from students.nets import build_network
from students.spec import NetworkPlan, StudentSpec, TrainProgress
from students.team import ALONE, Team
from students.validation import TRIALS, Looks, looks_in_time, looks_wanted, spread
from students.whole_volume import class_probability

_GRADIENT_NORM = 12.0
"""nnU-Net's clip; it only catches the occasional spike."""

_PATIENT_FROM = 0.5
"""Patience begins in the second half of the schedule: while the rate is high, agreement jumps, and it rises most when the rate falls."""

_RISEN = 0.4
"""Share of the training after which consistency has its full weight; Laine and Aila 2017 let it rise as ``exp(-5 (1 - t)^2)``."""

_LEARNT = 0.3
"""An agreement below this is a network that has not found the organ yet: no reason to stop looking."""

_GAIN = 1e-4
"""A smaller rise of agreement does not count as better."""

_NOISE = 0.03
"""In 2D, later weights are kept in the second half if agreement is that near the highest: it is that of one or two patients as a rule,
and what the falling rate brings is worth more. (Heart MR, 9 patients: the weights of step 209 of 500 at agreement 0.865 gave Dice 0.73.)"""


@dataclass(slots=True, kw_only=True)
class TrainingState(Progressing):
    """What changes during training and must survive a kill."""

    best: float | None = None
    best_weights: dict[str, Tensor] | None = None
    waited: int = 0
    """Validations in the second half since agreement last rose."""
    risen: float | None = None
    """Agreement when it last rose: what the next rise is measured from. In 2D, later weights may be kept without a rise."""
    looks: tuple[int, int] | None = None
    """How often and at how many cases, once it is settled."""


class Training:
    """One training run; `run` it, then take `weights`."""

    def __init__(
        self,
        spec: StudentSpec,
        plan: NetworkPlan,
        *,
        source: BatchSource,
        held_out: PatchSource | None,
        folder: Path,
        fingerprint: str,
        team: Team = ALONE,
    ) -> None:
        self.spec, self.plan = spec, plan
        self._source, self._held_out = source, held_out
        self._team, self._own = team, team.part(plan.batch)
        self._device = best_device(team.device or spec.device)
        torch.manual_seed(spec.seed)
        self.network = build_network(plan).to(self._device)
        self._joined = team.joined(self.network)
        self._average: nn.Module = copy.deepcopy(self.network).requires_grad_(requires_grad=False).eval()
        self._optimiser = torch.optim.AdamW(self.network.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)
        wanted = spec.mixed_precision
        self._half = half_precision_pays(self._device) if wanted is None else wanted
        self.state = TrainingState()
        self._course = Course(
            spec,
            self.state,
            network=self.network,
            average=self._average,
            optimiser=self._optimiser,
            clip_norm=_GRADIENT_NORM,
            remedy=f"Lower lr (now {spec.lr}), or set mixed_precision to false.",
            folder=folder,
            fingerprint=fingerprint,
        )
        self._wanted = looks_wanted(spec, plan, len(held_out.cases) if held_out else 0, held_out.depth() if held_out else 1)

    @property
    def resumed(self) -> bool:
        """Whether this is an interrupted training that was continued."""
        return self._course.resumed

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averaged weights of the best validation, or the last ones when nobody was held out."""
        if self.state.best_weights is not None:
            return self.state.best_weights
        return self._averaged()

    def _averaged(self) -> dict[str, Tensor]:
        """Return a copy of the averaged weights, each once (DynUNet's state lists most of them under two names)."""
        return {name: weight.detach().cpu().clone() for name, weight in self._average.named_parameters()}

    def run(self, progress: Callable[[TrainProgress], None] | None = None) -> None:
        """Train until the budget, the steps or the patience run out, continuing from a checkpoint of the same inputs if there is one."""
        self._course.restore()
        with batches_ahead(self._drawn, self.state.step, self._fraction_at) as batches:
            self._course.run(lambda: self._learn(next(batches)), self._judge, progress, writes=self._team.is_chief)

    def _judge(self) -> None:
        """Look at held-out patients when that is due, and stop when it is time; the chief does, and tells the others."""
        if self._team.is_chief:
            self._validate_when_due()
            self._decide()
        self.state.seconds, self.state.stopped = self._team.told(self.state.seconds, self.state.stopped)

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, by time or by steps, whichever is further."""
        return self._course.fraction

    def _fraction_at(self, step: int) -> float:
        """Return the share of the training that a step comes after: known of a training of so many steps, else what is spent by now."""
        return self.fraction if self.spec.budget_seconds is not None or self.spec.steps is None else min(1.0, step / self.spec.steps)

    def _learn(self, batch: Batch) -> float:
        """Take one optimiser step and return its loss."""
        rate = self.spec.lr * (1 - self.fraction) ** 0.9
        for group in self._optimiser.param_groups:
            group["lr"] = max(rate, self.spec.lr * 1e-3)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._joined(self._flat(batch.image))
        loss = self._loss(batch, logits)
        self._optimiser.zero_grad(set_to_none=True)
        self._team.shared(loss).backward()
        self._course.apply(float(loss.detach()))
        return float(loss.detach())

    def _flat(self, image: Tensor) -> Tensor:
        """Return a batch of images as the network takes them: without the axis of slices in 2D."""
        return image.squeeze(2) if self.plan.dimensions == "2d" else image

    def _loss(self, batch: Batch, logits: Tensor) -> Tensor:
        """Return what this batch says about the network."""
        how = self.spec.learning
        ids = batch.ids.squeeze(1) if self.plan.dimensions == "2d" else batch.ids
        if batch.soft is None:
            targets, weights = targets_from_ids(ids, self.plan.outputs)
        else:
            targets, weights = targets_from_probability(ids, self._flat(batch.soft), how)
        weights = weights * batch.weight.view(-1, *[1] * (weights.ndim - 1))
        loss = segmentation_loss(logits, targets, weights, how.loss, self._team.total)
        return loss + self._consistency(batch, logits, weights) if how.consistency else loss

    def _consistency(self, batch: Batch, logits: Tensor, weights: Tensor) -> Tensor:
        """Return the distance to the averaged network's answers to the plain image, where no label says anything; its weight rises slowly."""
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            other = self._average(self._flat(batch.image if batch.plain is None else batch.plain))
        weight = self.spec.learning.consistency * math.exp(-5 * (1 - min(1.0, self.fraction / _RISEN)) ** 2)
        return weight * consistency_loss(logits, other, (weights == 0).to(weights.dtype), self._team.total)

    def _drawn(self, step: int, fraction: float) -> Batch:
        """Return the batch of a step on the device, augmented there; asked for by the thread that reads, while the network computes."""
        batch = self._source.batch(self.spec.seed, step, fraction, self._own)
        here = Batch(
            image=batch.image.to(self._device),
            ids=batch.ids.to(self._device),
            weight=batch.weight.to(self._device),
            soft=None if batch.soft is None else batch.soft.to(self._device),
        )
        if not self.spec.augment:
            return here
        generator = torch.Generator().manual_seed((self.spec.seed << 32) + step)
        how, hints = SLICES if self.plan.dimensions == "2d" else Augmentation(), self.plan.hints * (1 + 2 * self.plan.neighbours)
        return augment(here, self.plan.spacing_zyx_mm, generator, how, hints, items=self.plan.batch, own=self._own)

    def _is_due(self) -> bool:
        """Tell whether the next look is due."""
        times = self._looks().times
        return int(self.fraction * times) > int(self.state.looked_at * times)

    def _validate_when_due(self) -> None:
        if not self._is_due():
            return
        tried = self._settle()
        if tried:
            self._course.tick()
            if not self._is_due():
                return
        agreement = self._agreement(tried)
        self._course.tick()
        self.state.looked_at = self.fraction
        self._course.note(agreement)
        self._keep_if_best(agreement)

    def _agreement(self, tried: Mapping[str, list[float]]) -> float | None:
        """Return the mean foreground Dice of the averaged network with held-out pseudo-labels, ignored voxels left out.

        Args:
            tried: Case -> Dice of each class, of cases that these very weights answered for already.
        """
        if self._held_out is None:
            return None
        cases = spread(self._held_out.cases, self._looks().cases)
        found = [dice for case in cases for dice in (tried.get(case) or self._dice(self._held_out, case))]
        known = [value for value in found if not np.isnan(value)]
        return float(np.mean(known)) if known else None

    def _dice(self, held_out: PatchSource, case: str) -> list[float]:
        """Return the Dice of each class in one held-out case."""
        image, wanted, spacing = held_out.whole(case)
        probability = class_probability(self._average, self.plan, image, spacing, device=self._device)
        return list(dice_per_class(probability.argmax(0).astype(np.uint8), wanted, range(1, self.plan.outputs)).values())

    def _looks(self) -> Looks:
        """Return how often and at how many cases this training looks, as far as it is known now."""
        if self.state.looks is not None:
            return Looks(times=self.state.looks[0], cases=self.state.looks[1])
        return self._wanted

    def _settle(self) -> dict[str, list[float]]:
        """Before the first look of a training on time, see what a case costs; steps alone decide for a training of so many steps.

        Returns:
            Case -> Dice of each class, of the cases that were tried: one where that showed it to be dear, else two.
        """
        tried: dict[str, list[float]] = {}
        if self._held_out is None or self.state.looks is not None or self.spec.steps is not None or self.spec.budget_seconds is None:
            return tried
        found = self._wanted
        for number in range(TRIALS):
            # Of the cases that the look itself would take next; the first of them is the same for every number of cases.
            coming = spread(self._held_out.cases, found.cases)
            if number >= len(coming) or (number and found.times * found.cases <= TRIALS):
                break
            began = time.monotonic()
            tried[coming[number]] = self._dice(self._held_out, coming[number])
            found = looks_in_time(self._wanted, time.monotonic() - began, self.spec.budget_seconds)
        self.state.looks = (found.times, found.cases)
        return tried

    def _keep_if_best(self, agreement: float | None) -> None:
        if agreement is None:
            return
        top = max(point.agreement or 0.0 for point in self.state.history)
        second_half = self.fraction >= _PATIENT_FROM
        late = self.plan.dimensions == "2d" and second_half
        if self.state.best is None or agreement > self.state.best + _GAIN or (late and agreement >= top - _NOISE):
            self.state.best = agreement
            self.state.best_weights = self._averaged()
        if self.state.risen is None or agreement > self.state.risen + _GAIN:
            self.state.risen, self.state.waited = agreement, 0
        elif second_half:
            self.state.waited += 1

    def _decide(self) -> None:
        """Say why training ends, once it does."""
        if self.spec.steps is not None and self.state.step >= self.spec.steps:
            self.state.stopped = "steps"
        elif self.fraction >= 1:
            self.state.stopped = "budget"
        elif self.state.waited >= self.spec.patience and self.fraction >= _PATIENT_FROM and (self.state.best or 0.0) >= _LEARNT:
            self.state.stopped = "early"
