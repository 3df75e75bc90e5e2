"""Second reviews: what several reviewers agree on, and which inspections need another one."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

AGAIN = sa.text("again")


def upgrade() -> None:
    """Add the columns. A pass that was found NG so far has had one opinion: it needs another."""
    with op.batch_alter_table("inspections") as table:
        table.add_column(sa.Column("confirmed", sa.String(2)))
        table.add_column(sa.Column("again", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("doubtful", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("recheck_probability", sa.Double()))
        table.add_column(sa.Column("recheck", sa.String(8)))
    op.execute(
        sa.text("UPDATE inspections SET again = (1 = 1), doubtful = (1 = 1) WHERE verdict = 'OK' AND label = 'NG'")
    )
    op.create_index("ix_inspections_again", "inspections", ["recipe", "id"], sqlite_where=AGAIN, postgresql_where=AGAIN)


def downgrade() -> None:
    """Drop the columns; the reviews stay."""
    op.drop_index("ix_inspections_again", "inspections")
    with op.batch_alter_table("inspections") as table:
        for column in ("recheck", "recheck_probability", "doubtful", "again", "confirmed"):
            table.drop_column(column)
