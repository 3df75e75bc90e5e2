"""Recipes, models, promotions, inspections, idempotency keys and secrets."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_secrets"),
    )
    # Recipes and models refer to each other: SQLite takes a reference to a table that is still to come, PostgreSQL
    # gets it afterwards.
    forward = (
        [sa.ForeignKeyConstraint(["champion_id"], ["models.id"], name="fk_recipes_champion_id_models")]
        if op.get_bind().dialect.name == "sqlite"
        else []
    )
    op.create_table(
        "recipes",
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("champion_id", sa.String(16)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_recipes"),
        *forward,
    )
    op.create_table(
        "models",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.ForeignKeyConstraint(["recipe"], ["recipes.name"], name="fk_models_recipe_recipes"),
        sa.UniqueConstraint("recipe", "number", name="uq_models_recipe_number"),
        sa.UniqueConstraint("fingerprint", name="uq_models_fingerprint"),
    )
    if not forward:
        op.create_foreign_key("fk_recipes_champion_id_models", "recipes", "models", ["champion_id"], ["id"])
    op.create_table(
        "promotions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("model_id", sa.String(16), nullable=False),
        sa.Column("previous_id", sa.String(16)),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
        sa.ForeignKeyConstraint(["recipe"], ["recipes.name"], name="fk_promotions_recipe_recipes"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_promotions_model_id_models"),
        sa.ForeignKeyConstraint(["previous_id"], ["models.id"], name="fk_promotions_previous_id_models"),
    )
    op.create_index("ix_promotions_recipe", "promotions", ["recipe"])
    _create_inspections()


def _create_inspections() -> None:
    op.create_table(
        "inspections",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("recipe", sa.String(128), nullable=False),
        sa.Column("model_id", sa.String(16), nullable=False),
        sa.Column("verdict", sa.String(8), nullable=False),
        sa.Column("score", sa.Double()),
        sa.Column("threshold", sa.Double(), nullable=False),
        sa.Column("serial", sa.String(128)),
        sa.Column("lot", sa.String(128)),
        sa.Column("station", sa.String(128)),
        sa.Column("captured_at", sa.DateTime(timezone=True)),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("image_bytes", sa.Integer(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("media_type", sa.String(32), nullable=False),
        sa.Column("heatmap_low", sa.Double()),
        sa.Column("heatmap_high", sa.Double()),
        sa.Column("audit_probability", sa.Double()),
        sa.Column("audited", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_inspections"),
        sa.ForeignKeyConstraint(["recipe"], ["recipes.name"], name="fk_inspections_recipe_recipes"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_inspections_model_id_models"),
    )
    op.create_index("ix_inspections_recipe_id", "inspections", ["recipe", "id"])
    op.create_index("ix_inspections_station_id", "inspections", ["station", "id"])
    op.create_index("ix_inspections_serial", "inspections", ["serial"])
    op.create_index("ix_inspections_lot", "inspections", ["lot"])
    op.create_index("ix_inspections_image_sha256", "inspections", ["image_sha256"])
    op.create_table(
        "idempotency_keys",
        sa.Column("station", sa.String(128), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("request_sha256", sa.String(64), nullable=False),
        sa.Column("token", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("inspection_id", sa.Uuid()),
        sa.PrimaryKeyConstraint("station", "key", name="pk_idempotency_keys"),
        sa.ForeignKeyConstraint(
            ["inspection_id"], ["inspections.id"], name="fk_idempotency_keys_inspection_id_inspections"
        ),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("idempotency_keys")
    op.drop_table("inspections")
    op.drop_table("promotions")
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint("fk_recipes_champion_id_models", "recipes", type_="foreignkey")
    op.drop_table("models")
    op.drop_table("recipes")
    op.drop_table("secrets")
