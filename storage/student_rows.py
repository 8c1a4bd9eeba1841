"""Students, as rows: one for each name, and one for every training that a newer one under its name has taken the place of.

Each function works in its caller's transaction.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import sqlalchemy as sa

from storage.database import upsert
from storage.records import Scalar, StudentRecord
from storage.tables import StudentRow, StudentVersionRow


def put(connection: sa.Connection, student: StudentRecord) -> None:
    """Write a student; where it is another training than the one that is there, that one goes into the history."""
    before = _find(connection, student.name)
    if before is None:
        stored = replace(student, revision=1, promoted=0)
    elif _same(before, student):
        stored = replace(student, revision=before.revision, promoted=before.promoted, metrics={**before.metrics, **student.metrics})
    else:
        history = {"name": before.name, "revision": before.revision, "content": asdict(before)}
        upsert(connection, StudentVersionRow, [history], update=["content"])
        stored = replace(student, revision=before.revision + 1, promoted=before.promoted)
    row = asdict(stored)
    upsert(connection, StudentRow, [row], update=[name for name in row if name != "name"])


def _same(before: StudentRecord, after: StudentRecord) -> bool:
    """Tell whether two records are of one training; catalogs of older programs do not know the weights."""
    return before.fingerprint == after.fingerprint and (before.weights in {"", after.weights} or not after.weights)


def read_all(connection: sa.Connection) -> list[StudentRecord]:
    """Return all students as they stand, by name."""
    rows = connection.execute(sa.select(StudentRow.__table__).order_by(StudentRow.name)).mappings()
    return [StudentRecord(**row) for row in rows]


def versions(connection: sa.Connection, name: str) -> list[StudentRecord]:
    """Return every training of a student, the oldest first."""
    query = sa.select(StudentVersionRow.content).where(StudentVersionRow.name == name).order_by(StudentVersionRow.revision)
    contents: list[dict[str, Any]] = list(connection.scalars(query))
    standing = _find(connection, name)
    return [*(StudentRecord(**content) for content in contents), *([standing] if standing else [])]


def add_metrics(connection: sa.Connection, name: str, metrics: Mapping[str, Scalar]) -> None:
    """Write metrics beside those that are known."""
    before = _find(connection, name)
    if before is not None:
        connection.execute(sa.update(StudentRow).where(StudentRow.name == name).values(metrics={**before.metrics, **metrics}))


def promote(connection: sa.Connection, name: str, revision: int) -> bool:
    """Make one student, in one revision, the only one that is promoted; False if it is not there."""
    before = _find(connection, name)
    if before is None or before.revision != revision:
        return False
    connection.execute(sa.update(StudentRow).values(promoted=sa.case((StudentRow.name == name, revision), else_=0)))
    return True


def _find(connection: sa.Connection, name: str) -> StudentRecord | None:
    row = connection.execute(sa.select(StudentRow.__table__).where(StudentRow.name == name)).mappings().first()
    return None if row is None else StudentRecord(**row)
