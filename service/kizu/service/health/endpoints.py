"""`/healthz` and `/readyz`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from kizu.errors import UserError
from kizu.service.dependencies import injected
from kizu.service.inference.errors import InferenceError
from kizu.service.inference.runtime import Runtime
from kizu.service.problems import Problem, responses
from kizu.service.storage import schema
from kizu.service.storage.probes import StoreProbes
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


@router.get("/readyz", summary="Can it serve?", responses=responses(422, 503))
async def get_readiness(
    request: Request,
    probes: Annotated[StoreProbes, injected(StoreProbes)],
    runtime: Annotated[Runtime, injected(Runtime)],
    models: Annotated[
        bool, Query(description="False: ready without a usable champion too, so that a proxy lets a model in.")
    ] = True,
) -> Readiness:
    """Return 200 while inspections can be served: database and image store can be written, and a champion scores.

    503 otherwise, and while draining. Recipes whose champion is unusable are listed with the reason; the others are not
    affected. The stores are probed at most once a second, and answer within two seconds or count as failing.
    """
    if request.app.state.draining:
        raise Problem(503, "draining", "The service is shutting down; what it has begun it will finish.")
    failures = await probes.failures()
    if failures:
        detail = " ".join(failure.problem for failure in failures)
        raise Problem(503, failures[0].kind, detail, extra={"stores": [asdict(failure) for failure in failures]})
    recipes = [await _state(runtime, *item) for item in sorted((await runtime.champions()).items())]
    if models and all(recipe.state != "loaded" for recipe in recipes):
        raise _no_model(recipes)
    return Readiness(schema_version=schema.head(), recipes=recipes)


def _no_model(recipes: list[RecipeState]) -> Problem:
    extra = {"recipes": [recipe.model_dump() for recipe in recipes]}
    problems = " ".join(recipe.problem for recipe in recipes if recipe.problem)
    if problems:
        return Problem(503, "no-usable-model", problems, extra=extra)
    remedy = "Add a model and promote it: kizu models add BUNDLE --promote."
    return Problem(503, "no-champion", "No recipe has a champion, so nothing can be inspected.", remedy, extra=extra)


async def _state(runtime: Runtime, recipe: str, champion: str | None) -> RecipeState:
    if champion is None:
        return RecipeState(recipe=recipe, champion=None, state="no champion", provider=None, problem=None)
    try:
        loaded = await runtime.version(champion)
    except (InferenceError, UserError) as error:
        problem = error.problem if isinstance(error, UserError) else str(error)
        return RecipeState(recipe=recipe, champion=champion, state="unusable", provider=None, problem=problem)
    return RecipeState(recipe=recipe, champion=champion, state="loaded", provider=loaded.provider, problem=None)
