"""What is at this path, can it be used, and what is in it: archives, students and checkpoints, as facts that a table or JSON shows."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from flows.errors import FlowError
from flows.results import CALIBRATE, LEDGER_STAGES, PSEUDO_SET, UNIT_NAMES
from storage import Archive

Kind = Literal["archive", "student", "checkpoint"]


class Refusal(BaseModel):
    """One file, row or unit without a result, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    reason: str
    message: str


class Inspection(BaseModel):
    """Facts about one archive, student or checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    path: str
    facts: dict[str, str | int | float | bool | None]
    refused: tuple[Refusal, ...] = ()


def inspect_path(path: str, *, catalog: str | None = None) -> Inspection:
    """Find out what is there and describe it.

    Raises:
        FlowError: if nothing is there.
    """
    place = Path(path)
    if (place / "student.json").is_file():
        return _student(place)
    if path == "bundled" or place.is_file():
        return _checkpoint(path)
    if "://" in path or place.is_dir():
        return _archive(path, catalog)
    message = f"there is nothing at {path}. Give an archive, a student's folder, a checkpoint file, or 'bundled'."
    raise FlowError(message)


def _archive(path: str, catalog: str | None) -> Inspection:
    archive = Archive.open(path, catalog=catalog, mode="r")
    records = archive.cases()
    facts: dict[str, str | int | float | bool | None] = {"cases": len(records)}
    for part in ("archive", "calibration", "test"):
        facts[f"cases in part {part}"] = sum(record.part == part for record in records)
    facts["patients"] = len({record.patient for record in records})
    facts["modalities"] = ", ".join(sorted({record.modality for record in records}))
    facts |= {f"label set {name}": count for name, count in sorted(archive.catalog.count_label_sets().items())}
    facts["students"] = ", ".join(student.name for student in archive.catalog.students())
    for stage, name in LEDGER_STAGES.items():
        things = "files" if stage == "ingest" else UNIT_NAMES[stage][1]
        facts[f"{stage} ({things})"] = ", ".join(f"{n:,} {state}" for state, n in _states(archive, stage, name).items()) or "none yet"
    if PSEUDO_SET in archive.catalog.count_label_sets():
        facts[f"verdicts of {PSEUDO_SET}"] = _verdicts(archive)
    return Inspection(kind="archive", path=path, facts=facts, refused=_refused(archive))


def _states(archive: Archive, stage: str, name: str) -> dict[str, int]:
    """Count the units of a stage by state; a file that was looked at and refused is done for the ledger, but not for a person."""
    counts: dict[str, int] = dict(archive.ledger.counts(name))
    if stage == "ingest":
        refused = _refused_files(archive, name)
        counts |= {"done": counts["done"] - refused, "refused": refused}
    return {state: count for state, count in counts.items() if count}


def _refused_files(archive: Archive, stage: str) -> int:
    from storage.ingest.bookkeeping import PROBLEM_NOTE, Bookkeeping

    book = Bookkeeping(archive)
    try:
        return sum(unit.state == "done" and unit.note.startswith(PROBLEM_NOTE) for unit in book.seen(stage).values())
    finally:
        book.close()


def _verdicts(archive: Archive) -> str:
    """Count the cases by what refinement decided about them."""
    from distill.refine import count_verdicts
    from flows.stages import ordered_verdicts

    cases = [record.id for record in archive.cases(with_labels=PSEUDO_SET)]
    return ", ".join(f"{count:,} {keep}" for keep, count in ordered_verdicts(count_verdicts(archive, PSEUDO_SET, cases)[0]).items())


def _refused(archive: Archive) -> tuple[Refusal, ...]:
    """Files that could not go in, and units that were given up."""
    files = [Refusal(what=f"{p.source} {p.row}".strip(), reason=p.reason, message=p.message) for p in archive.catalog.problems()]
    units = [
        Refusal(what=f"{stage} {unit.unit}", reason="quarantined", message=unit.error)
        for stage, name in [*LEDGER_STAGES.items(), (CALIBRATE, CALIBRATE)]
        for unit in archive.ledger.quarantined(name)
    ]
    return (*files, *units)


def _student(path: Path) -> Inspection:
    from students.checkpoint import read_card
    from students.outcome import passes, stop_words, training_doubts

    card = read_card(path)
    return Inspection(
        kind="student",
        path=str(path),
        facts={
            "name": card.name,
            "kind": card.spec.kind,
            "classes": ", ".join(f"{info.id} {info.name}" for info in card.classes),
            "learned from": card.label_set,
            "training cases": len(card.training_cases),
            "validation cases": len(card.validation_cases),
            "parameters": card.parameters,
            "steps": card.steps,
            "times each training case was seen": round(passes(card), 1),
            "training seconds": round(card.seconds, 1),
            "end of training": stop_words(card),
            "agreement with held-out pseudo-labels (Dice)": None if card.agreement is None else round(card.agreement, 4),
            "network": card.plan.dimensions,
            "spacing_zyx_mm": str(card.plan.spacing_zyx_mm),
            "fingerprint": card.fingerprint,
            "warnings": " ".join(training_doubts(card)) or "none",
        },
    )


def _checkpoint(path: str) -> Inspection:
    from distill.errors import CheckpointError
    from distill.teachers.checkpoints import check_loads, inspect_checkpoint
    from flows.card import bundled_facts

    info = inspect_checkpoint(path)
    usable = "yes" if info.image_size else "with its base"
    try:
        check_loads(path)
    except CheckpointError as error:
        usable = f"no: {error}"
    return Inspection(
        kind="checkpoint",
        path=path,
        facts={
            "family": info.family,
            "what it is": info.title,
            "can be used": usable,
            "profile": info.profile or f"not known: name it in the recipe, teacher: {{profile: ...}}; possible: {', '.join(info.profiles)}",
            "image size (px)": info.image_size or "its base's",
            "parameters": info.parameters,
            "fingerprint": info.fingerprint,
            **info.details,
            **(bundled_facts() if path == "bundled" else {}),
        },
    )
