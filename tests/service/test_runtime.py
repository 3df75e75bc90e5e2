from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kizu.service.inference.errors import ModelUnusableError, NoChampionError
from kizu.service.inference.runtime import Runtime
from kizu.service.registry import service
from kizu.service.registry.errors import UnknownModelError, UnknownRecipeError
from kizu.service.settings import Settings
from kizu.service.storage import schema
from kizu.service.storage.database import Database

from .bundles import make_bundle

IMAGE = np.full((16, 16, 1), 51, np.uint8)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, device="cpu", inference_threads=1, idle_models=0, request_deadline_s=0.05)


@pytest.fixture
def database(settings: Settings) -> Database:
    database = Database(settings.resolved_database_url())
    schema.upgrade(database)
    return database


@pytest.fixture
def add(database: Database, settings: Settings, tmp_path: Path) -> Callable[..., str]:
    def add(threshold: float) -> str:
        bundle = make_bundle(tmp_path / f"b{threshold}", "r", threshold=threshold)
        model, _ = service.add(database, settings.bundle_dir(), bundle.path, "cpu")
        service.promote(database, model.id)
        return model.id

    return add


def run(database: Database, settings: Settings, scenario: Callable[[Runtime], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        runtime = Runtime(database, settings)
        await scenario(runtime)
        await runtime.close()

    asyncio.run(main())


def test_a_promotion_elsewhere_counts_within_a_second(
    database: Database, settings: Settings, add: Callable[..., str]
) -> None:
    first = add(0.5)

    async def scenario(runtime: Runtime) -> None:
        assert (await runtime.champion("r")).model.id == first
        second = await asyncio.to_thread(add, 0.6)
        await asyncio.sleep(1.05)
        assert (await runtime.champion("r")).model.id == second

    run(database, settings, scenario)


def test_a_recipe_added_elsewhere_is_known_at_once(
    database: Database, settings: Settings, add: Callable[..., str]
) -> None:
    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(UnknownRecipeError, match="no recipe"):
            await runtime.champion("r")
        first = await asyncio.to_thread(add, 0.5)
        assert (await runtime.champion("r")).model.id == first

    run(database, settings, scenario)


def test_versions_out_of_use_are_let_go_but_come_back_on_demand(
    database: Database, settings: Settings, add: Callable[..., str]
) -> None:
    first, second = add(0.5), add(0.6)

    async def scenario(runtime: Runtime) -> None:
        old = await runtime.version(first)
        assert (await old.score(IMAGE, time.monotonic() + 5)).score == pytest.approx(0.2)
        await runtime.version(second)
        await asyncio.sleep(0.1)
        runtime.invalidate_champions()
        await runtime.champions()
        assert runtime.state(first)[0] == "not loaded"
        assert runtime.state(second)[0] == "loaded"
        again = await runtime.version(first)
        assert again is not old
        assert (await again.score(IMAGE, time.monotonic() + 5)).score == pytest.approx(0.2)

    run(database, settings, scenario)


def test_a_damaged_bundle_is_not_read_again_for_every_request(
    database: Database, settings: Settings, add: Callable[..., str]
) -> None:
    model_id = add(0.5)
    (settings.bundle_dir() / model_id / "model.onnx").write_bytes(b"damaged")

    async def scenario(runtime: Runtime) -> None:
        await runtime.preload()
        state, provider, problem = runtime.state(model_id)
        assert (state, provider) == ("unusable", None)
        assert "SHA-256" in str(problem)
        for _ in range(2):
            with pytest.raises(ModelUnusableError, match="SHA-256") as refused:
                await runtime.champion("r")
            assert refused.value.model_id == model_id
        runtime.clear_failure(model_id)
        assert runtime.state(model_id)[0] == "not loaded"

    run(database, settings, scenario)


def test_a_recipe_without_champion_and_an_unknown_model(database: Database, settings: Settings, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "r")
    service.add(database, settings.bundle_dir(), bundle.path, "cpu")

    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(NoChampionError) as refused:
            await runtime.champion("r")
        assert refused.value.recipe == "r"
        with pytest.raises(UnknownModelError):
            await runtime.version("0" * 16)

    run(database, settings, scenario)


def test_a_request_that_holds_a_version_learns_that_it_was_altered(
    database: Database, settings: Settings, add: Callable[..., str]
) -> None:
    model_id = add(0.5)

    async def scenario(runtime: Runtime) -> None:
        held = await runtime.version(model_id)
        await held.score(IMAGE, time.monotonic() + 5)
        (settings.bundle_dir() / model_id / "model.onnx").write_bytes(b"altered")
        with pytest.raises(ModelUnusableError, match="was changed or damaged"):
            await runtime.verify(model_id)
        # Not "overloaded", though its batcher is closed.
        with pytest.raises(ModelUnusableError, match="was changed or damaged"):
            await held.score(IMAGE, time.monotonic() + 5)

    run(database, settings, scenario)
