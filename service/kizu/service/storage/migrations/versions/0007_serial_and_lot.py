"""Inspections of a serial or a lot in the order of a list, so that its newest page is read without the others."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the id to the indexes of serials and lots."""
    for column in ("serial", "lot"):
        op.create_index(f"ix_inspections_{column}_id", "inspections", [column, "id"])
        op.drop_index(f"ix_inspections_{column}", "inspections")


def downgrade() -> None:
    """Leave the id out again."""
    for column in ("serial", "lot"):
        op.create_index(f"ix_inspections_{column}", "inspections", [column])
        op.drop_index(f"ix_inspections_{column}_id", "inspections")
