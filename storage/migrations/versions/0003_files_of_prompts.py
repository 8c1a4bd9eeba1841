"""Which file a prompt came from, so that a corrected file can take back what it no longer says."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the files of prompts. Older prompts have none yet: they get theirs when the file is imported again."""
    op.create_table(
        "prompt_files",
        sa.Column("key", sa.String(32), sa.ForeignKey("prompts.key", ondelete="CASCADE"), primary_key=True),
        sa.Column("file", sa.String(32), primary_key=True),
    )
    op.create_index("ix_prompt_files_file", "prompt_files", ["file"])
