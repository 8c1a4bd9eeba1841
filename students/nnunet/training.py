"""One training by nnU-Net's trainer, from its own checkpoint where there is one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from students.devices import best_device
from students.nnunet.dataset import chosen_fold, configuration_name
from students.nnunet.job import Job, Places
from students.nnunet.planning import plans_file
from students.nnunet.trainer.archive_trainer import nnUNetTrainerArchive
from students.process import Advance

LATEST = "checkpoint_latest.pth"
FINAL = "checkpoint_final.pth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A training that has ended."""

    trainer: nnUNetTrainerArchive
    configuration: str
    fold: int | str


def train(job: Job, places: Places, say: Callable[[Advance], None]) -> Trained:
    """Train until epochs or budget are spent; what was interrupted goes on after its last whole epoch.

    Args:
        job: What is learnt.
        places: Where it was laid out and preprocessed.
        say: Told about once a second how far it is.
    """
    plans = json.loads(plans_file(job, places).read_text(encoding="utf-8"))
    configuration = configuration_name(job, PlansManager(plans).available_configurations)
    fold = chosen_fold(job, json.loads((places.preprocessed / "splits_final.json").read_text(encoding="utf-8")))
    content = json.loads((places.preprocessed / "dataset.json").read_text(encoding="utf-8"))
    asked = plans | {"continue_training": False}
    trainer, resumed = _restored(lambda: nnUNetTrainerArchive(asked, configuration, fold, content, best_device(job.spec.device)), say)
    if not (Path(trainer.output_folder) / FINAL).exists():
        trainer.report = lambda step, loss: say(_advance(trainer, step, loss, resumed=resumed))
        trainer.run_training()
    return Trained(trainer=trainer, configuration=configuration, fold=fold)


def agreement(trainer: nnUNetTrainerArchive) -> float | None:
    """Return nnU-Net's moving average of the Dice with held-out labels, in patches; None where nobody is held out."""
    values = trainer.logger.get_value("ema_fg_dice", step=None)
    return None if trainer.fold == "all" or not values or values[-1] != values[-1] else round(float(values[-1]), 6)


def _restored(make: Callable[[], nnUNetTrainerArchive], say: Callable[[Advance], None]) -> tuple[nnUNetTrainerArchive, bool]:
    """Return a trainer, and whether it goes on from a checkpoint; one that cannot be read costs the work in it, not the run, and is told of."""
    trainer = _initialized(make)
    for name in (FINAL, LATEST):
        path = Path(trainer.output_folder) / name
        if path.is_file():
            try:
                trainer.load_checkpoint(str(path))
            except Exception as error:  # noqa: BLE001 - torch raises anything from EOFError to UnpicklingError
                path.unlink()
                trainer = _initialized(make)  # the other one may have taken epoch and curves of what it could not read to the end
                goes_on = name == FINAL and (path.parent / LATEST).is_file()
                instead = f"goes on from {LATEST}" if goes_on else "begins anew, at epoch 0"
                trainer.print_to_log_file(
                    f"WARNING: {path} cannot be read ({type(error).__name__}: {error}). It is removed, and training {instead}."
                )
                say(Advance(phase=f"{name} cannot be read: training {instead}"))
            else:
                return trainer, True
    return trainer, False


def _initialized(make: Callable[[], nnUNetTrainerArchive]) -> nnUNetTrainerArchive:
    trainer = make()
    trainer.initialize()
    return trainer


def _advance(trainer: nnUNetTrainerArchive, step: int, loss: float, *, resumed: bool) -> Advance:
    now = step / (trainer.num_epochs * trainer.num_iterations_per_epoch)
    return Advance(
        step=step,
        fraction=min(1.0, max(now, trainer.fraction)),
        seconds=trainer.seconds,
        loss=loss,
        lr=float(trainer.optimizer.param_groups[0]["lr"]),
        agreement=agreement(trainer),
        resumed=resumed,
    )
