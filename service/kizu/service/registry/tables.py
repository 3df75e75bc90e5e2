"""Tables of recipes, of their model versions and of promotions."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from kizu.models.operating_point import OperatingPoint
from kizu.service.storage.database import Base


class RegisteredRecipe(Base):
    """A recipe that the service knows; made by the first model that is added for it."""

    __tablename__ = "recipes"

    name: Mapped[str] = mapped_column(sa.String(128), primary_key=True)
    champion_id: Mapped[str | None] = mapped_column(
        sa.String(16), sa.ForeignKey("models.id", use_alter=True, name="fk_recipes_champion_id_models")
    )
    created_at: Mapped[datetime]


class Model(Base):
    """A registered bundle. Everything about it but its retirement is fixed when it is added."""

    __tablename__ = "models"
    __table_args__ = (sa.UniqueConstraint("recipe", "number"),)

    id: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    """The first 16 hex digits of the fingerprint."""
    recipe: Mapped[str] = mapped_column(sa.String(128), sa.ForeignKey("recipes.name"))
    number: Mapped[int]
    """Counts the recipe's versions from 1."""
    fingerprint: Mapped[str] = mapped_column(sa.String(64), unique=True)
    """SHA-256 of `bundle.json` when it was added; checked at every load."""
    manifest: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]

    @cached_property
    def operating_point(self) -> OperatingPoint:
        """The threshold with its certificate."""
        return OperatingPoint.model_validate(self.manifest["operating_point"])

    @cached_property
    def statement(self) -> str:
        """The certificate as sentences; its bounds take a while to compute."""
        return self.operating_point.statement()

    @property
    def name(self) -> str:
        """Recipe and number, as `deeppcb v3`."""
        return f"{self.recipe} v{self.number}"


class Promotion(Base):
    """One change of champion; rows are only ever added."""

    __tablename__ = "promotions"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    recipe: Mapped[str] = mapped_column(sa.String(128), sa.ForeignKey("recipes.name"), index=True)
    action: Mapped[str] = mapped_column(sa.String(16))
    """`promote` or `rollback`."""
    model_id: Mapped[str] = mapped_column(sa.String(16), sa.ForeignKey("models.id"))
    previous_id: Mapped[str | None] = mapped_column(sa.String(16), sa.ForeignKey("models.id"))
    created_at: Mapped[datetime]
