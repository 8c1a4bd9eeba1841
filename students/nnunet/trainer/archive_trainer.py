"""nnU-Net's trainer with what a bounded, resumable training needs. nnU-Net finds it by name, through ``nnUNet_extTrainer``.

What it adds: epochs, steps and budget from the recipe; weights of cases, soft targets; a checkpoint after each epoch that is whole or not there; progress.
What it leaves out: the best checkpoint (the last one is what nnU-Net uses), and the drawing of the network.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from students.learning import Learning
from students.nnunet.soft import SoftDataset, SoftTransforms, with_soft_targets
from students.nnunet.weighting import CaseWeightedLoss

ADAMW_DECAY = 1e-2
"""As of compact students, whose trainings are as short."""

REPORT_S = 1.0
"""A progress bar needs no more."""


class BudgetSpentError(Exception):
    """Ends nnU-Net's loop over epochs after one that spent the budget."""


class nnUNetTrainerArchive(nnUNetTrainer):  # noqa: N801 - as all of nnU-Net's trainers
    """Trains on what ``students.nnunet.dataset`` laid out; its settings stand in ``dataset.json`` under ``samdistill``."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int | str,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        told = dataset_json["samdistill"]
        self.num_epochs: int = told["epochs"]
        self.num_iterations_per_epoch: int = told["iterations"]
        self.num_val_iterations_per_epoch: int = told["looks"]
        self.adamw_lr: float | None = told["adamw_lr"]
        self.budget_s: float | None = told["budget_s"]
        self.mirror: bool = told["mirror"]
        self.seed: int = told["seed"]
        self.case_weights: dict[str, float] = told["weights"]
        self.learning = Learning.model_validate(told.get("learning", {}))
        self.save_every = 1
        self.logger.plot_progress_png = lambda _folder: None
        self.report: Callable[[int, float], None] | None = None
        """Called about once a second with step and loss."""
        self._reported = 0.0
        self._done_here = 0

    @property
    def seconds(self) -> float:
        """Time spent in epochs that are complete, those before a kill among them."""
        begun, ended = (self.logger.get_value(f"epoch_{which}_timestamps", step=None) for which in ("start", "end"))
        return float(sum(end - start for start, end in zip(begun, ended, strict=False)))

    @property
    def fraction(self) -> float:
        """Share of the epochs or the budget that is spent, whichever is further."""
        of_budget = self.seconds / self.budget_s if self.budget_s else 0.0
        of_epochs = float(self.current_epoch) / self.num_epochs
        return min(1.0, max(of_epochs, of_budget))

    def run_training(self) -> None:
        """Train until epochs or budget are spent."""
        try:
            super().run_training()
        except BudgetSpentError:
            self.on_train_end()

    def configure_optimizers(self) -> tuple[Any, Any]:
        """Return nnU-Net's SGD, or AdamW where a training is to be short; the rate falls alike."""
        if self.adamw_lr is None:
            return tuple(super().configure_optimizers())
        self.initial_lr = self.adamw_lr
        optimiser = torch.optim.AdamW(self.network.parameters(), self.adamw_lr, weight_decay=ADAMW_DECAY)
        return optimiser, PolyLRScheduler(optimiser, self.adamw_lr, self.num_epochs)

    def on_train_start(self) -> None:
        """Seed what draws patches: anew in each start, lest a resumed training see the first patches again."""
        number = self.seed + 1000 * self.current_epoch
        np.random.seed(number % 2**32)  # noqa: NPY002 - what nnU-Net draws with
        random.seed(number)
        torch.manual_seed(number)
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Let the rate follow the budget, where that is spent faster than the epochs."""
        super().on_train_epoch_start()
        self.lr_scheduler.step(self.fraction * self.num_epochs)
        self._done_here = 0

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take nnU-Net's step, each case by its weight."""
        if self.case_weights:
            self.loss.weights = [self.case_weights[str(key)] for key in batch["keys"]]
        try:
            taken: dict[str, Any] = super().train_step(batch)
        finally:
            self.loss.weights = None
        self._done_here += 1
        self._tell(float(taken["loss"]))
        return taken

    def on_epoch_end(self) -> None:
        """Keep the epoch, and stop if it spent the budget."""
        super().on_epoch_end()
        if self.current_epoch < self.num_epochs and self.fraction >= 1:
            raise BudgetSpentError

    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint that is there whole or not at all; the best one is not kept."""
        if filename.endswith("checkpoint_best.pth"):
            return
        partial = Path(f"{filename}.partial")
        super().save_checkpoint(str(partial))
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(filename)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802 - nnU-Net's name
        """Leave mirroring out where it was asked not to be done."""
        rotation, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirror:
            axes = self.inference_allowed_mirroring_axes = None
        return rotation, flat, size, axes

    def plot_network_architecture(self) -> None:
        """Draw nothing: the tool for it does not work with current versions of torch."""

    def _save_debug_information(self) -> None:
        """Keep nothing that names the machine."""

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Return nnU-Net's cases, with their probabilities where these are learnt from."""
        if self.learning.needs_probability:
            self.dataset_class = SoftDataset
        return tuple(super().get_tr_and_val_datasets())

    def get_training_transforms(self, *args: Any, **named: Any) -> Any:
        """Return nnU-Net's changes of a patch, which move probabilities too where these are learnt from."""
        return self._softened(super().get_training_transforms(*args, **named), keep=True)

    def get_validation_transforms(self, *args: Any, **named: Any) -> Any:
        """Return nnU-Net's own; held-out cases are judged by their class ids."""
        return self._softened(super().get_validation_transforms(*args, **named), keep=False)

    def _softened(self, changes: Any, *, keep: bool) -> Any:
        soft = self.learning.needs_probability
        return SoftTransforms(changes, len(self.label_manager.foreground_labels), keep=keep) if soft else changes

    def _build_loss(self) -> nn.Module:
        loss = super()._build_loss()
        if self.learning.needs_probability:
            loss = with_soft_targets(loss, self.learning, self.label_manager.ignore_label)
        return CaseWeightedLoss(loss)

    def _tell(self, loss: float) -> None:
        now = time.monotonic()
        if self.report and now - self._reported >= REPORT_S:
            self._reported = now
            self.report(self.current_epoch * self.num_iterations_per_epoch + self._done_here, loss)
