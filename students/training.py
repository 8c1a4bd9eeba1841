"""Train a student of any kind. Importing this costs no torch."""

from collections.abc import Sequence
from typing import Unpack

from distill.label_plan import LabelPlan
from storage import Archive
from students import compact
from students.compact import TrainedStudent
from students.errors import TrainingError
from students.lesson import Lesson
from students.spec import StudentSpec


def train(
    archive: Archive, *, gold: Sequence[str] = (), unlabeled: Sequence[str] = (), asking: LabelPlan | None = None, **lesson: Unpack[Lesson]
) -> TrainedStudent:
    """Train a student of the kind that ``spec`` names, or continue, or return at once if it is finished.

    Args:
        archive: As of `students.compact.train`.
        gold: As there, for compact students alone.
        unlabeled: As there.
        asking: How the teacher labels, for a promptable student: that looks at the images of ``cases`` alone, whatever the label set.
        **lesson: See `students.lesson.Lesson`.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given, or no teacher to distil.
        WorkerError: if the process that trains an nnU-Net ends without a student.
    """
    spec = lesson["spec"]
    if spec.kind == "compact":
        return compact.train(archive, **lesson, gold=gold, unlabeled=unlabeled)
    if gold or unlabeled:
        learns = "nnU-Net learns from pseudo-labels" if spec.kind == "nnunet" else "a promptable student learns from images"
        message = f"student {spec.name}: {learns} alone. Train a compact student on gold beside them, or leave gold out."
        raise TrainingError(message)
    if spec.kind == "promptable":
        from students.promptable.training import train as distil

        if asking is None:
            message = f"student {spec.name}: a promptable student is distilled from a teacher, but none was named."
            raise TrainingError(message)
        return distil(
            archive,
            classes=lesson["classes"],
            spec=spec,
            asking=asking,
            workdir=lesson["workdir"],
            cases=lesson.get("cases"),
            progress=lesson.get("progress"),
        )
    from students.nnunet.launch import train as train_nnunet

    return train_nnunet(archive, **lesson)


def trainer_version(spec: StudentSpec) -> str:
    """Return the version of the trainer of this kind: another one gives other students from the same inputs."""
    if spec.kind == "promptable":
        from students.promptable.training import TRAINER as DISTILLER

        return f"promptable-{DISTILLER}"
    if spec.kind == "nnunet":
        from students.nnunet.launch import TRAINER

        return f"nnunet-{TRAINER}"
    return compact.TRAINER
