"""Reviews, and the latest label of each inspection."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

IN_QUEUE = sa.text("label IS NULL AND (verdict <> 'OK' OR audited)")


def upgrade() -> None:
    """Create the table of reviews, and the labels of inspections."""
    op.create_table(
        "reviews",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("inspection_id", sa.Uuid(), nullable=False),
        sa.Column("label", sa.String(2), nullable=False),
        sa.Column("defect", sa.String(128)),
        sa.Column("note", sa.Text()),
        sa.Column("reviewer", sa.String(128)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_reviews"),
        sa.ForeignKeyConstraint(["inspection_id"], ["inspections.id"], name="fk_reviews_inspection_id_inspections"),
    )
    op.create_index("ix_reviews_inspection_id_id", "reviews", ["inspection_id", "id"])
    with op.batch_alter_table("inspections") as table:
        table.add_column(sa.Column("label", sa.String(2)))
    op.create_index(
        "ix_inspections_queue", "inspections", ["recipe", "id"], sqlite_where=IN_QUEUE, postgresql_where=IN_QUEUE
    )


def downgrade() -> None:
    """Drop the table of reviews, and the labels of inspections."""
    op.drop_index("ix_inspections_queue", "inspections")
    with op.batch_alter_table("inspections") as table:
        table.drop_column("label")
    op.drop_table("reviews")
