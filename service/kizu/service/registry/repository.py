"""Queries on recipes, models and promotions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from kizu.service.identifiers import new_id
from kizu.service.registry.tables import Model, Promotion, RegisteredRecipe
from kizu.service.storage.database import insert_or_ignore


def recipe_exists(session: Session, name: str) -> bool:
    """Return True if a model was ever added for the recipe."""
    return session.get(RegisteredRecipe, name) is not None


def lock_recipe(session: Session, name: str) -> RegisteredRecipe | None:
    """Return the recipe, locked against other writers until the transaction ends."""
    return session.get(RegisteredRecipe, name, with_for_update=True, populate_existing=True)


def ensure_recipe(session: Session, name: str) -> RegisteredRecipe:
    """Return the recipe, locked; insert it if it is new."""
    insert_or_ignore(session, RegisteredRecipe, name=name, created_at=datetime.now(UTC))
    recipe = lock_recipe(session, name)
    assert recipe is not None
    return recipe


def champions(session: Session) -> dict[str, str | None]:
    """Return recipe → id of its champion."""
    query = sa.select(RegisteredRecipe.name, RegisteredRecipe.champion_id)
    return {row.name: row.champion_id for row in session.execute(query)}


def model(session: Session, model_id: str) -> Model | None:
    """Return a model, if the id is known."""
    return session.get(Model, model_id)


def lock_model(session: Session, model_id: str) -> tuple[Model, RegisteredRecipe] | None:
    """Return a model with its recipe, the recipe locked, if the id is known."""
    found = model(session, model_id)
    if found is None:
        return None
    recipe = lock_recipe(session, found.recipe)
    assert recipe is not None
    # Another writer may have retired the model while this one waited for the recipe.
    session.refresh(found)
    return found, recipe


def model_with_fingerprint(session: Session, fingerprint: str) -> Model | None:
    """Return the model that was added from the bundle with this fingerprint."""
    return session.scalars(sa.select(Model).where(Model.fingerprint == fingerprint)).one_or_none()


def models(session: Session, recipe: str | None = None) -> Sequence[Model]:
    """Return all models, of one recipe or of all, newest first."""
    query = sa.select(Model).order_by(Model.recipe, Model.number.desc())
    if recipe is not None:
        query = query.where(Model.recipe == recipe)
    return session.scalars(query).all()


def add_model(session: Session, *, model_id: str, recipe: str, fingerprint: str, manifest: dict[str, Any]) -> Model:
    """Insert a new version of the recipe; the caller has locked the recipe."""
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


def set_champion(session: Session, recipe: RegisteredRecipe, model_id: str, action: str) -> None:
    """Make a model the champion and record its predecessor; the caller has locked the recipe."""
    # The order of the ids is the history that a rollback walks, whatever the clock showed when the last one was made.
    latest = sa.select(Promotion.id).where(Promotion.recipe == recipe.name).order_by(Promotion.id.desc()).limit(1)
    session.add(
        Promotion(
            id=new_id(after=session.scalar(latest)),
            recipe=recipe.name,
            action=action,
            model_id=model_id,
            previous_id=recipe.champion_id,
            created_at=datetime.now(UTC),
        )
    )
    recipe.champion_id = model_id


def promotions(session: Session, recipe: str) -> Sequence[Promotion]:
    """Return every change of the recipe's champion, oldest first."""
    return session.scalars(sa.select(Promotion).where(Promotion.recipe == recipe).order_by(Promotion.id)).all()
