"""The catalog: what there is to know about cases without opening one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

import sqlalchemy as sa

from storage import label_rows, student_rows
from storage.case import CaseRecord, LabelHistory, Part, Prompt
from storage.case_rows import case_record, case_row, check_known, digest
from storage.database import Database, storable, upsert
from storage.prompt_rows import (
    Replaces,
    add_prompts,
    cases_off_axis,
    forget_prompts,
    prompt_kinds,
    prompt_row,
    prompts_from,
    read_prompts,
    replace_boxes,
    take_back,
)
from storage.records import ListingRecord, ProblemRecord, ReviewRecord, Scalar, StudentRecord
from storage.reviews import add_verdict, listed, listing_row, verdicts
from storage.tables import CaseRow, LabelSetRow, ListingRow, ProblemRow, PromptRow


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
        row = case_row(record)
        with self._database.writing() as connection:
            upsert(connection, CaseRow, [row], update=[name for name in row if name != "id"])

    def retract_case(self, case_id: str) -> None:
        """Hide a case while its pixels are replaced, and forget its label sets, their scores and that they were made.

        What people left stays: prompts, and verdicts, each tied to the fingerprint of what was judged.
        """
        with self._database.writing() as connection:
            connection.execute(sa.update(CaseRow).where(CaseRow.id == case_id).values(ready=False))
            label_rows.forget_all(connection, case_id)

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
            return [case_record(row) for row in connection.execute(query).mappings()]

    def find_case(self, case_id: str) -> CaseRecord | None:
        """Return one record, or None."""
        query = sa.select(CaseRow.__table__).where(CaseRow.id == storable(case_id), CaseRow.ready)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else case_record(row)

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
            check_known(connection, parts)
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
            return add_prompts(connection, prompts, file)

    def replace_prompts(self, prompts: list[Prompt], *, file: str, source: str) -> tuple[int, int]:
        """Make ``prompts`` all that one file says under one source. What another file says too stays.

        Returns:
            How many were new, and how many were taken back.

        Raises:
            CaseNotFoundError: if a prompt is about a case that is not in the catalog; nothing is changed then.
        """
        with self._database.writing() as connection:
            added = add_prompts(connection, prompts, file)
            return added, take_back(connection, file, source, keep={prompt_row(prompt)["key"] for prompt in prompts})

    def prompts(self, case_id: str, class_id: int | None = None) -> list[Prompt]:
        """Return the prompts of a case, by class, then axis and slice."""
        found = self.prompts_by_case([case_id])[case_id]
        return [prompt for prompt in found if class_id is None or prompt.class_id == class_id]

    def prompts_by_case(self, case_ids: list[str]) -> dict[str, list[Prompt]]:
        """Return the prompts of many cases; a case without any has an empty list."""
        with self._database.reading() as connection:
            return read_prompts(connection, case_ids)

    def cases_off_axis(self) -> list[str]:
        """Return the cases with prompts on slices that are not axial, sorted."""
        with self._database.reading() as connection:
            return cases_off_axis(connection)

    def prompts_from(self, source: str) -> list[Prompt]:
        """Return all prompts of one source, such as the boxes of reviewers, by case, class and slice."""
        with self._database.reading() as connection:
            return prompts_from(connection, source)

    def prompt_kinds(self) -> dict[tuple[str, int], frozenset[tuple[str, str, bool]]]:
        """Return case and class -> sources and kinds of their prompts, and whether these are positive, of all cases that have some."""
        with self._database.reading() as connection:
            return prompt_kinds(connection)

    def delete_prompts(self, *, source: str) -> int:
        """Forget every prompt of one source, and return how many there were."""
        with self._database.writing() as connection:
            return connection.execute(sa.delete(PromptRow).where(PromptRow.source == source)).rowcount

    # Label sets and scores

    def add_label_set(self, case_id: str, history: LabelHistory, scores: Mapping[str, float]) -> None:
        """Insert the row that makes a label set visible, together with its scores."""
        with self._database.writing() as connection:
            label_rows.put(connection, case_id, history, scores)

    def add_scores(self, case_id: str, label_set: str, scores: Mapping[str, float]) -> None:
        """Add scores to a finished label set, or overwrite those of the same name; its arrays and its other scores stay.

        Raises:
            LabelSetNotFoundError: if the case has no such label set, or not a finished one.
        """
        with self._database.writing() as connection:
            label_rows.put_scores(connection, case_id, label_set, scores)

    def retract_label_set(self, case_id: str, name: str) -> None:
        """Hide a label set, and forget scores that were about its old voxels, and that it was made.

        Verdicts of people stay, each tied to the fingerprint of what was judged: they count again if the same labels come back.
        """
        with self._database.writing() as connection:
            label_rows.forget(connection, case_id, name)

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
        with self._database.reading() as connection:
            return label_rows.read_scores(connection, label_set, cases)

    # Reviews, students, problems

    def record_review(self, review: ReviewRecord, *, seen: int | None = None, boxes: list[Prompt] | None = None) -> ReviewRecord:
        """Add one decision; see :meth:`record_reviews`."""
        return self.record_reviews([review], seen=[seen], boxes=boxes)[0]

    def record_reviews(
        self,
        reviews: Sequence[ReviewRecord],
        *,
        seen: Sequence[int | None],
        boxes: list[Prompt] | None = None,
        replaces: Replaces | None = None,
    ) -> list[ReviewRecord]:
        """Add a person's decisions to the history, and the boxes that go with them; all or nothing.

        Args:
            reviews: What was decided. The fingerprint names the labels that were looked at, the revision does not matter.
            seen: For each, how many decisions about this mask the person knew of; None overrules whatever there is.
            boxes: New prompts in place of those of the same source, class and slice.
            replaces: Of these, which a new one takes the place of; see :meth:`replace_boxes`.

        Returns:
            The records as stored, with their revisions.

        Raises:
            CaseNotFoundError: if a case is not in the catalog.
            ReviewConflictError: if labels are no longer those that were looked at, or somebody else has decided meanwhile.
        """
        with self._database.writing() as connection:
            check_known(connection, {review.case for review in reviews})
            stored = [add_verdict(connection, review, known) for review, known in zip(reviews, seen, strict=True)]
            replace_boxes(connection, boxes or [], replaces)
        return stored

    def take_back_reviews(
        self, reviews: Sequence[ReviewRecord], *, seen: Sequence[int | None], case_id: str, class_ids: Sequence[int], source: str
    ) -> int:
        """Add decisions that take others back, and forget the boxes of one source about these classes; all or nothing.

        Returns:
            How many boxes were forgotten.

        Raises:
            ReviewConflictError: as for :meth:`record_reviews`.
        """
        with self._database.writing() as connection:
            for review, known in zip(reviews, seen, strict=True):
                add_verdict(connection, review, known)
            return sum(forget_prompts(connection, case_id, class_id, source) for class_id in class_ids)

    def replace_boxes(self, boxes: list[Prompt], *, replaces: Replaces | None = None) -> None:
        """Add prompts in place of those of the same source, class and slice.

        Args:
            boxes: What to add.
            replaces: Called with a prompt that is there and a new one; whether the new one takes its place. All are replaced without it. What
                it is called with is read in the transaction that writes, so that nobody's box is lost.

        Raises:
            CaseNotFoundError: if a prompt is about a case that is not in the catalog; nothing is changed then.
        """
        with self._database.writing() as connection:
            replace_boxes(connection, boxes, replaces)

    def forget_boxes(self, case_id: str, class_id: int, *, source: str) -> int:
        """Take back the prompts of one source about one class of a case, and return how many there were."""
        with self._database.writing() as connection:
            return forget_prompts(connection, case_id, class_id, source)

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

    def made_of(self, label_set: str) -> dict[str, str | None]:
        """Return case -> fingerprint of the labels that its label set was made from; empty if of none, None where only the file knows."""
        query = sa.select(LabelSetRow.case_id, LabelSetRow.made_of).where(LabelSetRow.name == label_set)
        with self._database.reading() as connection:
            return dict(connection.execute(query.order_by(LabelSetRow.case_id)).tuples().all())

    def record_made_of(self, label_set: str, sources: Mapping[str, str]) -> None:
        """Keep what files say that label sets were made from, by case; where it is known already, that stays."""
        with self._database.writing() as connection:
            label_rows.put_made_of(connection, label_set, sources)

    def record_student(self, student: StudentRecord) -> None:
        """Insert a student, or a new training of it, which counts one revision on; what was known of the one before stays.

        The same training recorded again adds to its metrics, and takes nothing away. ``revision`` and ``promoted`` are the catalog's own.
        """
        with self._database.writing() as connection:
            student_rows.put(connection, student)

    def students(self) -> list[StudentRecord]:
        """Return all students, by name."""
        with self._database.reading() as connection:
            return student_rows.read_all(connection)

    def student_versions(self, name: str) -> list[StudentRecord]:
        """Return every training of a student, the oldest first, the one that stands last; empty where there is no such student."""
        with self._database.reading() as connection:
            return student_rows.versions(connection, name)

    def add_student_metrics(self, name: str, metrics: Mapping[str, Scalar]) -> None:
        """Add to what is known of how good a student is; a student that is not recorded stays so."""
        with self._database.writing() as connection:
            student_rows.add_metrics(connection, name, metrics)

    def promote_student(self, name: str, revision: int) -> bool:
        """Make one student the one to use, in place of any other; False, and nothing changed, if it is not there in this revision."""
        with self._database.writing() as connection:
            return student_rows.promote(connection, name, revision)

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


def _problem_row(problem: ProblemRecord) -> dict[str, str]:
    values = {name: storable(value) for name, value in asdict(problem).items()}
    return values | {"key": digest([values["source"], values["row"], values["reason"]])}
