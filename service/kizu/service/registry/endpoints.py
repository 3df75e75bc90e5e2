"""`/v1/models` and `/v1/recipes/{name}/rollback`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from kizu.service.context import Context, ServiceContext
from kizu.service.fields import OptionalName
from kizu.service.problems import Problem, responses
from kizu.service.registry import archive, repository, service
from kizu.service.registry.schemas import ModelList, ModelView
from kizu.service.registry.tables import Model

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
    responses={200: {"model": ModelView, "description": "It was there already."}, **responses(413, 415, 422)},
    openapi_extra=_ZIP,
)
async def add_model(request: Request, context: Context, promote: Annotated[bool, Query()] = False) -> JSONResponse:
    """Add a bundle, sent as a ZIP of `model.onnx`, `bundle.json` and `report.html`.

    It is verified and made to score before it is registered. Adding the same bundle again gives the same model.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() not in _ZIP_TYPES:
        raise Problem(415, "unsupported-media-type", "A bundle is sent as application/zip.")
    folder = context.settings.bundle_dir()
    await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=service.TEMPORARY, dir=folder) as temporary:
        uploaded = Path(temporary) / "bundle.zip"
        with uploaded.open("xb") as file:
            try:
                async for chunk in request.stream():
                    await run_in_threadpool(file.write, chunk)
            except ClientDisconnect as error:
                raise Problem(400, "client-disconnected", "The client went away.") from error
        model, is_new = await run_in_threadpool(_register, context, uploaded, promote)
    view = await run_in_threadpool(_view, context, model)
    return JSONResponse(view.model_dump(mode="json"), 201 if is_new else 200, {"Location": f"/v1/models/{model.id}"})


@router.get("/models", summary="List models, newest first", responses=responses(422))
def list_models(context: Context, recipe: Annotated[OptionalName, Query()] = None) -> ModelList:
    """All registered models, retired ones included."""
    with context.database.reading() as session:
        champions = repository.champions(session)
        models = repository.models(session, recipe)
    return ModelList(items=[ModelView.of(model, champions[model.recipe]) for model in models])


@router.get("/models/{model_id}", summary="One model", responses=responses(404))
def get_model(context: Context, model_id: str) -> ModelView:
    """A model with its certificate and metrics."""
    with context.database.reading() as session:
        model = repository.model(session, model_id) if model_id.isalnum() else None
    if model is None:
        raise service.unknown_model(model_id)
    return _view(context, model)


@router.post("/models/{model_id}/promote", summary="Make it the champion", responses=responses(404, 409, 503))
async def promote_model(context: Context, model_id: str) -> ModelView:
    """Let this version decide from now on. Requests in work keep the version they started with.

    The model is loaded and verified first, so a bundle that was damaged meanwhile cannot become champion.
    """
    if not model_id.isalnum():
        raise service.unknown_model(model_id)
    await context.runtime.version(model_id)
    model = await run_in_threadpool(service.promote, context.database, model_id)
    context.runtime.forget_champions()
    return await run_in_threadpool(_view, context, model)


@router.post("/models/{model_id}/retire", summary="Take it out of use", responses=responses(404, 409))
def retire_model(context: Context, model_id: str) -> ModelView:
    """Retire a model that is not champion. Its bundle is kept, for the heatmaps of what it inspected."""
    if not model_id.isalnum():
        raise service.unknown_model(model_id)
    return _view(context, service.retire(context.database, model_id))


@router.post("/recipes/{name}/rollback", summary="Back to the champion before", responses=responses(404, 409))
def roll_back(context: Context, name: str) -> ModelView:
    """Make the previous champion champion again; doing it twice goes back two."""
    if not name.isprintable():
        raise service.unknown_recipe(name)
    model = service.rollback(context.database, name)
    context.runtime.forget_champions()
    return _view(context, model)


def _register(context: ServiceContext, uploaded: Path, promote: bool) -> tuple[Model, bool]:
    extracted = uploaded.parent / "bundle"
    extracted.mkdir()
    archive.extract(uploaded, extracted, context.settings.max_bundle_bytes)
    model, is_new = service.add(context.database, context.settings.bundle_dir(), extracted, context.settings.device)
    if promote:
        service.promote(context.database, model.id)
    context.runtime.try_again(model.id)
    context.runtime.forget_champions()
    return model, is_new


def _view(context: ServiceContext, model: Model) -> ModelView:
    with context.database.reading() as session:
        return ModelView.of(model, repository.champions(session)[model.recipe])
