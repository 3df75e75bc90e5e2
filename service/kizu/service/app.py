"""The application: its parts, their start and stop, its routes.

Start it with `kizu serve`, or under another ASGI server as the factory `kizu.service.app:create_app`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_swagger import patch_fastapi

from kizu.errors import UserError
from kizu.service import error_handlers, problems
from kizu.service.body_limit import BodyLimitMiddleware
from kizu.service.dependencies import provide
from kizu.service.health import endpoints as health_endpoints
from kizu.service.inference.runtime import Runtime
from kizu.service.inspections import endpoints as inspection_endpoints
from kizu.service.inspections import repository
from kizu.service.inspections.admission import Admission
from kizu.service.inspections.audit import AuditSampler
from kizu.service.inspections.heatmap_service import HeatmapService
from kizu.service.inspections.images import StoredImages
from kizu.service.inspections.reservations import Reservations
from kizu.service.inspections.service import InspectionService
from kizu.service.quality import endpoints as quality_endpoints
from kizu.service.registry import endpoints as registry_endpoints
from kizu.service.registry.service import remove_leftovers
from kizu.service.registry.serving import ServingRegistry
from kizu.service.request_log import RequestLogMiddleware
from kizu.service.reviews import endpoints as review_endpoints
from kizu.service.settings import MIB, Settings
from kizu.service.storage import schema
from kizu.service.storage.blobs import LocalBlobStore
from kizu.service.storage.database import Database
from kizu.service.storage.probes import StoreProbes
from kizu.service.storage.secrets import secret
from kizu.service.storage.writer import GroupCommitWriter
from kizu.service.text_encoding import Utf8Middleware
from kizu.version import __version__

LEASE_BEYOND_DEADLINE_S = 60.0

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the ASGI application; settings come from the environment unless given."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with _running(app, settings):
                yield
        except UserError as error:
            # uvicorn only says that something failed; the process that started it can say what.
            app.state.failure = error
            raise

    app = FastAPI(
        title="Kizu",
        version=__version__,
        summary="Automated optical inspection where good parts are plenty and defects scarce.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    app.state.draining = False
    # A factory has no internet: the API's pages come from here, not from a content delivery network.
    patch_fastapi(app, redirect_from_root_to_docs=False)
    limits = {
        ("POST", "/v1/inspections"): settings.max_body_bytes,
        ("POST", "/v1/models"): settings.max_bundle_bytes,
    }
    app.add_middleware(BodyLimitMiddleware, limit_of=lambda method, path: limits.get((method, path), MIB))
    app.add_middleware(Utf8Middleware)
    app.add_middleware(RequestLogMiddleware)
    error_handlers.install(app)
    for endpoints in (
        inspection_endpoints,
        review_endpoints,
        quality_endpoints,
        registry_endpoints,
        health_endpoints,
    ):
        app.include_router(endpoints.router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _running(app: FastAPI, settings: Settings) -> AsyncIterator[None]:
    """Start the parts in the order of dependence; stop them in reverse, so that what was begun is committed."""
    database = Database(settings.resolved_database_url())
    try:
        await asyncio.to_thread(schema.upgrade, database)
        blobs = LocalBlobStore(settings.blob_dir())
        lock = await asyncio.to_thread(blobs.open_shared, lambda: clean_up(database, blobs))
        await asyncio.to_thread(remove_leftovers, settings.bundle_dir())
        writer = GroupCommitWriter(database)
        runtime = Runtime(database, settings)
        admission = Admission(settings.queue_size, settings.max_pending_bytes)
        audit_key = await asyncio.to_thread(secret, database, "audit")
        audit = AuditSampler(audit_key, settings.audit_rate, settings.recheck_rate)
        lease = timedelta(seconds=settings.request_deadline_s + LEASE_BEYOND_DEADLINE_S)
        lifetime = timedelta(hours=settings.idempotency_key_hours)
        reservations = Reservations(database, writer, lease, lifetime)
        probes = StoreProbes(writer, blobs)
        inspections = InspectionService(settings, writer, reservations, blobs, probes, runtime, admission, audit)
        images = StoredImages(blobs)
        heatmaps = HeatmapService(
            database,
            images,
            runtime,
            admission,
            max_pixels=settings.max_pixels,
            deadline_s=settings.request_deadline_s,
        )
        await runtime.preload()
        registry = ServingRegistry(database, settings, runtime)
        provide(app, settings, database, probes, runtime, admission, audit, inspections, images, heatmaps, registry)
        try:
            yield
        finally:
            await runtime.close()
            probes.close()
            await reservations.close()
            inspections.close()
            await asyncio.to_thread(writer.close)
            lock.release()
    finally:
        database.close()


def clean_up(database: Database, blobs: LocalBlobStore) -> None:
    """Remove what a crash left unfinished; only while no process serves from this database and store."""

    def referenced(keys: list[str]) -> set[str]:
        with database.reading() as session:
            return repository.with_images(session, keys)

    removed = blobs.remove_unreferenced(referenced)
    with database.writing() as session:
        repository.release_all(session)
    if removed:
        logger.info("removed %d images of inspections that were never answered", removed)


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        schemas = document["components"]["schemas"]
        schemas["Problem"] = problems.ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
        for operations in document["paths"].values():
            for operation in operations.values():
                # FastAPI documents its own shape of validation errors, which `error_handlers` replaces.
                if "422" in operation["responses"]:
                    operation["responses"]["422"] = problems.responses(422)[422]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        app.openapi_schema = document
    return app.openapi_schema
