"""What people decided about labels, as rows: nothing is overwritten, and nobody overrules somebody else without knowing.

A verdict is about the masks of one label set, known by the fingerprint of the work that wrote them. While these masks are there it counts;
once they are drawn anew with another fingerprint, it is history.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from storage.database import storable
from storage.errors import ReviewConflictError
from storage.records import ListingRecord, ReviewRecord
from storage.tables import LabelSetRow, ListingRow, VerdictRow


def add_verdict(connection: sa.Connection, review: ReviewRecord, seen: int | None) -> ReviewRecord:
    """Add the next row about one mask.

    Args:
        connection: In a writing transaction.
        review: What was decided.
        seen: How many rows about this mask its author knew of; None for whatever there is.

    Raises:
        ReviewConflictError: if the labels changed or others have decided meanwhile. What is taken back while there are no labels is
            about those that may come back.
    """
    _check_same_labels(connection, review)
    last = _last(connection, review)
    revision = 0 if last is None else last.revision
    if seen is not None and last is not None and revision > seen and last.by != review.by:
        raise ReviewConflictError(_overtaken(last))
    row = _row(review) | {"revision": revision + 1}
    try:
        connection.execute(sa.insert(VerdictRow), [row])
    except IntegrityError as error:  # only where a database lets two writers in at once
        message = f"case {review.case}, class {review.class_id}: somebody else decided in the same moment. Look at it again."
        raise ReviewConflictError(message) from error
    return _record(row)


def verdicts(connection: sa.Connection, label_set: str, *, current: bool, case_id: str | None = None) -> list[ReviewRecord]:
    """Return the verdicts on one label set by case, class and revision: all, or the last ones that hold for the labels as they are."""
    order = (VerdictRow.case_id, VerdictRow.class_id, VerdictRow.revision)
    query = sa.select(VerdictRow.__table__).where(VerdictRow.label_set == label_set).order_by(*order)
    if case_id is not None:
        query = query.where(VerdictRow.case_id == storable(case_id))
    if current:
        labels = sa.and_(LabelSetRow.case_id == VerdictRow.case_id, LabelSetRow.name == VerdictRow.label_set)
        query = query.join(LabelSetRow, labels).where(LabelSetRow.fingerprint == VerdictRow.fingerprint, VerdictRow.class_id > 0)
        query = query.where(VerdictRow.revision == _newest(), VerdictRow.action != "undo")
    return [_record(row) for row in connection.execute(query).mappings()]


def listed(connection: sa.Connection, case_id: str, label_set: str, by: str) -> dict[int, ListingRecord]:
    """Return what a reviewer was last shown of one case, by class."""
    mine = (ListingRow.case_id == storable(case_id), ListingRow.label_set == label_set, ListingRow.reviewer == by)
    rows = connection.execute(sa.select(ListingRow.__table__).where(*mine)).mappings()
    return {row["class_id"]: ListingRecord(case=row["case_id"], by=row["reviewer"], **_without(row, "case_id", "reviewer")) for row in rows}


def listing_row(shown: ListingRecord) -> dict[str, Any]:
    """Return the row of a listing."""
    return {
        "case_id": shown.case,
        "label_set": shown.label_set,
        "class_id": shown.class_id,
        "reviewer": shown.by,
        "source": shown.source,
        "fingerprint": shown.fingerprint,
        "revision": shown.revision,
    }


def _newest() -> sa.ScalarSelect[Any]:
    """Return the last revision of the mask that the outer query is at."""
    other = sa.alias(VerdictRow.__table__)
    same = [other.c[name] == getattr(VerdictRow, name) for name in ("case_id", "label_set", "class_id")]
    return sa.select(sa.func.max(other.c.revision)).where(*same).correlate(VerdictRow.__table__).scalar_subquery()


def _last(connection: sa.Connection, review: ReviewRecord) -> ReviewRecord | None:
    mask = (VerdictRow.case_id == review.case, VerdictRow.label_set == review.label_set, VerdictRow.class_id == review.class_id)
    query = sa.select(VerdictRow.__table__).where(*mask).order_by(VerdictRow.revision.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return None if row is None else _record(row)


def _check_same_labels(connection: sa.Connection, review: ReviewRecord) -> None:
    query = sa.select(LabelSetRow.fingerprint).where(LabelSetRow.case_id == review.case, LabelSetRow.name == review.label_set)
    found = connection.scalar(query)
    if found is None and review.action == "undo":
        return
    if found is None:
        message = f"case {review.case} has no label set {review.label_set!r} to judge. Run the label stage first."
        raise ReviewConflictError(message)
    if found != review.fingerprint:
        message = (
            f"case {review.case}: its label set {review.label_set!r} was drawn anew since it was looked at, so the verdict would be about "
            "something else. List and look again."
        )
        raise ReviewConflictError(message)


def _overtaken(last: ReviewRecord) -> str:
    what = {"judge": f"said {last.verdict!r}", "rebox": "drew a new box", "undo": f"took back {last.verdict!r}"}[last.action]
    return (
        f"case {last.case}, class {last.class_id}: {last.by or 'somebody'} {what} at {last.at}, after you were shown it. Talk to them, or "
        "overrule them with --force; both stay in the history."
    )


def _row(review: ReviewRecord) -> dict[str, Any]:
    return {
        "case_id": review.case,
        "label_set": review.label_set,
        "class_id": review.class_id,
        "revision": review.revision,
        "action": review.action,
        "verdict": review.verdict,
        "source": review.source,
        "filter_said": review.filter_said,
        "reviewer": review.by,
        "at": review.at,
        "fingerprint": review.fingerprint,
        "note": storable(review.note),
    }


def _record(row: Any) -> ReviewRecord:
    return ReviewRecord(case=row["case_id"], by=row["reviewer"], **_without(row, "case_id", "reviewer"))


def _without(row: Any, *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}
