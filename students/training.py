"""Train a student of any kind. Importing this costs no torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from storage import Archive, ClassInfo
from students import compact
from students.compact import TrainedStudent
from students.errors import TrainingError
from students.spec import StudentSpec, TrainProgress


def train(  # noqa: PLR0913 - all but the archive by name
    archive: Archive,
    *,
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    workdir: Path,
    cases: Sequence[str] | None = None,
    case_weights: Mapping[str, float] | None = None,
    gold: Sequence[str] = (),
    unlabeled: Sequence[str] = (),
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedStudent:
    """Train a student of the kind that ``spec`` names, or continue, or return at once if it is finished.

    Args: as of `students.compact.train`.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given.
        WorkerError: if the process that trains an nnU-Net ends without a student.
    """
    asked: dict[str, Any] = {
        "label_set": label_set,
        "classes": classes,
        "spec": spec,
        "workdir": workdir,
        "cases": cases,
        "case_weights": case_weights,
        "progress": progress,
    }
    if spec.kind == "compact":
        return compact.train(archive, **asked, gold=gold, unlabeled=unlabeled)
    if gold or unlabeled:
        message = (
            f"student {spec.name}: nnU-Net learns from pseudo-labels alone. Train a compact student on gold beside them, or leave gold out."
        )
        raise TrainingError(message)
    from students.nnunet.launch import train as train_nnunet

    return train_nnunet(archive, **asked)


def trainer_version(spec: StudentSpec) -> str:
    """Return the version of the trainer of this kind: another one gives other students from the same inputs."""
    if spec.kind == "nnunet":
        from students.nnunet.launch import TRAINER

        return f"nnunet-{TRAINER}"
    return compact.TRAINER
