"""Inspections of a recipe by their time of capture."""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_inspections_recipe_captured_at", "inspections", ["recipe", "captured_at"])


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_inspections_recipe_captured_at", "inspections")
