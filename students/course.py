"""Method. The course of any training of ours: steps until a budget is spent, an average of the weights, a state that outlives the process.

The average of the weights moves a little at each step, and it is what is judged and kept. A step without a finite gradient is skipped. What a step learns
from, and when the student is looked at, is the business of `students.train` and `students.promptable.distilling`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from students.checkpoint import load_checkpoint, save_checkpoint
from students.errors import TrainingError
from students.spec import HistoryPoint, StudentSpec, TrainProgress
from students.team import Stopped

EMA_DECAY = 0.99
"""About the last hundred steps; shorter at the start. Budgets here are a few thousand steps."""

_SKIPS = 20
"""A few steps without a finite gradient are bf16's bad luck; this many in a row are a broken network."""


@dataclass(slots=True, kw_only=True)
class Progressing:
    """What changes in every training and must survive a kill."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    """Steps in a row whose gradient was not finite."""
    losses: list[float] = field(default_factory=list)
    """Since the last look."""
    history: list[HistoryPoint] = field(default_factory=list)
    looked_at: float = 0.0
    """Share of the budget that was spent at the last look."""
    stopped: Stopped = None


class Course:
    """One training: its clock, the average of its weights, and the checkpoint that it goes on from.

    Args:
        spec: What is asked for.
        state: What changes; it is changed in place.
        network: What learns.
        average: A copy of it, which follows.
        optimiser: Of the network.
        clip_norm: Gradients are cut to this norm.
        remedy: What to do about gradients that are not finite, as a sentence.
        folder: Where the checkpoint is kept.
        fingerprint: Of everything that decides the result.
    """

    def __init__(  # noqa: PLR0913 - by name
        self,
        spec: StudentSpec,
        state: Progressing,
        *,
        network: nn.Module,
        average: nn.Module,
        optimiser: torch.optim.Optimizer,
        clip_norm: float,
        remedy: str,
        folder: Path,
        fingerprint: str,
    ) -> None:
        self.spec, self.state = spec, state
        self._network, self._average, self._optimiser = network, average, optimiser
        pairs = [(own, new) for own, new in zip(average.parameters(), network.parameters(), strict=True) if new.requires_grad]
        self._following: list[Tensor] = [own for own, _ in pairs]
        self._learning: list[Tensor] = [new for _, new in pairs]
        self._clip_norm, self._remedy = clip_norm, remedy
        self._folder, self._fingerprint = folder, fingerprint
        self._started = time.monotonic()
        self.resumed = False

    @property
    def fraction(self) -> float:
        """Share of the budget that is spent, by time or by steps, whichever is further."""
        spent = [0.0]
        if self.spec.budget_seconds is not None:
            spent.append(self.state.seconds / self.spec.budget_seconds)
        if self.spec.steps is not None:
            spent.append(self.state.step / self.spec.steps)
        return min(1.0, max(spent))

    @property
    def rate(self) -> float:
        """The learning rate of the last step."""
        return float(self._optimiser.param_groups[0]["lr"])

    def run(
        self,
        learn: Callable[[], float],
        judge: Callable[[], None],
        progress: Callable[[TrainProgress], None] | None,
        *,
        writes: bool = True,
    ) -> None:
        """Take steps until the state says why training has stopped.

        Args:
            learn: Takes a step, and returns its loss.
            judge: Called after each step: looks at the student when that is due, and says whether training stops.
            progress: Called about once a second.
            writes: Whether this process is the one that writes checkpoints.
        """
        saved = told = self.state.seconds
        self._started = time.monotonic() - self.state.seconds
        while self.state.stopped is None:
            loss = learn()
            self.tick()
            judge()
            if progress and (self.state.seconds - told >= 1 or self.state.stopped):
                told = self.state.seconds
                progress(self._report(loss))
            if self.state.seconds - saved >= self.spec.checkpoint_seconds and self.state.stopped is None:
                if writes:
                    self.save()
                saved = self.state.seconds

    def tick(self) -> None:
        """Bring the seconds up to date."""
        self.state.seconds = time.monotonic() - self._started

    def apply(self, loss: float) -> None:
        """Step along the gradients, unless one of them is not finite: such a step is skipped, and a row of them ends the training.

        Raises:
            TrainingError: after too many in a row.
        """
        norm = float(nn.utils.clip_grad_norm_(self._learning, self._clip_norm))
        self.state.step += 1
        if math.isfinite(norm) and math.isfinite(loss):
            self._optimiser.step()
            self._follow()
            self.state.losses.append(loss)
            self.state.skipped = 0
            return
        self.state.skipped += 1
        if self.state.skipped >= _SKIPS:
            message = f"student {self.spec.name}: {_SKIPS} steps in a row gave a loss or gradient that is not finite (last loss {loss}, step {self.state.step}). {self._remedy}"
            raise TrainingError(message)

    def _follow(self) -> None:
        """Move the average a little towards the network."""
        decay = min(EMA_DECAY, (1 + self.state.step) / (10 + self.state.step))
        with torch.no_grad():
            torch._foreach_lerp_(self._following, self._learning, 1 - decay)

    def note(self, agreement: float | None) -> None:
        """Write down what a look found, with the mean loss of the steps since the one before."""
        self.state.history.append(
            HistoryPoint(
                step=self.state.step,
                seconds=self.state.seconds,
                loss=float(np.mean(self.state.losses)) if self.state.losses else None,
                lr=self.rate,
                agreement=agreement,
            )
        )
        self.state.losses = []

    def _report(self, loss: float) -> TrainProgress:
        return TrainProgress(
            step=self.state.step,
            fraction=self.fraction,
            seconds=self.state.seconds,
            loss=loss,
            lr=self.rate,
            agreement=self.state.history[-1].agreement if self.state.history else None,
            resumed=self.resumed,
        )

    def save(self) -> None:
        """Write the checkpoint."""
        state = {each.name: getattr(self.state, each.name) for each in fields(self.state)}
        state["history"] = [point.model_dump() for point in self.state.history]
        parts = {"network": self._network.state_dict(), "average": self._average.state_dict(), "optimiser": self._optimiser.state_dict()}
        save_checkpoint(self._folder, {"fingerprint": self._fingerprint, "state": state, **parts})

    def restore(self) -> None:
        """Go on from the checkpoint of a training of the same inputs, if there is one."""
        found = load_checkpoint(self._folder, self._fingerprint)
        if found is None:
            return
        self._network.load_state_dict(found["network"])
        self._average.load_state_dict(found["average"])
        self._optimiser.load_state_dict(found["optimiser"])
        history = [HistoryPoint.model_validate(point) for point in found["state"]["history"]]
        for name, value in (found["state"] | {"history": history}).items():
            setattr(self.state, name, value)
        self.resumed = True
