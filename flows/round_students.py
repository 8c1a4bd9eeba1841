"""The students of several rounds as folders: ``NAME-r1``, ``NAME-r2``, ..., and ``NAME``, a copy of the one that was chosen.

A copy is made beside its place and takes it in two renames; a run that was killed between them is put right by the next (``put_right``).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from flows.errors import StageError
from flows.recipe import Recipe
from storage import Archive
from students.spec import RoundsNote, StudentCard

_NOT_COPIED = ("checkpoint.pt", "*.partial", "MODEL_CARD.md", "nnunet-work")


def folder_in_round(recipe: Recipe, number: int) -> Path:
    """Where the student of a round is kept."""
    return recipe.whole.results / "students" / f"{recipe.whole.student.name}-r{number}"


def patients_held_out(archive: Archive, folder: Path) -> tuple[str, ...]:
    """Return the patients on whom agreement was watched when a student was trained, sorted."""
    from students.checkpoint import read_card

    return tuple(sorted({archive[case].record.patient for case in read_card(folder).validation_cases}))


def round_in(folder: Path) -> int | None:
    """Return of which round the student in a folder was chosen; None for one that training left there, or none."""
    card = folder / "student.json"
    if not card.is_file():
        return None
    try:
        note = json.loads(card.read_text(encoding="utf-8")).get("rounds")
    except (ValueError, AttributeError):
        return None
    return int(note["number"]) if isinstance(note, dict) and "number" in note else None


def keep_first(archive: Archive, recipe: Recipe) -> None:
    """Keep the first round's student under its own name, before another takes its place.

    Raises:
        StageError: if a later one has taken its place, and it was not kept.
    """
    own, kept = recipe.whole.student_folder, folder_in_round(recipe, 1)
    chosen = round_in(own)
    if chosen is None:
        copy_student(own, kept, None)
        list_as(archive, recipe.whole.student.name, kept)
    elif not (kept / "student.json").is_file():
        message = f"{kept} is gone, the student of the first round, which later ones are compared with. Restore it, or delete {own} to have it trained again."
        raise StageError(message)


def restore_first(archive: Archive, recipe: Recipe) -> None:
    """Give the first round's student its place back where a recipe asks for one round only."""
    own, kept = recipe.student_folder, folder_in_round(recipe, 1)
    put_right(own)
    if recipe.rounds.most > 1 or round_in(own) is None or not (kept / "student.json").is_file():
        return
    copy_student(kept, own, None)
    list_as(archive, kept.name, own)


def list_as(archive: Archive, name: str, folder: Path) -> None:
    """List in the catalog what is known of one student under another name: that of the folder it was copied to."""
    record = next((each for each in archive.catalog.students() if each.name == name), None)
    if record is not None:
        archive.catalog.record_student(replace(record, name=folder.name, path=str(folder)))


def copy_student(source: Path, target: Path, note: RoundsNote | None) -> StudentCard:
    """Copy a finished student into another folder, under that folder's name; what is there already of the very same is left.

    Args:
        source: Its folder.
        target: The folder to make or replace.
        note: Why it was chosen.
    """
    from students.checkpoint import CARD, read_card, weights_digest

    card = read_card(source)
    spec = card.spec.model_copy(update={"name": target.name})
    card = card.model_copy(update={"name": target.name, "spec": spec, "rounds": note})
    if (target / CARD).is_file() and read_card(target) == card and weights_digest(target) == weights_digest(source):
        return card
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    (partial / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    before = _set_aside(target)
    if target.exists():
        shutil.rmtree(before, ignore_errors=True)
        target.rename(before)
    partial.rename(target)
    shutil.rmtree(before, ignore_errors=True)
    return card


def put_right(folder: Path) -> None:
    """Bring a student back that a killed run had set aside, and not replaced yet."""
    before = _set_aside(folder)
    if before.is_dir() and not folder.exists():
        before.rename(folder)


def _set_aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.before")
