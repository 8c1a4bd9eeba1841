"""What an ingest asks of the catalog beyond single cases: units it has seen, problems to take back, parts of patients."""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from storage.archive import Archive
from storage.case import Part
from storage.database import Database, storable
from storage.records import ProblemRecord
from storage.tables import CaseRow, ProblemRow, UnitRow

PROBLEM_NOTE = "problem"
"""Note of a unit that was looked at and refused: it is done, until its file changes."""


def source_name(path: Path) -> str:
    """Return the one name of a file in problems, however a command names it and whatever its name holds."""
    return storable(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links, and absolute() keeps ".."


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenUnit:
    """One unit as an earlier run left it."""

    fingerprint: str
    state: str
    note: str


class Bookkeeping:
    """Bulk queries of one ingest run. Safe to share between its threads."""

    def __init__(self, archive: Archive) -> None:
        """Connect to the archive's own catalog."""
        self._catalog = archive.catalog
        self._database = Database(archive.catalog.url)

    def seen(self, stage: str) -> dict[str, SeenUnit]:
        """Return every unit of a stage by its id."""
        query = sa.select(UnitRow.unit, UnitRow.fingerprint, UnitRow.state, UnitRow.note).where(UnitRow.stage == stage)
        with self._database.reading() as connection:
            return {unit: SeenUnit(fingerprint=print_, state=state, note=note) for unit, print_, state, note in connection.execute(query)}

    def replace_problem(self, source: str, row: str, reason: str, message: str) -> None:
        """Record a problem in place of whatever was wrong there before."""
        self.forget_problems([source])
        self._catalog.record_problems([ProblemRecord(source=source, row=row, reason=reason, message=message)])

    def forget_problems(self, sources: Iterable[str]) -> None:
        """Take back the problems of sources that are fixed, or about to be looked at again."""
        with self._database.writing() as connection:
            for source in sources:
                connection.execute(sa.delete(ProblemRow).where(ProblemRow.source == source))

    def forget_gone(self, folder: Path, sources: Collection[str], *, row: str = "", endings: tuple[str, ...] = ("",)) -> None:
        """Take back the problems of files below a folder that are there no longer.

        Args:
            folder: The folder.
            sources: The files that are there, as ``source_name`` writes them; DICOM goes by pseudonyms and is not meant.
            row: Which problems of a file are meant, as other steps may read the same folder.
            endings: Of the files that are meant, in small letters.
        """
        below = source_name(folder / "x").removesuffix("x")
        standing = {problem.source for problem in self.problems() if problem.row == row and problem.source.startswith(below)}
        self.forget_problems({source for source in standing if source.lower().endswith(endings)} - set(sources))

    def problems(self) -> list[ProblemRecord]:
        """Return all standing problems."""
        return self._catalog.problems()

    def part_for(self, case: str, patient: str) -> Part:
        """Return the part a case is in, also while its pixels are replaced; a new one follows its patient, who is never in two parts."""
        own = sa.select(CaseRow.part).where(CaseRow.id == case)
        siblings = sa.select(CaseRow.part).where(CaseRow.patient == patient).order_by(CaseRow.id).limit(1)
        with self._database.reading() as connection:
            part: Part | None = connection.scalar(own) or connection.scalar(siblings)
        return part or "archive"

    def close(self) -> None:
        """Close the connections."""
        self._database.close()
