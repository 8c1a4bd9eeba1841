"""Train a compact student from an archive's pseudo-labels, resumably, within a budget.

Importing this module costs no torch; calling `train` does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from storage import Archive, CaseRecord, ClassInfo, fingerprint
from students.errors import StudentFileError, TrainingError
from students.spec import NetworkPlan, StudentCard, StudentSpec, TrainProgress

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


def train(
    archive: Archive,
    *,
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    workdir: Path,
    cases: Sequence[str] | None = None,
    case_weights: Mapping[str, float] | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainedStudent:
    """Train a student, or continue an interrupted training, or return at once if this very student is finished.

    Args:
        archive: Where images and labels are read from; nothing is written to it.
        label_set: What to learn, ``pseudo/r1`` for example.
        classes: What the student tells apart, with the ids its label sets use.
        spec: What is asked for.
        workdir: The student becomes the folder ``workdir / spec.name``.
        cases: Cases to learn from; by default every ``archive`` case that carries the label set. Training on ``calibration``
            cases (a few-gold arm) must be asked for by name here; ``test`` cases are always refused.
        case_weights: How much a case counts, 1 where not given; a case of weight 0 is left out.
        progress: Called about once a second.

    Raises:
        TrainingError: if there is nothing to learn from, or a test case was given.
    """
    records = chosen_records(archive, label_set, cases, case_weights or {})
    plan, training, held_out, mark = _prepare(archive, records, label_set, classes, spec, case_weights or {})
    folder = workdir / spec.name
    finished = finished_card(folder, mark)
    if finished is not None:
        return TrainedStudent(path=folder, card=finished, fresh=False, resumed=False)
    _set_threads(spec)
    return _train(
        archive, records, (training, held_out), plan, _Request(label_set, classes, spec, folder, mark, case_weights or {}, progress)
    )


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


def chosen_records(archive: Archive, label_set: str, cases: Sequence[str] | None, weights: Mapping[str, float]) -> list[CaseRecord]:
    """Return the records to learn from, sorted by id."""
    if cases is None:
        records = list(archive.cases(part="archive", with_labels=label_set))
    else:
        records = sorted((archive[case].record for case in dict.fromkeys(cases)), key=lambda record: record.id)
    records = [record for record in records if weights.get(record.id, 1.0) > 0]
    tests = [record.id for record in records if record.part == "test"]
    if tests:
        message = (
            f"case {tests[0]}: it belongs to the test part ({len(tests)} such cases were given). Test cases only score; leave them out."
        )
        raise TrainingError(message)
    if not records:
        message = f"no case to learn from: no archive case carries the label set {label_set!r}. Run the step that writes it first."
        raise TrainingError(message)
    channels = {record.shape_czyx[0] for record in records}
    if len(channels) > 1:
        message = f"cases have different numbers of channels {sorted(channels)}: train one student for each."
        raise TrainingError(message)
    return records


def _prepare(
    archive: Archive,
    records: list[CaseRecord],
    label_set: str,
    classes: tuple[ClassInfo, ...],
    spec: StudentSpec,
    weights: Mapping[str, float],
) -> tuple[NetworkPlan, list[str], list[str], str]:
    """Return the plan, the two sides of the split, and the fingerprint of everything that decides the result."""
    from students.data import split_by_patient
    from students.nets import choose_dimensions, plan_network

    shapes = [record.shape_czyx[1:] for record in records]
    flat = choose_dimensions(spec, shapes) == "2d"
    plan = plan_network(
        spec,
        shapes_zyx=shapes,
        spacings_zyx_mm=[record.geometry.spacing_zyx_mm for record in records],
        channels=records[0].shape_czyx[0],
        classes=len(classes),
        object_px=_object_px(archive, records, label_set, classes) if flat else None,
    )
    training, held_out = split_by_patient(records, spec.validation_fraction, spec.seed)
    labels = [archive[record.id].labels(label_set) for record in records]
    unknown = {"unknown": _UNKNOWN_HEARD} if any("unknown" in each.maps for each in labels) else {}
    mark = fingerprint(
        trainer=TRAINER,
        spec=spec.model_dump(exclude=set(_FREE), mode="json"),
        plan=plan.model_dump(mode="json"),
        classes=[(info.id, info.name) for info in classes],
        cases=[(r.id, r.fingerprint, own.history.fingerprint, weights.get(r.id, 1.0)) for r, own in zip(records, labels, strict=True)],
        label_set=label_set,
        **unknown,
    )
    return plan, training, held_out, mark


def _object_px(archive: Archive, records: list[CaseRecord], label_set: str, classes: tuple[ClassInfo, ...]) -> float | None:
    """Return how thick the thinnest class is in a slice, from a sample of the training labels; None where no label has an object."""
    from students.data import thickness_px
    from students.validation import spread

    cases = spread([record.id for record in records], _MEASURED_CASES)
    found = [thickness_px(archive[case].labels(label_set).read(), [info.id for info in classes]) for case in cases]
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
    archive: Archive, records: list[CaseRecord], split: tuple[list[str], list[str]], plan: NetworkPlan, asked: _Request
) -> TrainedStudent:
    from students.checkpoint import save_student
    from students.data import PatchSource
    from students.train import Training

    def source(cases: list[str], cache_bytes: int) -> PatchSource:
        return PatchSource(
            archive,
            cases=cases,
            label_set=asked.label_set,
            classes=asked.classes,
            plan=plan,
            cache_bytes=cache_bytes,
            weights=asked.weights,
        )

    training, held_out = split
    run = Training(
        asked.spec,
        plan,
        source=source(training, asked.spec.cache_bytes),
        held_out=source(held_out, 0) if held_out else None,
        folder=asked.folder,
        fingerprint=asked.mark,
    )
    run.run(asked.progress)
    card = _card(run.spec, plan, records, split, asked).model_copy(
        update={
            "parameters": sum(p.numel() for p in run.network.parameters()),
            "steps": run.state.step,
            "seconds": round(run.state.seconds, 3),
            "agreement": run.state.best,
            "stopped": run.state.stopped,
            "history": tuple(run.state.history),
        }
    )
    save_student(asked.folder, card, run.weights)
    return TrainedStudent(path=asked.folder, card=card, fresh=True, resumed=run.resumed)


def _card(
    spec: StudentSpec, plan: NetworkPlan, records: list[CaseRecord], split: tuple[list[str], list[str]], asked: _Request
) -> StudentCard:
    """Return the card as far as it is known before training."""
    return StudentCard(
        name=spec.name,
        spec=spec,
        plan=plan,
        classes=asked.classes,
        label_set=asked.label_set,
        training_cases=tuple(split[0]),
        validation_cases=tuple(split[1]),
        training_patients=tuple(sorted({record.patient for record in records})),
        fingerprint=asked.mark,
        parameters=0,
        steps=0,
        seconds=0.0,
        agreement=None,
        stopped="budget",
        history=(),
    )
