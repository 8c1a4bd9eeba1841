"""What each of several channels of a case is called."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column. Nobody has named the channels of older cases."""
    op.add_column("cases", sa.Column("channels", sa.JSON(), nullable=True))
