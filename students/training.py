"""Train a student of any kind. Importing this costs no torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.label_plan import LabelPlan
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
    asking: LabelPlan | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedStudent:
    """Train a student of the kind that ``spec`` names, or continue, or return at once if it is finished.

    Args: as of `students.compact.train`, and ``asking``, how the teacher labels, for a promptable student: that looks at the images of ``cases``
    alone, whatever the label set.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given, or no teacher to distil.
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
        learns = "nnU-Net learns from pseudo-labels" if spec.kind == "nnunet" else "a promptable student learns from images"
        message = f"student {spec.name}: {learns} alone. Train a compact student on gold beside them, or leave gold out."
        raise TrainingError(message)
    if spec.kind == "promptable":
        from students.promptable.training import train as distil

        if asking is None:
            message = f"student {spec.name}: a promptable student is distilled from a teacher, but none was named."
            raise TrainingError(message)
        return distil(archive, classes=classes, spec=spec, asking=asking, workdir=workdir, cases=cases, progress=progress)
    from students.nnunet.launch import train as train_nnunet

    return train_nnunet(archive, **asked)


def trainer_version(spec: StudentSpec) -> str:
    """Return the version of the trainer of this kind: another one gives other students from the same inputs."""
    if spec.kind == "promptable":
        from students.promptable.training import TRAINER as DISTILLER

        return f"promptable-{DISTILLER}"
    if spec.kind == "nnunet":
        from students.nnunet.launch import TRAINER

        return f"nnunet-{TRAINER}"
    return compact.TRAINER
