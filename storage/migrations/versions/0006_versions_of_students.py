"""Which training of a student this is, by which recipe and program, and which student people chose to use."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the columns, with what is true of students from before, and the table of trainings that others took the place of."""
    for name, length in (("weights", 64), ("code", 160), ("trained_at", 32)):
        op.add_column("students", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    op.add_column("students", sa.Column("recipe", sa.JSON, nullable=False, server_default="{}"))
    op.add_column("students", sa.Column("revision", sa.Integer, nullable=False, server_default="1"))
    op.add_column("students", sa.Column("promoted", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "student_versions",
        sa.Column("name", sa.String(160), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content", sa.JSON, nullable=False),
    )
