"""The registry of a serving process: its runtime learns of every change at once."""

from __future__ import annotations

import errno
import logging
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from fastapi.concurrency import run_in_threadpool

from kizu.models.bundle import BundleError
from kizu.service.problems import Problem
from kizu.service.registry import archive, repository, service
from kizu.service.registry.bundle_files import without_path
from kizu.service.registry.errors import UnknownModelError, UnknownRecipeError
from kizu.service.registry.schemas import ModelList, ModelView
from kizu.service.registry.tables import Model
from kizu.service.settings import Settings
from kizu.service.storage.database import Database

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

logger = logging.getLogger(__name__)


class ModelRuntime(Protocol):
    """The runtime that scores with the registered models, as far as the registry needs it."""

    async def verify(self, model_id: str) -> None:
        """Verify a version's files and load it; raises an error where it cannot be used."""

    def clear_failure(self, model_id: str) -> None:
        """Drop the record that a version was unusable, so that it is loaded again."""

    def invalidate_champions(self) -> None:
        """Ask the database for the champions before the next inspection."""


class ServingRegistry:
    """Operations on models for the API; see `registry.service` for what they do and raise."""

    def __init__(self, database: Database, settings: Settings, runtime: ModelRuntime):
        self._database = database
        self._settings = settings
        self._runtime = runtime

    async def add(self, archive_chunks: AsyncIterator[bytes], promote: bool) -> tuple[ModelView, bool]:
        """Register the bundle in a ZIP that arrives in chunks; return (model, whether it is new).

        Raises:
            BundleError: it cannot be used.
            BadArchiveError: the ZIP is not one of a bundle.
            ArchiveTooLargeError: it is larger than allowed.
            Problem: 507 there is no room for it, 503 the folder of the models cannot be written.
        """
        try:
            model, is_new = await self._receive(archive_chunks, promote)
        except OSError as error:
            logger.error("a bundle cannot be stored: %s", error)
            raise _not_stored(error) from error
        return await run_in_threadpool(self._view, model), is_new

    async def _receive(self, archive_chunks: AsyncIterator[bytes], promote: bool) -> tuple[Model, bool]:
        folder = self._settings.bundle_dir()
        await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=service.TEMPORARY, dir=folder) as temporary:
            uploaded = Path(temporary) / "bundle.zip"
            with uploaded.open("xb") as file:
                async for chunk in archive_chunks:
                    await run_in_threadpool(file.write, chunk)
            return await run_in_threadpool(self._register, uploaded, promote)

    def models(self, recipe: str | None) -> ModelList:
        """Return all models, of one recipe or of all, newest first."""
        with self._database.reading() as session:
            champions = repository.champions(session)
            models = repository.models(session, recipe)
        return ModelList(items=[ModelView.of(model, champions[model.recipe]) for model in models])

    def model(self, model_id: str) -> ModelView:
        """Return one model."""
        _check_id(model_id)
        with self._database.reading() as session:
            model = repository.model(session, model_id)
        if model is None:
            raise UnknownModelError(model_id)
        return self._view(model)

    async def promote(self, model_id: str) -> ModelView:
        """Load and verify a model, then make it the champion of its recipe."""
        _check_id(model_id)
        await self._runtime.verify(model_id)
        model = await run_in_threadpool(service.promote, self._database, model_id)
        self._runtime.invalidate_champions()
        return await run_in_threadpool(self._view, model)

    def retire(self, model_id: str) -> ModelView:
        """Take a model out of use."""
        _check_id(model_id)
        return self._view(service.retire(self._database, model_id))

    def roll_back(self, recipe: str) -> ModelView:
        """Make the recipe's previous champion champion again."""
        if not recipe.isprintable():
            raise UnknownRecipeError(recipe)
        model = service.rollback(self._database, recipe)
        self._runtime.invalidate_champions()
        return self._view(model)

    def _register(self, uploaded: Path, promote: bool) -> tuple[Model, bool]:
        extracted = uploaded.parent / "bundle"
        extracted.mkdir()
        settings = self._settings
        archive.extract(uploaded, extracted, settings.max_bundle_bytes)
        try:
            model, is_new = service.add(self._database, settings.bundle_dir(), extracted, settings.device)
        except BundleError as error:
            raise without_path(error, extracted) from error
        if promote:
            service.promote(self._database, model.id)
        self._runtime.clear_failure(model.id)
        self._runtime.invalidate_champions()
        return model, is_new

    def _view(self, model: Model) -> ModelView:
        with self._database.reading() as session:
            return ModelView.of(model, repository.champions(session)[model.recipe])


def _not_stored(error: OSError) -> Problem:
    if error.errno in _NO_ROOM:
        remedy = "Free space in the folder of the models, then send it again."
        return Problem(507, "insufficient-storage", "There is no room for the bundle; nothing was added.", remedy)
    detail = f"The bundle cannot be stored: {error.strerror or type(error).__name__}. Nothing was added."
    return Problem(503, "storage-unavailable", detail, "Try again.", headers={"Retry-After": "2"})


def _check_id(model_id: str) -> None:
    # A NUL in it would fail in the database.
    if not model_id.isalnum():
        raise UnknownModelError(model_id)
