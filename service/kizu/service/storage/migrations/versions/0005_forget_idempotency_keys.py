"""Idempotency keys by their inspection, so that old ones are found and removed."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the index."""
    op.create_index("ix_idempotency_keys_inspection_id", "idempotency_keys", ["inspection_id"])


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_idempotency_keys_inspection_id", "idempotency_keys")
