"""Cases, prompts, label sets, scores, problems and the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make what ingest and labelling need."""
    _cases()
    _prompts()
    _label_sets()
    _scores()
    _units()
    _problems()


def _case_id(*, key: bool) -> sa.Column[str]:
    return sa.Column("case_id", sa.String(128), sa.ForeignKey("cases.id", ondelete="CASCADE"), primary_key=key, nullable=False)


def _cases() -> None:
    op.create_table(
        "cases",
        sa.Column("id", sa.String(128), primary_key=True),
        sa.Column("patient", sa.String(160), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("modality", sa.String(32), nullable=False),
        sa.Column("dtype", sa.String(16), nullable=False),
        *(sa.Column(f"size_{axis}", sa.Integer, nullable=False) for axis in "czyx"),
        sa.Column("geometry", sa.JSON, nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("ready", sa.Boolean, nullable=False),
    )
    op.create_index("ix_cases_part_id", "cases", ["part", "id"])
    op.create_index("ix_cases_modality_id", "cases", ["modality", "id"])
    op.create_index("ix_cases_patient", "cases", ["patient"])


def _prompts() -> None:
    op.create_table(
        "prompts",
        sa.Column("key", sa.String(32), primary_key=True),
        _case_id(key=False),
        sa.Column("class_id", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("axis", sa.String(1), nullable=False),
        sa.Column("position", sa.Integer),
        sa.Column("source", sa.String(160), nullable=False),
        sa.Column("content", sa.JSON, nullable=False),
    )
    op.create_index("ix_prompts_case_id_class_id", "prompts", ["case_id", "class_id"])
    op.create_index("ix_prompts_source", "prompts", ["source"])


def _label_sets() -> None:
    op.create_table(
        "label_sets",
        _case_id(key=True),
        sa.Column("name", sa.String(160), primary_key=True),
        sa.Column("made_by", sa.String(160), nullable=False),
        sa.Column("teacher", sa.String(160), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
    )
    op.create_index("ix_label_sets_name_case_id", "label_sets", ["name", "case_id"])
    op.create_index("ix_label_sets_teacher", "label_sets", ["teacher"])


def _scores() -> None:
    op.create_table(
        "scores",
        _case_id(key=True),
        sa.Column("label_set", sa.String(160), primary_key=True),
        sa.Column("metric", sa.String(160), primary_key=True),
        sa.Column("value", sa.Float),
    )
    op.create_index("ix_scores_label_set_metric", "scores", ["label_set", "metric"])


def _units() -> None:
    op.create_table(
        "units",
        sa.Column("stage", sa.String(160), primary_key=True),
        sa.Column("unit", sa.String(128), primary_key=True),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_started", sa.Float, nullable=False),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("seconds", sa.Float),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("note", "error", "traceback")),
    )
    op.create_index("ix_units_stage_state", "units", ["stage", "state"])


def _problems() -> None:
    op.create_table(
        "ingest_problems",
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("row", sa.Text, nullable=False),
        sa.Column("reason", sa.String(160), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
    )
    op.create_index("ix_ingest_problems_reason", "ingest_problems", ["reason"])
