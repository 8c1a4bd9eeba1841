"""What a label set was made of, so that masks which were drawn anew since are noticed without opening a file."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column. Of older label sets it is not known here, but in their files."""
    op.add_column("label_sets", sa.Column("made_of", sa.String(64), nullable=True))
