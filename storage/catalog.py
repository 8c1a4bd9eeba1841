"""The catalog: what there is to know about cases without opening one."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.orm import InstrumentedAttribute

from storage.case import CaseRecord, Geometry, LabelHistory, Part, Prompt
from storage.database import Database, storable, upsert
from storage.errors import CaseNotFoundError, LabelSetNotFoundError
from storage.records import ListingRecord, ProblemRecord, ReviewRecord, StudentRecord
from storage.reviews import add_verdict, listed, listing_row, verdicts
from storage.tables import CaseRow, LabelSetRow, ListingRow, ProblemRow, PromptFileRow, PromptRow, ScoreRow, StudentRow, UnitRow, VerdictRow

_GEOMETRY = TypeAdapter(Geometry)
_PROMPT = TypeAdapter(Prompt)
_KEYS_PER_QUERY = 500
"""Ids in one IN (...); SQLite's oldest limit is 999 variables."""
_LABEL_STAGES = ("label:", "refine:", "gold/")
"""How the ledger's stages begin whose units are label sets of cases; ``gold`` alone is one too."""


class Catalog:
    """Queries and idempotent writes on the SQL index. Safe to share between threads."""

    def __init__(self, database: Database | str) -> None:
        """Use an open database, or connect to a SQLAlchemy URL."""
        self._database = Database(database) if isinstance(database, str) else database

    @property
    def url(self) -> str:
        """The SQLAlchemy URL."""
        return self._database.url

    # Cases

    def add_case(self, record: CaseRecord) -> None:
        """Insert or overwrite the row that makes a case visible."""
        row = _case_row(record)
        with self._database.writing() as connection:
            upsert(connection, CaseRow, [row], update=[name for name in row if name != "id"])

    def retract_case(self, case_id: str) -> None:
        """Hide a case while its pixels are replaced, and forget its label sets, their scores and that they were made. Prompts stay."""
        with self._database.writing() as connection:
            connection.execute(sa.update(CaseRow).where(CaseRow.id == case_id).values(ready=False))
            for table in (LabelSetRow, ScoreRow, VerdictRow, ListingRow):
                connection.execute(sa.delete(table).where(table.case_id == case_id))
            _forget_done(connection, case_id, sa.or_(UnitRow.stage == "gold", *(UnitRow.stage.startswith(p) for p in _LABEL_STAGES)))

    def cases(
        self,
        *,
        part: Part | None = None,
        modality: str | None = None,
        with_labels: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> list[CaseRecord]:
        """Return the records that match, sorted by id; see :meth:`storage.archive.Archive.cases`."""
        query = sa.select(CaseRow.__table__).where(CaseRow.ready).order_by(CaseRow.id).limit(limit)
        for column, value in ((CaseRow.part, part), (CaseRow.modality, modality)):
            if value is not None:
                query = query.where(column == value)
        if after is not None:
            query = query.where(CaseRow.id > after)
        if with_labels is not None:
            query = query.join(LabelSetRow, sa.and_(LabelSetRow.case_id == CaseRow.id, LabelSetRow.name == with_labels))
        with self._database.reading() as connection:
            return [_case_record(row) for row in connection.execute(query).mappings()]

    def find_case(self, case_id: str) -> CaseRecord | None:
        """Return one record, or None."""
        query = sa.select(CaseRow.__table__).where(CaseRow.id == storable(case_id), CaseRow.ready)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _case_record(row)

    def count_cases(self) -> int:
        """Count the complete cases."""
        with self._database.reading() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(CaseRow).where(CaseRow.ready)) or 0

    def similar_ids(self, case_id: str, limit: int = 200) -> list[str]:
        """Return ids around the place where ``case_id`` would sort; enough to find a misspelling, however large the archive."""
        case_id = storable(case_id)
        behind = sa.select(CaseRow.id).where(CaseRow.ready, CaseRow.id >= case_id[:1]).order_by(CaseRow.id).limit(limit)
        before = sa.select(CaseRow.id).where(CaseRow.ready, CaseRow.id < case_id).order_by(CaseRow.id.desc()).limit(limit)
        nearby = sa.select(CaseRow.id).where(CaseRow.ready, CaseRow.id >= case_id).order_by(CaseRow.id).limit(limit)
        with self._database.reading() as connection:
            return sorted({found for query in (behind, before, nearby) for found in connection.scalars(query)})

    def set_part(self, parts: Mapping[str, Part]) -> None:
        """Move cases to a part.

        Raises:
            CaseNotFoundError: if one of them is not in the catalog; nothing is changed then.
        """
        with self._database.writing() as connection:
            _check_known(connection, parts)
            rows = [{"key": case_id, "value": part} for case_id, part in parts.items()]
            if rows:
                connection.execute(sa.update(CaseRow).where(CaseRow.id == sa.bindparam("key")).values(part=sa.bindparam("value")), rows)

    # Prompts

    def add_prompts(self, prompts: list[Prompt], *, file: str = "") -> int:
        """Add prompts; one that is there already stays one row.

        Args:
            prompts: What to add.
            file: Key of the file that says so, at most 32 characters; see :meth:`replace_prompts`.

        Returns:
            How many were new.

        Raises:
            CaseNotFoundError: if a prompt is about a case that is not in the catalog; nothing is added then.
        """
        with self._database.writing() as connection:
            return _add_prompts(connection, prompts, file)

    def replace_prompts(self, prompts: list[Prompt], *, file: str, source: str) -> tuple[int, int]:
        """Make ``prompts`` all that one file says under one source. What another file says too stays.

        Returns:
            How many were new, and how many were taken back.

        Raises:
            CaseNotFoundError: if a prompt is about a case that is not in the catalog; nothing is changed then.
        """
        with self._database.writing() as connection:
            added = _add_prompts(connection, prompts, file)
            return added, _take_back(connection, file, source, keep={_prompt_row(prompt)["key"] for prompt in prompts})

    def prompts(self, case_id: str, class_id: int | None = None) -> list[Prompt]:
        """Return the prompts of a case, by class, then axis and slice."""
        found = self.prompts_by_case([case_id])[case_id]
        return [prompt for prompt in found if class_id is None or prompt.class_id == class_id]

    def prompts_by_case(self, case_ids: list[str]) -> dict[str, list[Prompt]]:
        """Return the prompts of many cases; a case without any has an empty list."""
        found: dict[str, list[Prompt]] = {case_id: [] for case_id in case_ids}
        order = (PromptRow.case_id, PromptRow.class_id, PromptRow.axis, PromptRow.position, PromptRow.key)
        with self._database.reading() as connection:
            for start in range(0, len(case_ids), _KEYS_PER_QUERY):
                page = case_ids[start : start + _KEYS_PER_QUERY]
                query = sa.select(PromptRow.case_id, PromptRow.content).where(PromptRow.case_id.in_(page)).order_by(*order)
                for case_id, content in connection.execute(query):
                    found[case_id].append(_PROMPT.validate_json(json.dumps(content)))
        return found

    def delete_prompts(self, *, source: str) -> int:
        """Forget every prompt of one source, and return how many there were."""
        with self._database.writing() as connection:
            return connection.execute(sa.delete(PromptRow).where(PromptRow.source == source)).rowcount

    # Label sets and scores

    def add_label_set(self, case_id: str, history: LabelHistory, scores: Mapping[str, float]) -> None:
        """Insert the row that makes a label set visible, together with its scores."""
        row = {
            "case_id": case_id,
            "name": history.label_set,
            "made_by": history.made_by,
            "teacher": history.teacher,
            "round": history.round,
            "fingerprint": history.fingerprint,
        }
        with self._database.writing() as connection:
            upsert(connection, LabelSetRow, [row], update=["made_by", "teacher", "round", "fingerprint"])
            upsert(connection, ScoreRow, _score_rows(case_id, history.label_set, scores), update=["value"])

    def add_scores(self, case_id: str, label_set: str, scores: Mapping[str, float]) -> None:
        """Add scores to a finished label set, or overwrite those of the same name; its arrays and its other scores stay.

        Raises:
            LabelSetNotFoundError: if the case has no such label set, or not a finished one.
        """
        with self._database.writing() as connection:
            query = sa.select(LabelSetRow.name).where(LabelSetRow.case_id == case_id, LabelSetRow.name == label_set)
            if connection.scalar(query) is None:
                message = f"case {case_id} has no finished label set {label_set!r} that scores could be about. Write its labels first."
                raise LabelSetNotFoundError(message)
            upsert(connection, ScoreRow, _score_rows(case_id, label_set, scores), update=["value"])

    def retract_label_set(self, case_id: str, name: str) -> None:
        """Hide a label set, and forget scores that were about its old voxels, and that it was made.

        Verdicts of people stay, each tied to the fingerprint of what was judged: they count again if the same labels come back.
        """
        with self._database.writing() as connection:
            connection.execute(sa.delete(LabelSetRow).where(LabelSetRow.case_id == case_id, LabelSetRow.name == name))
            connection.execute(sa.delete(ScoreRow).where(ScoreRow.case_id == case_id, ScoreRow.label_set == name))
            _forget_done(connection, case_id, UnitRow.stage.in_(_stages_that_write(name)))

    def label_sets(self, case_id: str) -> list[str]:
        """Return the names of the finished label sets of a case, sorted."""
        query = sa.select(LabelSetRow.name).where(LabelSetRow.case_id == case_id).order_by(LabelSetRow.name)
        with self._database.reading() as connection:
            return list(connection.scalars(query))

    def count_label_sets(self) -> dict[str, int]:
        """Return how many cases carry each label set."""
        query = sa.select(LabelSetRow.name, sa.func.count()).group_by(LabelSetRow.name).order_by(LabelSetRow.name)
        with self._database.reading() as connection:
            return dict(connection.execute(query).tuples().all())

    def scores(self, label_set: str, cases: list[str] | None = None) -> dict[str, dict[str, float]]:
        """Return case -> metric -> value for one label set: of all cases, or of these."""
        query = sa.select(ScoreRow.case_id, ScoreRow.metric, ScoreRow.value).where(ScoreRow.label_set == label_set)
        query = query.order_by(ScoreRow.case_id, ScoreRow.metric)
        starts = range(0, len(cases or ()), _KEYS_PER_QUERY)
        queries = [query] if cases is None else [query.where(ScoreRow.case_id.in_(cases[at : at + _KEYS_PER_QUERY])) for at in starts]
        found: dict[str, dict[str, float]] = {}
        with self._database.reading() as connection:
            for case_id, metric, value in (row for each in queries for row in connection.execute(each)):
                found.setdefault(case_id, {})[metric] = math.nan if value is None else value
        return found

    # Reviews, students, problems

    def record_review(self, review: ReviewRecord, *, seen: int | None = None, boxes: list[Prompt] | None = None) -> ReviewRecord:
        """Add a person's decision to the history, and the boxes that go with it; all or nothing.

        Args:
            review: What was decided. Its fingerprint names the labels that were looked at, its revision does not matter.
            seen: How many decisions about this mask the person knew of; None overrules whatever there is.
            boxes: New prompts in place of those of the same source, class and slice.

        Returns:
            The record as stored, with its revision.

        Raises:
            CaseNotFoundError: if the case is not in the catalog.
            ReviewConflictError: if the labels are no longer those that were looked at, or somebody else has decided meanwhile.
        """
        with self._database.writing() as connection:
            _check_known(connection, [review.case])
            stored = add_verdict(connection, review, seen)
            _replace_boxes(connection, boxes or [])
        return stored

    def replace_boxes(self, boxes: list[Prompt]) -> None:
        """Add prompts in place of those of the same source, class and slice.

        Raises:
            CaseNotFoundError: if a prompt is about a case that is not in the catalog; nothing is changed then.
        """
        with self._database.writing() as connection:
            _replace_boxes(connection, boxes)

    def forget_boxes(self, case_id: str, class_id: int, *, source: str) -> int:
        """Take back the prompts of one source about one class of a case, and return how many there were."""
        with self._database.writing() as connection:
            return _forget_prompts(connection, case_id, class_id, source)

    def reviews(self, label_set: str) -> list[ReviewRecord]:
        """Return the verdicts that count, by case and class: the last on each mask, if it was not taken back and the mask is still the same.

        A mask for which a person drew a new box is in it as rejected until the teacher has drawn it anew.
        """
        with self._database.reading() as connection:
            return verdicts(connection, label_set, current=True)

    def review_history(self, label_set: str, case_id: str | None = None) -> list[ReviewRecord]:
        """Return everything that people decided about one label set, of one case or all, oldest first within each mask."""
        with self._database.reading() as connection:
            return verdicts(connection, label_set, current=False, case_id=case_id)

    def record_listing(self, shown: Iterable[ListingRecord]) -> None:
        """Remember what a reviewer was shown."""
        rows = [listing_row(each) for each in shown]
        with self._database.writing() as connection:
            upsert(connection, ListingRow, rows, update=["source", "fingerprint", "revision"])

    def listed(self, case_id: str, label_set: str, by: str) -> dict[int, ListingRecord]:
        """Return what a reviewer was last shown of a case, by class."""
        with self._database.reading() as connection:
            return listed(connection, case_id, label_set, by)

    def fingerprints(self, label_set: str) -> dict[str, str]:
        """Return case -> fingerprint of the work that wrote its label set."""
        query = sa.select(LabelSetRow.case_id, LabelSetRow.fingerprint).where(LabelSetRow.name == label_set)
        with self._database.reading() as connection:
            return dict(connection.execute(query.order_by(LabelSetRow.case_id)).tuples().all())

    def record_student(self, student: StudentRecord) -> None:
        """Insert or overwrite a student."""
        row = asdict(student)
        with self._database.writing() as connection:
            upsert(connection, StudentRow, [row], update=[name for name in row if name != "name"])

    def students(self) -> list[StudentRecord]:
        """Return all students, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(StudentRow.__table__).order_by(StudentRow.name)).mappings().all()
        return [StudentRecord(**row) for row in rows]

    def record_problems(self, problems: Iterable[ProblemRecord]) -> None:
        """Keep why files or rows could not go in; the same problem met again is the same row."""
        rows = {row["key"]: row for row in map(_problem_row, problems)}
        with self._database.writing() as connection:
            upsert(connection, ProblemRow, list(rows.values()), update=["message"])

    def problems(self) -> list[ProblemRecord]:
        """Return every file and row that could not go in."""
        query = sa.select(ProblemRow.source, ProblemRow.row, ProblemRow.reason, ProblemRow.message)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(ProblemRow.source, ProblemRow.row, ProblemRow.key)).all()
        return [ProblemRecord(source=source, row=row, reason=reason, message=message) for source, row, reason, message in rows]


def _case_row(record: CaseRecord) -> dict[str, Any]:
    size_c, size_z, size_y, size_x = record.shape_czyx
    return {
        "id": record.id,
        "patient": record.patient,
        "part": record.part,
        "modality": record.modality,
        "dtype": record.dtype,
        "size_c": size_c,
        "size_z": size_z,
        "size_y": size_y,
        "size_x": size_x,
        "geometry": _GEOMETRY.dump_python(record.geometry, mode="json"),
        "attributes": dict(record.attributes),
        "fingerprint": record.fingerprint,
        "ready": True,
    }


def _case_record(row: Mapping[Any, Any]) -> CaseRecord:
    return CaseRecord(
        id=row["id"],
        patient=row["patient"],
        shape_czyx=(row["size_c"], row["size_z"], row["size_y"], row["size_x"]),
        dtype=row["dtype"],
        geometry=_GEOMETRY.validate_python(row["geometry"]),
        modality=row["modality"],
        part=row["part"],
        attributes=row["attributes"],
        fingerprint=row["fingerprint"],
    )


def _prompt_row(prompt: Prompt) -> dict[str, Any]:
    content = _PROMPT.dump_python(prompt, mode="json")
    return {
        "key": _digest(content),
        "case_id": prompt.case,
        "class_id": prompt.class_id,
        "kind": prompt.kind,
        "axis": prompt.axis,
        "position": prompt.slice,
        "source": prompt.source,
        "content": content,
    }


def _problem_row(problem: ProblemRecord) -> dict[str, str]:
    values = {name: storable(value) for name, value in asdict(problem).items()}
    return values | {"key": _digest([values["source"], values["row"], values["reason"]])}


def _add_prompts(connection: sa.Connection, prompts: list[Prompt], file: str) -> int:
    rows = list({row["key"]: row for row in map(_prompt_row, prompts)}.values())
    _check_known(connection, {prompt.case for prompt in prompts})
    # Counted before: what drivers say of many rows in one statement differs.
    known = _known(connection, PromptRow.key, [row["key"] for row in rows])
    upsert(connection, PromptRow, rows)
    upsert(connection, PromptFileRow, [{"key": row["key"], "file": file} for row in rows])
    return len(rows) - len(known)


def _known(connection: sa.Connection, column: InstrumentedAttribute[str], wanted: list[str]) -> set[str]:
    """Return those of ``wanted`` that a column holds."""
    pages = (wanted[start : start + _KEYS_PER_QUERY] for start in range(0, len(wanted), _KEYS_PER_QUERY))
    return {found for page in pages for found in connection.scalars(sa.select(column).where(column.in_(page)))}


def _take_back(connection: sa.Connection, file: str, source: str, keep: set[str]) -> int:
    """Delete what a file said under a source, except ``keep`` and what somebody else says too; return how many went."""
    said = sa.select(PromptFileRow.key).join(PromptRow, PromptRow.key == PromptFileRow.key)
    stale = sorted(set(connection.scalars(said.where(PromptFileRow.file == file, PromptRow.source == source))) - keep)
    deleted = 0
    for start in range(0, len(stale), _KEYS_PER_QUERY):
        page = stale[start : start + _KEYS_PER_QUERY]
        connection.execute(sa.delete(PromptFileRow).where(PromptFileRow.file == file, PromptFileRow.key.in_(page)))
        elsewhere = sa.exists().where(PromptFileRow.key == PromptRow.key)
        deleted += connection.execute(sa.delete(PromptRow).where(PromptRow.key.in_(page), ~elsewhere)).rowcount
    return deleted


def _replace_boxes(connection: sa.Connection, boxes: list[Prompt]) -> None:
    for box in boxes:
        place = (PromptRow.axis == box.axis, PromptRow.position == box.slice)
        _forget_prompts(connection, box.case, box.class_id, box.source, *place)
    _add_prompts(connection, boxes, "")


def _forget_prompts(connection: sa.Connection, case_id: str, class_id: int, source: str, *where: sa.ColumnElement[bool]) -> int:
    mine = (PromptRow.case_id == case_id, PromptRow.class_id == class_id, PromptRow.source == source)
    return connection.execute(sa.delete(PromptRow).where(*mine, *where)).rowcount


def _stages_that_write(label_set: str) -> list[str]:
    names = [f"label:{label_set}", f"refine:{label_set}", f"gold/{label_set}"]
    return [*names, "gold"] if label_set == "gold" else names


def _forget_done(connection: sa.Connection, case_id: str, stages: sa.ColumnElement[bool]) -> None:
    """Have label work that was finished done again. Whoever rewrites the labels right now holds a claim, and that stays."""
    connection.execute(sa.delete(UnitRow).where(UnitRow.unit == case_id, UnitRow.state == "done", stages))


def _score_rows(case_id: str, label_set: str, scores: Mapping[str, float]) -> list[dict[str, Any]]:
    return [
        {"case_id": case_id, "label_set": label_set, "metric": metric, "value": None if math.isnan(value) else float(value)}
        for metric, value in scores.items()
    ]


def _digest(content: object) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check_known(connection: sa.Connection, case_ids: Iterable[str]) -> None:
    wanted = sorted(set(case_ids))
    known = _known(connection, CaseRow.id, wanted)
    unknown = [case_id for case_id in wanted if case_id not in known]
    if unknown:
        message = (
            f"{len(unknown)} of {len(wanted)} cases are not in the catalog, such as {', '.join(unknown[:5])}. Ingest their images first."
        )
        raise CaseNotFoundError(message)
