"""A table for probes: what asks whether the database can be written."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "probes", sa.Column("id", sa.Uuid(), nullable=False), sa.PrimaryKeyConstraint("id", name="pk_probes")
    )


def downgrade() -> None:
    """Drop the table; nothing is in it."""
    op.drop_table("probes")
