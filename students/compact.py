"""Train a compact student from an archive's pseudo-labels, resumably, within a budget.

Importing this module costs no torch; calling `train` does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Unpack

from storage import Archive, ClassInfo, fingerprint
from students.errors import StudentFileError, WorkerError
from students.held_out import tell_of_other_patients
from students.learnt_cases import FoundCases, beside_marks, find_cases, hint_marks, named_channels
from students.lesson import Lesson
from students.several import SharedJob, devices_of, train_on_devices
from students.spec import NetworkPlan, StudentCard, StudentSpec, TrainProgress
from students.units import spacing_known

if TYPE_CHECKING:  # torch stays out until `train` is called
    from students.batches import BatchSource
    from students.data import PatchSource
    from students.team import Team

__all__ = ["StudentSpec", "TrainProgress", "TrainedStudent", "train"]

TRAINER = "2"
"""Raised whenever training from the same inputs gives other students, so that old ones are trained again."""

_UNKNOWN_HEARD = "1"
"""In the fingerprint of students whose labels have a map ``unknown``: raised whenever it is heard otherwise; others are as they were."""

_MEASURED_CASES = 32
"""Cases whose labels are looked at before training to see how large the objects are."""

_FREE = frozenset({"threads", "device", "checkpoint_seconds", "cache_bytes", "nnunet"})
"""Settings that say how to compute, not what, or are another kind's: changing them does not make another student."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedStudent:
    """A finished student."""

    path: Path
    """Folder with ``student.json`` and ``model.safetensors``."""
    card: StudentCard
    fresh: bool
    """False when the folder held this very student already, and nothing was done."""
    resumed: bool
    """True when an interrupted training was continued."""


def train(archive: Archive, *, gold: Sequence[str] = (), unlabeled: Sequence[str] = (), **lesson: Unpack[Lesson]) -> TrainedStudent:
    """Train a student, or continue an interrupted training, or return at once if this very student is finished.

    Args:
        archive: Where images and labels are read from; nothing is written to it.
        gold: Archive cases whose expert labels are learnt from instead, in the share and weight of ``spec.learning.gold``. Nobody is held
            out then, and the last weights are kept: agreement with pseudo-labels would choose those that copy the teacher's errors.
        unlabeled: Archive cases that teach consistency, without any label; heard where ``spec.learning.consistency`` is above 0.
        **lesson: See `students.lesson.Lesson`.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given, or gold that scores or sets thresholds.
        WorkerError: if one of several processes dies, of which there is one for each device where several are named.
    """
    spec, cases = lesson["spec"], lesson.get("cases")
    job = SharedJob(
        archive=archive.url,
        label_set=lesson["label_set"],
        classes=lesson["classes"],
        spec=spec,
        cases=None if cases is None else tuple(cases),
        case_weights=dict(lesson.get("case_weights") or {}),
        gold=tuple(gold),
        unlabeled=tuple(unlabeled),
    )
    folder = lesson["workdir"] / spec.name
    found, split, plan, asked = _prepared(archive, job, folder, lesson.get("progress"))
    finished = finished_card(folder, asked.mark)
    if finished is not None:
        return TrainedStudent(path=folder, card=finished, fresh=False, resumed=False)
    if len(devices_of(spec)) > 1:
        return _trained_by_others(archive, job, plan, asked)
    _set_threads(spec)
    return _train(archive, found, split, plan, asked)


def mark_of(archive: Archive, folder: Path, job: SharedJob) -> str:
    """Return the fingerprint that the card of a student of this job has, before anything is trained; its folder decides nothing."""
    return _prepared(archive, job, folder, None)[-1].mark


def _prepared(
    archive: Archive, job: SharedJob, folder: Path, progress: Callable[[TrainProgress], None] | None
) -> tuple["FoundCases", tuple[list[str], list[str]], NetworkPlan, "_Request"]:
    """Return the cases, the two sides of the split, the plan, and what was asked."""
    spec = job.spec
    found = find_cases(archive, job.label_set, job.cases, job.case_weights, job.gold, job.unlabeled if spec.learning.consistency else ())
    plan, training, held_out, mark = _prepare(archive, found, job.label_set, job.classes, spec, job.case_weights)
    return found, (training, held_out), plan, _Request(job.label_set, job.classes, spec, folder, mark, job.case_weights, progress)


def _trained_by_others(archive: Archive, job: SharedJob, plan: NetworkPlan, asked: "_Request") -> TrainedStudent:
    """Have one process on each device train the student."""
    from students.checkpoint import load_checkpoint

    resumed = load_checkpoint(asked.folder, asked.mark) is not None
    train_on_devices(archive, job, asked.folder, batch=plan.batch, progress=asked.progress)
    card = finished_card(asked.folder, asked.mark)
    if card is None:
        message = f"student {job.spec.name}: the processes ended well, but {asked.folder} holds no student of these inputs. Run again."
        raise WorkerError(message)
    return TrainedStudent(path=asked.folder, card=card, fresh=True, resumed=resumed)


def train_together(
    archive: Archive, job: SharedJob, folder: Path, team: "Team", progress: Callable[[TrainProgress], None] | None
) -> TrainedStudent:
    """Train as one of several processes; the chief among them writes the student.

    Args:
        archive: Of the job.
        job: What `train` was asked.
        folder: Of the student.
        team: This process among them.
        progress: Called about once a second.
    """
    found, split, plan, asked = _prepared(archive, job, folder, progress)
    return _train(archive, found, split, plan, asked, team)


@dataclass(frozen=True, slots=True)
class _Request:
    """What `train` was asked, with where the answer goes."""

    label_set: str
    classes: tuple[ClassInfo, ...]
    spec: StudentSpec
    folder: Path
    mark: str
    weights: Mapping[str, float]
    progress: Callable[[TrainProgress], None] | None


def _set_threads(spec: StudentSpec) -> None:
    import torch

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)


def _prepare(
    archive: Archive,
    found: FoundCases,
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    weights: Mapping[str, float],
) -> tuple[NetworkPlan, list[str], list[str], str]:
    """Return the plan, the two sides of the split, and the fingerprint of everything that decides the result."""
    from students.nets import choose_dimensions, plan_network
    from students.splits import split_by_name, split_by_patient

    records = [*found.labeled, *found.gold]
    shapes = [record.shape_czyx[1:] for record in records]
    flat = choose_dimensions(spec, shapes) == "2d"
    plan = plan_network(
        spec,
        shapes_zyx=shapes,
        spacings_zyx_mm=[record.geometry.spacing_zyx_mm for record in records],
        channels=records[0].shape_czyx[0],
        classes=len(classes),
        object_px=_object_px(archive, found, label_set, classes) if flat else None,
        hints=0 if spec.hints is None else len(classes),
    )
    training, held_out = split_by_name(found.labeled, () if found.gold else spec.held_out)
    if not held_out:
        training, held_out = split_by_patient(found.labeled, 0.0 if found.gold else spec.validation_fraction, spec.seed)
    labels = [archive[record.id].labels(label_set) for record in found.labeled]
    unknown = {"unknown": _UNKNOWN_HEARD} if any("unknown" in each.maps for each in labels) else {}
    mark = fingerprint(
        trainer=TRAINER,
        spec=spec.model_dump(exclude=set(_FREE), mode="json"),
        plan=plan.model_dump(mode="json"),
        classes=[(info.id, info.name) for info in classes],
        cases=[(r.id, r.fingerprint, o.history.fingerprint, weights.get(r.id, 1.0)) for r, o in zip(found.labeled, labels, strict=True)],
        label_set=label_set,
        **unknown,
        **({"channels": [each.name for each in channels]} if (channels := named_channels(found.every)) else {}),
        **beside_marks(archive, found),
        **hint_marks(archive, found, spec),
    )
    return plan, training, held_out, mark


def _object_px(archive: Archive, among: FoundCases, label_set: str, classes: tuple[ClassInfo, ...]) -> float | None:
    """Return how thick the thinnest class is in a slice, from a sample of the training labels; None where no label has an object."""
    from students.data import thickness_px
    from students.validation import spread

    name = label_set if among.labeled else "gold"
    cases = spread([record.id for record in among.labeled or among.gold], _MEASURED_CASES)
    found = [thickness_px(archive[case].labels(name).read(), [info.id for info in classes]) for case in cases]
    per_class = [[thickness for one in found if (thickness := one.get(info.id)) is not None] for info in classes]
    return min((median(known) for known in per_class if known), default=None)


def finished_card(folder: Path, mark: str) -> StudentCard | None:
    """Return the card of a student trained from the very same inputs, if that is what is there."""
    from students.checkpoint import read_card

    try:
        card = read_card(folder)
    except StudentFileError:
        return None
    return card if card.fingerprint == mark else None


def _train(
    archive: Archive, found: FoundCases, split: tuple[list[str], list[str]], plan: NetworkPlan, asked: _Request, team: "Team | None" = None
) -> TrainedStudent:
    from students.checkpoint import save_student
    from students.splits import split_by_name
    from students.team import ALONE
    from students.train import Training

    _, held_out = split
    if not found.gold:
        watched = {record.patient for record in found.labeled if record.id in frozenset(held_out)}
        tell_of_other_patients(asked.spec, watched, split_by_name(found.labeled, asked.spec.held_out)[1])
    run = Training(
        asked.spec,
        plan,
        source=_batches(archive, found, split[0], plan, asked),
        held_out=_source(archive, held_out, asked.label_set, plan, asked, 0) if held_out else None,
        folder=asked.folder,
        fingerprint=asked.mark,
        team=team or ALONE,
    )
    run.run(asked.progress)
    card = _card(run.spec, plan, found, split, asked).model_copy(
        update={
            "parameters": sum(p.numel() for p in run.network.parameters()),
            "steps": run.state.step,
            "seconds": round(run.state.seconds, 3),
            "agreement": run.state.best,
            "stopped": run.state.stopped,
            "history": tuple(run.state.history),
        }
    )
    if team is None or team.is_chief:
        save_student(asked.folder, card, run.weights)
    return TrainedStudent(path=asked.folder, card=card, fresh=True, resumed=run.resumed)


def _batches(archive: Archive, found: FoundCases, training: list[str], plan: NetworkPlan, asked: _Request) -> "BatchSource":
    """Return where batches come from: one source, or several in their shares; volumes are kept ready by the number of their cases."""
    from students.mixing import MixedSource

    if not found.gold and not found.unlabeled:
        return _source(archive, training, asked.label_set, plan, asked, asked.spec.cache_bytes)

    def part(cases: list[str], label_set: str | None) -> "PatchSource | None":
        room = asked.spec.cache_bytes * len(cases) // len(found.every)
        return _source(archive, cases, label_set, plan, asked, room) if cases else None

    return MixedSource(
        batch=plan.batch,
        labeled=part(training, asked.label_set),
        gold=part([record.id for record in found.gold], "gold"),
        unlabeled=part([record.id for record in found.unlabeled], None),
        how=asked.spec.learning.gold,
        unlabeled_share=asked.spec.learning.unlabeled_share,
    )


def _source(
    archive: Archive, cases: list[str], label_set: str | None, plan: NetworkPlan, asked: _Request, cache_bytes: int
) -> "PatchSource":
    from students.data import PatchSource

    return PatchSource(
        archive,
        cases=cases,
        label_set=label_set,
        classes=asked.classes,
        plan=plan,
        cache_bytes=cache_bytes,
        weights=asked.weights,
        soft=asked.spec.learning.needs_probability,
        hints=asked.spec.hints,
    )


def _card(spec: StudentSpec, plan: NetworkPlan, found: FoundCases, split: tuple[list[str], list[str]], asked: _Request) -> StudentCard:
    """Return the card as far as it is known before training."""
    return StudentCard(
        name=spec.name,
        spec=spec,
        plan=plan,
        classes=asked.classes,
        label_set=asked.label_set,
        training_cases=tuple(split[0]),
        validation_cases=tuple(split[1]),
        training_patients=tuple(sorted({record.patient for record in found.every})),
        fingerprint=asked.mark,
        parameters=0,
        steps=0,
        seconds=0.0,
        agreement=None,
        stopped="budget",
        history=(),
        gold_cases=tuple(record.id for record in found.gold),
        unlabeled_cases=tuple(record.id for record in found.unlabeled),
        channels=named_channels(found.every),
        spacing_known=spacing_known(found.every),
    )
