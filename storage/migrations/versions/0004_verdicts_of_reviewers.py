"""Verdicts of reviewers: one row for each thing that a person decided, by class, and what each reviewer was shown."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Replace the table of reviews; what stood there was about no class in particular and keeps its place in the history as class 0."""
    op.create_table(
        "verdicts",
        *_subject(),
        sa.Column("revision", sa.Integer, primary_key=True),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("filter_said", sa.String(16), nullable=False),
        sa.Column("reviewer", sa.String(64), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_index("ix_verdicts_label_set_case_id", "verdicts", ["label_set", "case_id"])
    op.create_table(
        "review_listings",
        *_subject(),
        sa.Column("reviewer", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
    )
    op.execute(
        "INSERT INTO verdicts (case_id, label_set, class_id, revision, action, verdict, source, filter_said, reviewer, at, fingerprint, note) "
        "SELECT case_id, label_set, 0, 1, 'judge', verdict, 'asked', '', '', '', '', note FROM reviews"
    )
    op.drop_table("reviews")


def _subject() -> tuple[sa.Column[str], sa.Column[str], sa.Column[int]]:
    """Return the columns that say what was looked at."""
    return (
        sa.Column("case_id", sa.String(128), sa.ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("label_set", sa.String(160), primary_key=True),
        sa.Column("class_id", sa.Integer, primary_key=True),
    )
