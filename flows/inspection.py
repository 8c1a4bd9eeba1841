"""What is at this path, can it be used, and what is in it: archives, students and checkpoints, as facts that a table or JSON shows."""

import json
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from distill.teachers.fetch import OFFICIAL
from distill.teachers.foreign import is_foreign
from distill.teachers.meant import perhaps_meant, what_is_in
from flows.errors import FlowError
from flows.recipe_rounds import MOST_ROUNDS
from flows.results import (
    CALIBRATE,
    CURVE,
    DOUBT,
    FILTER,
    GUARD,
    LEDGER_STAGES,
    MOST_TEACHERS,
    PSEUDO_SET,
    ROUNDS,
    UNIT_NAMES,
    Round,
    Stage,
    teacher_sets,
)
from flows.round_units import every_stage
from storage import Archive
from students.origins import Exported, NnunetRecord
from students.spec import RoundsNote, StudentCard

Kind = Literal["archive", "student", "checkpoint"]


_SINGLE = (DOUBT, CALIBRATE, FILTER, GUARD, ROUNDS, CURVE)
"""Stages whose units are not cases, as people read their names."""


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
    facts: dict[str, JsonValue]
    refused: tuple[Refusal, ...] = ()


def inspect_path(path: str, *, catalog: str | None = None) -> Inspection:
    """Find out what is there and describe it.

    Raises:
        FlowError: if nothing is there.
    """
    place = Path(path)
    if (place / "student.json").is_file():
        return _student(place)
    if path == "bundled" or place.is_file() or (path in OFFICIAL and not place.exists()):
        return _checkpoint(path)
    if is_foreign(path) and not place.exists():
        return _foreign_teacher(path)
    if place.is_dir() and not (place / "zarr.json").is_file():
        message = f"{path} is a folder, but neither an archive nor a student's. {what_is_in(place)} Give the path of such a thing."
        raise FlowError(message)
    if "://" in path or place.is_dir():
        return _archive(path, catalog)
    message = f"there is nothing at {path}. Give an archive, a student's folder, a checkpoint file, or 'bundled'.{perhaps_meant(path)}"
    raise FlowError(message)


def _archive(path: str, catalog: str | None) -> Inspection:
    from flows.outdated import find_outdated

    archive = Archive.open(path, catalog=catalog, mode="r")
    records = archive.cases()
    facts: dict[str, JsonValue] = {"cases": len(records)}
    for part in ("archive", "calibration", "test"):
        facts[f"cases in part {part}"] = sum(record.part == part for record in records)
    facts["patients"] = len({record.patient for record in records})
    facts["modalities"] = ", ".join(sorted({record.modality for record in records}))
    if named := {tuple(channel.name for channel in record.channels) for record in records if record.channels}:
        facts["channels"] = "; ".join(sorted(map(", ".join, named)))
    outdated = find_outdated(archive)
    gone: dict[Stage, tuple[str, ...]] = {"refine": outdated.refined, "train": outdated.students, "evaluate": outdated.reports}
    label_sets = Counter(archive.catalog.count_label_sets()) - Counter({PSEUDO_SET: len(outdated.refined)})
    facts |= {f"label set {name}": count for name, count in sorted(label_sets.items())}
    standing = [student for student in archive.catalog.students() if student.name not in outdated.students]
    facts["students"] = ", ".join(f"{each.name} (round {each.round})" if each.round > 1 else each.name for each in standing)
    for stage, name in LEDGER_STAGES.items():
        things = "files" if stage == "ingest" else UNIT_NAMES[stage][1]
        counts = _states(archive, stage, name, gone.get(stage, ()))
        facts[f"{stage} ({things})"] = ", ".join(f"{n:,} {state}" for state, n in counts.items()) or "none yet"
    if PSEUDO_SET in label_sets:
        facts[f"verdicts of {PSEUDO_SET}"] = _verdicts(archive, outdated.refined)
    if aside := _set_aside(archive):
        facts["prompts not asked"] = aside
    if outdated.words:
        facts["outdated"] = f"{outdated.words}: {outdated.reason} since. 'samdistill run RECIPE' makes this anew"
    return Inspection(kind="archive", path=path, facts=facts, refused=_refused(archive))


def _set_aside(archive: Archive) -> str:
    """Say which prompts are not asked, since a class of a case is asked along one axis only."""
    from distill.prompts.axes import set_aside
    from distill.prompts.choice import source_of

    counts: Counter[str] = Counter()
    for case, prompts in archive.catalog.prompts_by_case(archive.catalog.cases_off_axis()).items():
        for source in {source_of(prompt) for prompt in prompts}:
            counts[case] += len(set_aside(prompt for prompt in prompts if source_of(prompt) == source))
    named = [case for case, count in sorted(counts.items()) if count]
    return (
        f"{sum(counts.values()):,} of {named[0]}{f' and {len(named) - 1:,} more' if named[1:] else ''}, across another axis than their class"
        if named
        else ""
    )


def _states(archive: Archive, stage: str, name: str, outdated: Collection[str]) -> dict[str, int]:
    """Count the units of a stage by state; a file that was refused, or what is of other labels than are there, is done for the ledger alone."""
    open_ = {*archive.ledger.unfinished(name, outdated), *(unit.unit for unit in archive.ledger.quarantined(name))}
    counts: dict[str, int] = dict(archive.ledger.counts(name))
    gone = min(counts["done"], len(set(outdated) - open_))  # another run may have begun anew with some of them since
    counts |= {"done": counts["done"] - gone, "outdated": gone}
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


def _verdicts(archive: Archive, outdated: Collection[str]) -> str:
    """Count the cases by what refinement decided about them, without those whose masks were drawn anew since."""
    from distill.refine import count_verdicts
    from flows.stages import ordered_verdicts

    without = set(outdated)
    cases = [record.id for record in archive.cases(with_labels=PSEUDO_SET) if record.id not in without]
    return ", ".join(f"{count:,} {keep}" for keep, count in ordered_verdicts(count_verdicts(archive, PSEUDO_SET, cases)[0]).items())


def _refused(archive: Archive) -> tuple[Refusal, ...]:
    """Files that could not go in, and units that were given up."""
    files = [Refusal(what=f"{p.source} {p.row}".strip(), reason=p.reason, message=p.message) for p in archive.catalog.problems()]
    units = [
        Refusal(what=f"{stage} {unit.unit}", reason="quarantined", message=unit.error)
        for stage, name in [*_proposals(), *_teachers(), *LEDGER_STAGES.items(), *((each, each) for each in _SINGLE), *_rounds(archive)]
        for unit in archive.ledger.quarantined(name)
    ]
    return (*files, *units)


def _rounds(archive: Archive) -> list[tuple[str, str]]:
    """Return the ledger's stages of further rounds, where there were any, with what a person calls them."""
    return every_stage() if any(each.round > 1 for each in archive.catalog.students()) or _answered(archive) else []


def _answered(archive: Archive) -> bool:
    began = [Round(number=number) for number in range(2, MOST_ROUNDS + 1)]
    return any(archive.ledger.counts(name)["quarantined"] for of in began for name in (of.folds, f"answer:{of.answers_set}"))


def _teachers() -> list[tuple[str, str]]:
    """Return the ledger's stages of each of several teachers, with what a person calls them."""
    return [(f"label by teacher {n},", f"label:{name}") for n, name in enumerate(teacher_sets(MOST_TEACHERS), start=1)]


def _proposals() -> list[tuple[str, str]]:
    """Return the ledger's stages of the sources that propose prompts, with what a person calls them."""
    from distill.prompts.registry import source_names

    return [(f"prompts from {name},", f"prompts:{name}") for name in source_names()]


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
            **({"gold learned from": ", ".join(card.gold_cases)} if card.gold_cases else {}),
            **({"cases without labels": len(card.unlabeled_cases)} if card.unlabeled_cases else {}),
            "parameters": card.parameters,
            "steps": card.steps,
            "times each training case was seen": round(passes(card), 1),
            "training seconds": round(card.seconds, 1),
            "end of training": stop_words(card),
            **_network(card),
            "fingerprint": card.fingerprint,
            "warnings": " ".join(training_doubts(card)) or "none",
            **(_export(card.exported) if card.exported else {}),
        },
    )


def _chosen(note: RoundsNote) -> str:
    """Say of which round a student is, and why it was chosen."""
    return "; ".join((f"of round {note.number} of {note.made}", *note.words))


def _network(card: StudentCard) -> dict[str, JsonValue]:
    """Say what kind of network a student is, and how far it agrees with what it learnt from."""
    agreement = None if card.agreement is None else round(card.agreement, 4)
    if card.promptable is not None:
        from students.promptable.words import facts

        return {"agreement with its teacher on held-out patients (Dice)": agreement, **facts(card.promptable)}
    return {
        "agreement with held-out pseudo-labels (Dice)": agreement,
        **({"channels": card.channel_words} if card.channels else {}),
        "network": "2.5d" if card.plan.neighbours else card.plan.dimensions,
        **(
            {}
            if card.spec.hints is None
            else {"seen beside the image": f"{card.spec.hints}: it answers for cases of an archive that carry it alone"}
        ),
        **({} if card.rounds is None else {"rounds": _chosen(card.rounds)}),
        **({} if card.nnunet is None else {"nnU-Net": _nnunet(card.nnunet)}),
        f"spacing_zyx_{'mm' if card.spacing_known else 'px'}": list(card.plan.spacing_zyx_mm),
    }


def _nnunet(record: NnunetRecord) -> str:
    """Say in one line how nnU-Net made a student."""
    held = "nobody held out" if record.fold == "all" else f"fold {record.fold} held out"
    epochs = f"{record.epochs} of {record.epochs_asked} epochs of {record.iterations} steps"
    return f"{record.version}, {record.planner}, {record.configuration}, {epochs}, {held}"


def _export(exported: Exported) -> dict[str, JsonValue]:
    return {
        "exported to": f"{exported.format}, opset {exported.opset}" if exported.opset else exported.format,
        "differs from torch by at most": float(f"{exported.worst_difference:.2g}"),
        "made with": ", ".join(f"{name} {number}" for name, number in exported.made_with.items()),
    }


def _foreign_teacher(name: str) -> Inspection:
    """Say who brings a teacher, and that its package can be imported; it is not loaded."""
    from distill.teachers.checkpoints import inspect_checkpoint

    info = inspect_checkpoint(name)
    facts: dict[str, JsonValue] = {"what it is": info.title, "can be used": "yes", "fingerprint": info.fingerprint}
    return Inspection(kind="checkpoint", path=name, facts=facts | {key: str(value) for key, value in info.details.items()})


def _checkpoint(path: str) -> Inspection:
    from distill.teachers.checkpoints import inspect_checkpoint
    from flows.card import bundled_facts

    info = inspect_checkpoint(path, tensors=True)
    usable = "yes" if info.image_size else "with its base"
    return Inspection(
        kind="checkpoint",
        path=path,
        facts={
            "family": info.family,
            "what it is": info.title,
            "can be used": f"no: {info.fault}" if info.fault else usable,
            "profile": info.profile or f"not known: name it in the recipe, teacher: {{profile: ...}}; possible: {', '.join(info.profiles)}",
            "image size (px)": info.image_size or "its base's",
            "parameters": info.parameters,
            "fingerprint": info.fingerprint,
            **{name: _plain(value) for name, value in info.details.items()},
            **(bundled_facts() if path == "bundled" else {}),
        },
    )


def _plain(value: str | float | tuple[int, ...]) -> JsonValue:
    """Return what JSON has for a fact: a list for sizes that are several, and what a file keeps as JSON itself."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, str) and value.startswith("{"):
        with suppress(ValueError):
            found: JsonValue = json.loads(value)
            return found
    return value
