"""The loaded models: the champion of each recipe, its session and its batcher.

Notable here:
- The database says who is champion. It is asked at most once a second, and at once after a promotion by this process,
  so a promotion by another process (or the CLI) counts within a second.
- A version is verified whenever it is loaded: against its own hashes, and against the fingerprint that the database
  remembers from when it was added. What fails is unusable, says why, and leaves other recipes alone.
- A loaded version whose files were touched is verified again, a second later at most while requests come. Where its
  folder is gone it scores on, with what was verified.
- Swapping drops nothing: a request keeps the version it started with until it is answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.models.bundle import Bundle, BundleError, BundleManifest, Device, Session
from kizu.service.inference.batcher import Batcher, ScoredImage
from kizu.service.inference.errors import ModelUnusableError, NoChampionError
from kizu.service.registry import repository
from kizu.service.registry.bundle_files import FileStates, file_states, read_bundle, without_path
from kizu.service.registry.errors import UnknownModelError, UnknownRecipeError
from kizu.service.registry.tables import Model
from kizu.service.settings import Settings
from kizu.service.storage.database import Database

CHAMPIONS_VALID_S = 1.0
RETRY_UNUSABLE_S = 5.0

logger = logging.getLogger(__name__)


class LoadedModel:
    """A model version that can score."""

    def __init__(
        self, model: Model, manifest: BundleManifest, session: Session, batcher: Batcher, files: FileStates | None
    ):
        self.model = model
        self.files = files
        """The bundle's files when they were verified."""
        self.unusable: str | None = None
        """Why it may score no more: its files were altered since."""
        self.manifest = manifest
        self.provider = session.provider
        self.last_used = time.monotonic()
        self._batcher = batcher

    async def score(self, image: NDArray[np.uint8], deadline: float) -> ScoredImage:
        """Score uint8[H, W, C]; see `Batcher.score`. Raises ModelUnusableError where the files were altered since."""
        if self.unusable is not None:
            raise ModelUnusableError(self.model.id, self.unusable)
        return await self._batcher.score(image, deadline)

    async def close(self) -> None:
        """Score what waits, then release the session."""
        await self._batcher.close()


@dataclass
class _Unusable:
    reason: str
    until: float


class Runtime:
    """Loader and cache of model versions; lives in the event loop."""

    def __init__(self, database: Database, settings: Settings):
        self._database = database
        self._settings = settings
        self._champions: dict[str, str | None] = {}
        self._champions_until = 0.0
        self._invalidations = 0
        self._refreshing = asyncio.Lock()
        self._loading: dict[str, asyncio.Lock] = {}
        self._loaded: dict[str, LoadedModel] = {}
        self._unusable: dict[str, _Unusable] = {}
        self._verifying: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._compute = ThreadPoolExecutor(2, "inference")
        self._provider_logged = False

    async def champions(self) -> dict[str, str | None]:
        """Return recipe → id of its champion."""
        if time.monotonic() >= self._champions_until:
            async with self._refreshing:
                if time.monotonic() >= self._champions_until:
                    # Whatever is committed after the question was put must not count as known.
                    asked_at, invalidations = time.monotonic(), self._invalidations
                    self._champions = await asyncio.to_thread(self._read_champions)
                    if self._verifying is None or self._verifying.done():
                        self._verifying = asyncio.create_task(self._verify_touched())
                    if invalidations == self._invalidations:
                        self._champions_until = asked_at + CHAMPIONS_VALID_S
                    self._unload_idle()
        return self._champions

    def invalidate_champions(self) -> None:
        """Read the champions from the database before the next inspection."""
        self._invalidations += 1
        self._champions_until = 0.0

    async def champion(self, recipe: str) -> LoadedModel:
        """Return the recipe's champion, loaded.

        Raises:
            UnknownRecipeError: no model was ever added for the recipe.
            NoChampionError: none of its models was promoted.
            ModelUnusableError: the champion's bundle cannot be used.
        """
        champions = await self.champions()
        if champions.get(recipe) is None:
            # Another process may have added it a moment ago; a stale cache must not refuse a request.
            self.invalidate_champions()
            champions = await self.champions()
        if recipe not in champions:
            raise UnknownRecipeError(recipe)
        model_id = champions[recipe]
        if model_id is None:
            raise NoChampionError(recipe)
        return await self.version(model_id)

    async def version(self, model_id: str) -> LoadedModel:
        """Return any registered version, loaded.

        Raises:
            UnknownModelError: no model has this id.
            ModelUnusableError: its bundle cannot be used.
        """
        loaded = self._loaded.get(model_id)
        if loaded is None:
            async with self._loading.setdefault(model_id, asyncio.Lock()):
                loaded = self._loaded.get(model_id) or await self._load(model_id)
                self._loaded[model_id] = loaded
        loaded.last_used = time.monotonic()
        return loaded

    async def verify(self, model_id: str) -> None:
        """Verify a version's files and load it; what was loaded of files that fail is dropped.

        Raises:
            UnknownModelError: no model has this id.
            ModelUnusableError: its bundle cannot be used.
        """
        loaded = self._loaded.get(model_id)
        if loaded is not None:
            await self._verify(loaded)
        self.clear_failure(model_id)
        await self.version(model_id)

    def clear_failure(self, model_id: str) -> None:
        """Drop the record that a version was unusable: its bundle has been repaired."""
        self._unusable.pop(model_id, None)

    async def preload(self) -> None:
        """Load every champion; unusable ones are logged and skipped."""
        for model_id in (await self.champions()).values():
            if model_id is not None:
                try:
                    await self.version(model_id)
                except ModelUnusableError as error:
                    logger.error("%s", error)

    def state(self, model_id: str) -> tuple[str, str | None, str | None]:
        """Return (`loaded`, `unusable` or `not loaded`; provider; why it is unusable) of a version."""
        if model_id in self._loaded:
            return "loaded", self._loaded[model_id].provider, None
        if model_id in self._unusable:
            return "unusable", None, self._unusable[model_id].reason
        return "not loaded", None, None

    async def close(self) -> None:
        """Score what waits, then release every session."""
        if self._verifying is not None:
            self._verifying.cancel()
            await asyncio.wait({self._verifying})
        for loaded in self._loaded.values():
            await loaded.close()
        if self._closing:
            await asyncio.wait(self._closing)
        self._compute.shutdown()

    def _read_champions(self) -> dict[str, str | None]:
        with self._database.reading() as session:
            return repository.champions(session)

    async def _verify_touched(self) -> None:
        """Verify the loaded versions whose files are not as they were."""
        folder, loaded = self._settings.bundle_dir(), list(self._loaded.values())
        states = await asyncio.to_thread(lambda: [file_states(folder / item.model.id) for item in loaded])
        for item, state in zip(loaded, states, strict=True):
            if state is not None and state != item.files:
                # Why it failed is in the log, and kept for whoever asks for it next.
                with suppress(ModelUnusableError):
                    await self._verify(item)

    async def _verify(self, loaded: LoadedModel) -> None:
        """Verify the files of a loaded version; drops it and raises ModelUnusableError where they fail."""
        model_id = loaded.model.id
        try:
            path = self._settings.bundle_dir() / model_id
            _, loaded.files = await asyncio.to_thread(_verified, path, loaded.model)
        except BundleError as error:
            loaded.unusable = error.problem
            self._unusable[model_id] = _Unusable(error.problem, time.monotonic() + RETRY_UNUSABLE_S)
            if self._loaded.get(model_id) is loaded:
                self._unload(model_id)
            raise ModelUnusableError(model_id, error.problem) from error

    async def _load(self, model_id: str) -> LoadedModel:
        unusable = self._unusable.get(model_id)
        if unusable is not None and time.monotonic() < unusable.until:
            raise ModelUnusableError(model_id, unusable.reason)
        try:
            model, manifest, session, files = await asyncio.to_thread(self._open, model_id)
        except BundleError as error:
            self._unusable[model_id] = _Unusable(error.problem, time.monotonic() + RETRY_UNUSABLE_S)
            raise ModelUnusableError(model_id, error.problem) from error
        self._unusable.pop(model_id, None)
        settings = self._settings
        batcher = Batcher(
            session.score,
            self._compute,
            max_batch=settings.max_batch,
            max_pixels=settings.max_batch_pixels,
            wait=settings.batch_wait_ms / 1000,
            queue_size=settings.queue_size,
            buckets=session.provider == "CUDAExecutionProvider",
        )
        if not self._provider_logged:
            logger.info("%s", _provider_message(session.provider, settings.device))
            self._provider_logged = True
        return LoadedModel(model, manifest, session, batcher, files)

    def _open(self, model_id: str) -> tuple[Model, BundleManifest, Session, FileStates | None]:
        with self._database.reading() as database_session:
            model = repository.model(database_session, model_id)
        if model is None:
            raise UnknownModelError(model_id)
        path = self._settings.bundle_dir() / model_id
        bundle, files = _verified(path, model)
        try:
            session = bundle.open(self._settings.device, self._settings.inference_threads, spin=False)
            geometry = bundle.manifest.geometry
            # The first run allocates and, on CUDA, searches algorithms; no inspection should wait for that.
            session.score(np.zeros((1, geometry.min_height, geometry.min_width, geometry.channels), np.uint8))
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no other common base
            raise BundleError(f"The bundle cannot score an image: {error}") from error
        return model, bundle.manifest, session, files

    def _unload_idle(self) -> None:
        champions = set(self._champions.values())
        idle = [model_id for model_id in self._loaded if model_id not in champions]
        idle.sort(key=lambda model_id: self._loaded[model_id].last_used)
        for model_id in idle[: max(len(idle) - self._settings.idle_models, 0)]:
            if time.monotonic() - self._loaded[model_id].last_used > self._settings.request_deadline_s:
                self._unload(model_id)

    def _unload(self, model_id: str) -> None:
        """Let a version finish what waits for it, then release it."""
        task = asyncio.create_task(self._loaded.pop(model_id).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _verified(path: Path, model: Model) -> tuple[Bundle, FileStates | None]:
    """Return the bundle at `path` and its files' states, if it is the one that was added; raises BundleError."""
    # Before they are read: what is written meanwhile differs from it, and is verified again.
    files = file_states(path)
    try:
        bundle = read_bundle(path)
        if bundle.fingerprint != model.fingerprint:
            raise BundleError(f"{path} is not the bundle that was added: its fingerprint differs.")
    except OSError as error:
        logger.error("model %s cannot be read: %s", model.id, error)
        raise BundleError("The bundle cannot be read.") from error
    except BundleError as error:
        logger.error("model %s is unusable: %s", model.id, error)
        raise without_path(error, path) from error
    return bundle, files


def _provider_message(provider: str, device: Device) -> str:
    if provider != "CPUExecutionProvider":
        return f"scoring on the GPU ({provider})"
    return "scoring on the CPU" + ("; ONNX Runtime found no GPU that it can use" if device == "auto" else "")
