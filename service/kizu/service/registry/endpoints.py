"""`/v1/models` and `/v1/recipes/{name}/rollback`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from kizu.service.dependencies import injected
from kizu.service.fields import OptionalName
from kizu.service.problems import Problem, responses
from kizu.service.registry.schemas import ModelList, ModelView
from kizu.service.registry.serving import ServingRegistry

Registry = Annotated[ServingRegistry, injected(ServingRegistry)]

router = APIRouter(prefix="/v1", tags=["models"])

_ZIP = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_ZIP_TYPES = {"application/zip", "application/x-zip-compressed", "application/octet-stream"}


@router.post(
    "/models",
    status_code=201,
    summary="Add a model",
    response_model=ModelView,
    responses={
        200: {"model": ModelView, "description": "It was there already."},
        **responses(400, 413, 415, 422, 503, 507),
    },
    openapi_extra=_ZIP,
)
async def add_model(request: Request, registry: Registry, promote: Annotated[bool, Query()] = False) -> JSONResponse:
    """Add a bundle, sent as a ZIP of the files of its folder; `calibration.csv` is among them from schema 2.

    It is verified and made to score before it is registered. Adding the same bundle again gives the same model.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() not in _ZIP_TYPES:
        raise Problem(415, "unsupported-media-type", "A bundle is sent as application/zip.")
    try:
        view, is_new = await registry.add(request.stream(), promote)
    except ClientDisconnect as error:
        raise Problem(400, "client-disconnected", "The client went away.") from error
    return JSONResponse(view.model_dump(mode="json"), 201 if is_new else 200, {"Location": f"/v1/models/{view.id}"})


@router.get("/models", summary="List models, newest first", responses=responses(422))
def list_models(registry: Registry, recipe: Annotated[OptionalName, Query()] = None) -> ModelList:
    """List all registered models, retired ones included."""
    return registry.models(recipe)


@router.get("/models/{model_id}", summary="One model", responses=responses(404))
def get_model(registry: Registry, model_id: str) -> ModelView:
    """Return a model with its certificate and metrics."""
    return registry.model(model_id)


@router.post("/models/{model_id}/promote", summary="Make it the champion", responses=responses(404, 409, 503))
async def promote_model(registry: Registry, model_id: str) -> ModelView:
    """Let this version decide from now on. Requests in work keep the version they started with.

    The model is loaded and verified first, so a bundle that was damaged meanwhile cannot become champion.
    """
    return await registry.promote(model_id)


@router.post("/models/{model_id}/retire", summary="Take it out of use", responses=responses(404, 409))
def retire_model(registry: Registry, model_id: str) -> ModelView:
    """Retire a model that is not champion. Its bundle is kept, for the heatmaps of what it inspected."""
    return registry.retire(model_id)


@router.post("/recipes/{name}/rollback", summary="Back to the champion before", responses=responses(404, 409))
def roll_back(registry: Registry, name: str) -> ModelView:
    """Make the previous champion champion again; doing it twice goes back two."""
    return registry.roll_back(name)
