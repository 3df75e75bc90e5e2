"""`/healthz` and `/readyz`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from kizu.errors import UserError
from kizu.service.dependencies import injected
from kizu.service.inference.errors import InferenceError
from kizu.service.inference.runtime import Runtime
from kizu.service.problems import Problem, responses
from kizu.service.storage import schema
from kizu.service.storage.database import Database
from kizu.version import __version__

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """A process that is alive."""

    status: Literal["ok"] = "ok"
    version: str = __version__


class RecipeState(BaseModel):
    """The state of a recipe's champion."""

    recipe: str
    champion: str | None = Field(description="Id of the model that decides; null: none was promoted.")
    state: Literal["loaded", "unusable", "no champion"]
    provider: str | None = Field(description="What ONNX Runtime computes with.")
    problem: str | None


class Readiness(BaseModel):
    """A service that can inspect."""

    status: Literal["ready"] = "ready"
    schema_version: str
    recipes: list[RecipeState]


@router.get("/healthz", summary="Is the process alive?")
async def get_health() -> Health:
    """Return 200 while the process is alive; `/readyz` says whether it can serve."""
    return Health()


@router.get("/readyz", summary="Can it serve?", responses=responses(503))
async def get_readiness(
    request: Request,
    database: Annotated[Database, injected(Database)],
    runtime: Annotated[Runtime, injected(Runtime)],
) -> Readiness:
    """Return 200 while inspections can be served; 503 while draining, without database, or with no usable champion.

    Recipes whose champion is unusable are listed with the reason; the others are not affected.
    """
    if request.app.state.draining:
        raise Problem(503, "draining", "The service is shutting down; what it has begun it will finish.")
    version = await asyncio.to_thread(schema.current, database)
    if version != schema.head():
        raise Problem(503, "schema-mismatch", f"The database has schema {version}, not {schema.head()}.")
    recipes = [await _state(runtime, *item) for item in sorted((await runtime.champions()).items())]
    if any(recipe.state == "unusable" for recipe in recipes) and all(r.state != "loaded" for r in recipes):
        problems = " ".join(recipe.problem for recipe in recipes if recipe.problem)
        raise Problem(503, "no-usable-model", problems, extra={"recipes": [r.model_dump() for r in recipes]})
    return Readiness(schema_version=version, recipes=recipes)


async def _state(runtime: Runtime, recipe: str, champion: str | None) -> RecipeState:
    if champion is None:
        return RecipeState(recipe=recipe, champion=None, state="no champion", provider=None, problem=None)
    try:
        loaded = await runtime.version(champion)
    except (InferenceError, UserError) as error:
        problem = error.problem if isinstance(error, UserError) else str(error)
        return RecipeState(recipe=recipe, champion=champion, state="unusable", provider=None, problem=problem)
    return RecipeState(recipe=recipe, champion=champion, state="loaded", provider=loaded.provider, problem=None)
