"""Label sets of cases, as rows: which there are, what they score, and what they were made of. Each function works in its caller's transaction."""

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from storage.case import LabelHistory
from storage.case_rows import KEYS_PER_QUERY
from storage.database import upsert
from storage.errors import LabelSetNotFoundError
from storage.tables import LabelSetRow, ScoreRow, UnitRow

_LABEL_STAGES = ("label:", "refine:", "answer:", "mean:", "agree:", "gold/")
"""How the ledger's stages begin whose units are label sets of cases; ``gold`` alone is one too."""
_MADE_OF = "made_of"
"""Parameter of a label set's history that is kept here too: the fingerprint of the label set that it was made from."""


def put(connection: sa.Connection, case_id: str, history: LabelHistory, scores: Mapping[str, float]) -> None:
    """Write the row that makes a label set visible, and its scores."""
    row = {
        "case_id": case_id,
        "name": history.label_set,
        "made_by": history.made_by,
        "teacher": history.teacher,
        "round": history.round,
        "fingerprint": history.fingerprint,
        "made_of": str(history.parameters.get(_MADE_OF, "")),
    }
    upsert(connection, LabelSetRow, [row], update=["made_by", "teacher", "round", "fingerprint", "made_of"])
    upsert(connection, ScoreRow, _score_rows(case_id, history.label_set, scores), update=["value"])


def put_scores(connection: sa.Connection, case_id: str, label_set: str, scores: Mapping[str, float]) -> None:
    """Write scores of a finished label set.

    Raises:
        LabelSetNotFoundError: if the case has no such label set, or not a finished one.
    """
    query = sa.select(LabelSetRow.name).where(LabelSetRow.case_id == case_id, LabelSetRow.name == label_set)
    if connection.scalar(query) is None:
        message = f"case {case_id} has no finished label set {label_set!r} that scores could be about. Write its labels first."
        raise LabelSetNotFoundError(message)
    upsert(connection, ScoreRow, _score_rows(case_id, label_set, scores), update=["value"])


def read_scores(connection: sa.Connection, label_set: str, cases: list[str] | None) -> dict[str, dict[str, float]]:
    """Return case -> metric -> value for one label set: of all cases, or of these."""
    query = sa.select(ScoreRow.case_id, ScoreRow.metric, ScoreRow.value).where(ScoreRow.label_set == label_set)
    query = query.order_by(ScoreRow.case_id, ScoreRow.metric)
    starts = range(0, len(cases or ()), KEYS_PER_QUERY)
    queries = [query] if cases is None else [query.where(ScoreRow.case_id.in_(cases[at : at + KEYS_PER_QUERY])) for at in starts]
    found: dict[str, dict[str, float]] = {}
    for case_id, metric, value in (row for each in queries for row in connection.execute(each)):
        found.setdefault(case_id, {})[metric] = math.nan if value is None else value
    return found


def put_made_of(connection: sa.Connection, label_set: str, sources: Mapping[str, str]) -> None:
    """Write, by case, what label sets were made from, where that is not known yet."""
    rows = [{"key": case_id, "value": source} for case_id, source in sources.items()]
    missing = sa.and_(LabelSetRow.case_id == sa.bindparam("key"), LabelSetRow.name == label_set, LabelSetRow.made_of.is_(None))
    if rows:
        connection.execute(sa.update(LabelSetRow).where(missing).values(made_of=sa.bindparam("value")), rows)


def forget(connection: sa.Connection, case_id: str, name: str) -> None:
    """Delete one label set of a case with its scores, and that it was made."""
    connection.execute(sa.delete(LabelSetRow).where(LabelSetRow.case_id == case_id, LabelSetRow.name == name))
    connection.execute(sa.delete(ScoreRow).where(ScoreRow.case_id == case_id, ScoreRow.label_set == name))
    stages = [*(f"{prefix}{name}" for prefix in _LABEL_STAGES), *(["gold"] if name == "gold" else [])]
    _forget_done(connection, case_id, UnitRow.stage.in_(stages))


def forget_all(connection: sa.Connection, case_id: str) -> None:
    """Delete all label sets of a case with their scores, and that they were made."""
    for table in (LabelSetRow, ScoreRow):
        connection.execute(sa.delete(table).where(table.case_id == case_id))
    _forget_done(connection, case_id, sa.or_(UnitRow.stage == "gold", *(UnitRow.stage.startswith(prefix) for prefix in _LABEL_STAGES)))


def _forget_done(connection: sa.Connection, case_id: str, stages: sa.ColumnElement[bool]) -> None:
    """Have label work that was finished done again. Whoever rewrites the labels right now holds a claim, and that stays."""
    connection.execute(sa.delete(UnitRow).where(UnitRow.unit == case_id, UnitRow.state == "done", stages))


def _score_rows(case_id: str, label_set: str, scores: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {"case_id": case_id, "label_set": label_set, "metric": metric, "value": None if math.isnan(value) else float(value)}
        for metric, value in scores.items()
    ]
