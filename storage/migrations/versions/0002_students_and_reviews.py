"""Students and reviews: what comes after labelling."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the tables of the later stages."""
    op.create_table(
        "reviews",
        sa.Column("case_id", sa.String(128), sa.ForeignKey("cases.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("label_set", sa.String(160), primary_key=True),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
    )
    op.create_table(
        "students",
        sa.Column("name", sa.String(160), primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("label_set", sa.String(160), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("parameters", sa.Integer, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
    )
