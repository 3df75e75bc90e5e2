"""Every query on recipes, models and promotions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.identifiers import new_id
from kizu.service.registry.tables import Model, Promotion, Recipe
from kizu.service.storage.database import insert_or_ignore


def lock_recipe(session: Session, name: str) -> Recipe | None:
    """The recipe, held against other writers until the transaction ends."""
    return session.get(Recipe, name, with_for_update=True, populate_existing=True)


def ensure_recipe(session: Session, name: str) -> Recipe:
    """The recipe, made if need be, and held."""
    insert_or_ignore(session, Recipe, name=name, created_at=datetime.now(UTC))
    recipe = lock_recipe(session, name)
    assert recipe is not None
    return recipe


def champions(session: Session) -> dict[str, str | None]:
    """Recipe → id of its champion."""
    return {row.name: row.champion_id for row in session.execute(sa.select(Recipe.name, Recipe.champion_id))}


def model(session: Session, model_id: str) -> Model | None:
    """One model."""
    return session.get(Model, model_id)


def model_with_fingerprint(session: Session, fingerprint: str) -> Model | None:
    """The model that was added from the bundle with this fingerprint."""
    return session.scalars(sa.select(Model).where(Model.fingerprint == fingerprint)).one_or_none()


def models(session: Session, recipe: str | None = None) -> Sequence[Model]:
    """All models, of one recipe or of all, newest first."""
    query = sa.select(Model).order_by(Model.recipe, Model.number.desc())
    if recipe is not None:
        query = query.where(Model.recipe == recipe)
    return session.scalars(query).all()


def add_model(session: Session, *, model_id: str, recipe: str, fingerprint: str, manifest: dict[str, Any]) -> Model:
    """A new version of the recipe; the caller holds the recipe."""
    latest = session.scalar(sa.select(sa.func.max(Model.number)).where(Model.recipe == recipe))
    added = Model(
        id=model_id,
        recipe=recipe,
        number=(latest or 0) + 1,
        fingerprint=fingerprint,
        manifest=manifest,
        created_at=datetime.now(UTC),
    )
    session.add(added)
    session.flush()
    return added


def set_champion(session: Session, recipe: Recipe, model_id: str, action: str) -> None:
    """Make a model the champion and write down who it was before."""
    session.add(
        Promotion(
            id=new_id(),
            recipe=recipe.name,
            action=action,
            model_id=model_id,
            previous_id=recipe.champion_id,
            created_at=datetime.now(UTC),
        )
    )
    recipe.champion_id = model_id


def promotions(session: Session, recipe: str) -> Sequence[Promotion]:
    """Every change of the recipe's champion, oldest first."""
    return session.scalars(sa.select(Promotion).where(Promotion.recipe == recipe).order_by(Promotion.id)).all()
