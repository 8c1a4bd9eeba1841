"""The students of an archive: which there are, how good each is known to be, and which one people chose to use."""

import difflib
from pathlib import Path

from flows.errors import StageError
from flows.places import program, shortest, typed
from storage import Archive, StudentRecord
from students.errors import StudentError

_NONE_YET = "It has none yet: 'samdistill run RECIPE' trains one."


def all_students(archive_url: str, catalog: str | None) -> list[StudentRecord]:
    """Return the students of an archive, by name."""
    return Archive.open(archive_url, catalog=catalog, mode="r").catalog.students()


def trainings(archive_url: str, name: str, catalog: str | None) -> list[StudentRecord]:
    """Return every training of one student, the oldest first.

    Raises:
        StageError: if the archive has no such student.
    """
    found = Archive.open(archive_url, catalog=catalog, mode="r").catalog
    records = found.student_versions(name)
    if not records:
        raise StageError(_not_there(archive_url, name, found.students()))
    return records


def promote(archive_url: str, name: str, catalog: str | None) -> tuple[StudentRecord, StudentRecord | None]:
    """Make a student the one that is used where an archive is named in place of a student.

    Its files are looked at first: what is promoted can be used.

    Returns:
        The student, and the one that was promoted before, where that is another or another training.

    Raises:
        StageError: if there is no such student, its files are gone or of another training, or it was trained again this very moment.
    """
    archive = Archive.open(archive_url, catalog=catalog)
    known = archive.catalog.students()
    record = next((each for each in known if each.name == name), None)
    if record is None:
        raise StageError(_not_there(archive_url, name, known))
    check_files(record)
    before = next((each for each in known if each.promoted and not (each.name == name and each.is_promoted)), None)
    if not archive.catalog.promote_student(name, record.revision):
        message = f"student {name} was trained again while this looked at it. Look at the new one: '{program()} students show ...'."
        raise StageError(message)
    return record, before


def promoted_student(archive_url: str, catalog: str | None) -> Path:
    """Return the folder of the student that people chose.

    Raises:
        StageError: if they chose none, or what they chose is not there as it was.
    """
    known = all_students(archive_url, catalog)
    chosen = next((each for each in known if each.promoted), None)
    how = f"'{program()} students promote {typed(shortest(archive_url))} NAME'"
    if chosen is None:
        names = f"It has {', '.join(each.name for each in known)}: choose one with {how}." if known else _NONE_YET
        message = f"no student of {archive_url} is promoted, so none can be meant. {names}"
        raise StageError(message)
    if not chosen.is_promoted:
        message = (
            f"student {chosen.name} of {archive_url} was promoted as training {chosen.promoted}, and has been trained again since "
            f"(training {chosen.revision}). Look at it, and choose it, or another, with {how}."
        )
        raise StageError(message)
    check_files(chosen)
    return Path(chosen.path)


def meant_student(student: Path, catalog: str | None) -> Path:
    """Return a student's folder as it is, and for an archive that of its promoted student.

    Raises:
        StageError: as for `promoted_student`.
    """
    return promoted_student(str(student), catalog) if (student / "zarr.json").is_file() else student


def check_files(record: StudentRecord) -> None:
    """Find out whether a student's files are there, and of the training that the catalog knows.

    Raises:
        StageError: if not.
    """
    from students.checkpoint import weights_digest

    try:
        found = weights_digest(record.path)
    except StudentError as error:
        message = f"student {record.name} cannot be used: {error}"
        raise StageError(message) from error
    if record.weights not in {"", found}:
        message = (
            f"student {record.name}: the weights in {record.path} are of another training than the catalog knows. "
            "Restore them, or train again with 'samdistill train RECIPE'."
        )
        raise StageError(message)


def _not_there(archive_url: str, name: str, known: list[StudentRecord]) -> str:
    names = [each.name for each in known]
    near = difflib.get_close_matches(name, names, 1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    there = f"It has: {', '.join(names)}." if names else _NONE_YET
    return f"{archive_url} has no student {name!r}.{meant} {there}"
