"""The tables of the catalog. A change here needs a new revision in ``storage/migrations/versions``."""

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID_LENGTH = 128
NAME_LENGTH = 160


class Base(DeclarativeBase):
    """Names every constraint, because a migration can only drop what has a name it knows."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def _case_id() -> Mapped[str]:
    """A primary-key column that names a case and goes when the case goes."""
    return mapped_column(String(ID_LENGTH), ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True)


class CaseRow(Base):
    """One case. ``ready`` is false while its pixels are being replaced."""

    __tablename__ = "cases"
    # Keyset pages are read as "this part, ids after X", so the id closes each index.
    __table_args__ = (Index(None, "part", "id"), Index(None, "modality", "id"), Index(None, "patient"))

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    patient: Mapped[str] = mapped_column(String(NAME_LENGTH))
    part: Mapped[str] = mapped_column(String(16))
    modality: Mapped[str] = mapped_column(String(32))
    dtype: Mapped[str] = mapped_column(String(16))
    size_c: Mapped[int]
    size_z: Mapped[int]
    size_y: Mapped[int]
    size_x: Mapped[int]
    geometry: Mapped[dict[str, Any]] = mapped_column(JSON)
    attributes: Mapped[dict[str, Any]] = mapped_column(JSON)
    fingerprint: Mapped[str] = mapped_column(String(64))
    ready: Mapped[bool]
    channels: Mapped[list[dict[str, str]] | None] = mapped_column(JSON)
    """Names of several channels; NULL in rows of before these were kept."""


class PromptRow(Base):
    """One prompt; the key is a hash of its content, so that importing a file twice changes nothing."""

    __tablename__ = "prompts"
    __table_args__ = (Index(None, "case_id", "class_id"), Index(None, "source"))

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    case_id: Mapped[str] = mapped_column(String(ID_LENGTH), ForeignKey("cases.id", ondelete="CASCADE"))
    class_id: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    axis: Mapped[str] = mapped_column(String(1))
    position: Mapped[int | None]
    source: Mapped[str] = mapped_column(String(NAME_LENGTH))
    content: Mapped[dict[str, Any]] = mapped_column(JSON)


class PromptFileRow(Base):
    """One file says one prompt. Several files may say the same one; it stays until none does."""

    __tablename__ = "prompt_files"
    __table_args__ = (Index(None, "file"),)

    key: Mapped[str] = mapped_column(String(32), ForeignKey("prompts.key", ondelete="CASCADE"), primary_key=True)
    file: Mapped[str] = mapped_column(String(32), primary_key=True)
    """Hash of the file's place, because a path may name a patient; empty for prompts that came from no file."""


class LabelSetRow(Base):
    """One finished label set of one case. The row is written after the arrays: without a row there is no label set."""

    __tablename__ = "label_sets"
    # "Which labels came from this teacher?" is how a bad teacher is withdrawn.
    __table_args__ = (Index(None, "name", "case_id"), Index(None, "teacher"))

    case_id: Mapped[str] = _case_id()
    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    made_by: Mapped[str] = mapped_column(String(NAME_LENGTH))
    teacher: Mapped[str] = mapped_column(String(NAME_LENGTH))
    round: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(String(64))
    made_of: Mapped[str | None] = mapped_column(String(64))
    """Fingerprint of the label set that it was made from, empty where there is none; NULL where it was written before this was kept."""


class ScoreRow(Base):
    """One number about one label set of one case."""

    __tablename__ = "scores"
    __table_args__ = (Index(None, "label_set", "metric"),)

    case_id: Mapped[str] = _case_id()
    label_set: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    metric: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    value: Mapped[float | None]
    """NULL stands for not-a-number, which PostgreSQL and SQLite treat differently."""


class UnitRow(Base):
    """One unit of work of one stage."""

    __tablename__ = "units"
    __table_args__ = (Index(None, "stage", "state"),)

    stage: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    unit: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int]
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    pid_started: Mapped[float]
    lease_until: Mapped[float]
    seconds: Mapped[float | None]
    note: Mapped[str] = mapped_column(Text)
    error: Mapped[str] = mapped_column(Text)
    traceback: Mapped[str] = mapped_column(Text)


class ProblemRow(Base):
    """One file or row that ingest refused; the key is a hash of where and why."""

    __tablename__ = "ingest_problems"
    __table_args__ = (Index(None, "reason"),)

    key: Mapped[str] = mapped_column(String(32), primary_key=True)
    source: Mapped[str] = mapped_column(Text)
    row: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(String(NAME_LENGTH))
    message: Mapped[str] = mapped_column(Text)


class VerdictRow(Base):
    """One thing that a person decided about one class of one label set of one case. Rows are only added: the last revision counts."""

    __tablename__ = "verdicts"
    __table_args__ = (Index(None, "label_set", "case_id"),)

    case_id: Mapped[str] = _case_id()
    label_set: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    class_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """1, 2, ...; two reviewers at once cannot both write the same one."""
    action: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(16))
    filter_said: Mapped[str] = mapped_column(String(16))
    reviewer: Mapped[str] = mapped_column(String(64))
    at: Mapped[str] = mapped_column(String(32))
    fingerprint: Mapped[str] = mapped_column(String(64))
    """Of the labels that were judged."""
    note: Mapped[str] = mapped_column(Text)


class ListingRow(Base):
    """What a reviewer was last shown of one class of one case, so that a verdict on something else is noticed."""

    __tablename__ = "review_listings"

    case_id: Mapped[str] = _case_id()
    label_set: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    class_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reviewer: Mapped[str] = mapped_column(String(64), primary_key=True)
    source: Mapped[str] = mapped_column(String(16))
    fingerprint: Mapped[str] = mapped_column(String(64))
    revision: Mapped[int]


class StudentRow(Base):
    """One trained student."""

    __tablename__ = "students"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    path: Mapped[str] = mapped_column(Text)
    label_set: Mapped[str] = mapped_column(String(NAME_LENGTH))
    round: Mapped[int]
    parameters: Mapped[int]
    fingerprint: Mapped[str] = mapped_column(String(64))
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)
    weights: Mapped[str] = mapped_column(String(64))
    recipe: Mapped[dict[str, Any]] = mapped_column(JSON)
    code: Mapped[str] = mapped_column(String(NAME_LENGTH))
    trained_at: Mapped[str] = mapped_column(String(32))
    revision: Mapped[int]
    promoted: Mapped[int]
    """The revision that was promoted, 0 for none; at most one row of the table has another number."""


class StudentVersionRow(Base):
    """What was known of one training of a student, when the next one under its name had not begun yet."""

    __tablename__ = "student_versions"

    name: Mapped[str] = mapped_column(String(NAME_LENGTH), primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[dict[str, Any]] = mapped_column(JSON)
