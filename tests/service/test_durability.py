"""Answered means kept, whatever happens next."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa

from kizu.models.bundle import Bundle
from kizu.service.inspections import repository
from kizu.service.inspections.tables import Inspection
from kizu.service.registry.tables import Model

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected
from .processes import Server, postgres_database


class Line:
    """Cameras that POST until the service is gone, and remember every answer and every key they used."""

    def __init__(self, server: Server, recipe: str, cameras: int, seed: int):
        self.answered: dict[str, bytes] = {}
        self.keys: dict[str, bytes] = {}
        self._server, self._recipe, self._seed = server, recipe, seed
        self._threads = [threading.Thread(target=self._camera, args=(i,)) for i in range(cameras)]
        for thread in self._threads:
            thread.start()

    def _camera(self, number: int) -> None:
        with httpx.Client(base_url=self._server.url, timeout=30) as client:
            for part in range(10_000):
                key = f"{self._seed}-{number}-{part}"
                image = picture(part % 256, size=(40, 40), seed=hash((self._seed, number, part)) % 2**32)
                self.keys[key] = image
                headers = (
                    {"content-type": "image/png", "idempotency-key": key} if part % 2 else {"content-type": "image/png"}
                )
                try:
                    answer = client.post(f"/v1/inspections?recipe={self._recipe}", content=image, headers=headers)
                except httpx.TransportError:
                    return
                if answer.status_code == 201:
                    self.answered[answer.json()["id"]] = image

    def wait_for(self, answers: int) -> None:
        """Until so many parts have their verdict."""
        end = time.monotonic() + 60
        while len(self.answered) < answers:
            assert time.monotonic() < end
            time.sleep(0.005)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def assert_consistent(server: Server, recipe: str, answered: dict[str, bytes]) -> None:
    """Every answer is there with its image; every row has its image and every image its row."""
    rows = {item["id"]: item for item in server.inspections(recipe=recipe)}
    assert set(answered) <= set(rows)
    images = {}
    for identifier, item in rows.items():
        content = server.client.get(item["links"]["image"])
        assert content.status_code == 200
        images[identifier] = content.content
    assert {identifier: images[identifier] for identifier in answered} == answered
    assert {hashlib.sha256(image).hexdigest() for image in images.values()} == server.blobs()
    assert server.temporary_files() == []


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_kill_9_at_random_points_under_load(
    new_server: Callable[..., Server], add_recipe: MakeRecipe, database: str, request: pytest.FixtureRequest
) -> None:
    settings = {}
    if database == "postgresql":
        context = postgres_database()
        settings["database_url"] = context.__enter__()
        request.addfinalizer(lambda: context.__exit__(None, None, None))
    server = new_server(**settings).start()
    recipe = add_recipe(server)
    answered: dict[str, bytes] = {}
    moments = random.Random(7)
    for round_number in range(3 if database == "sqlite" else 2):
        line = Line(server, recipe, cameras=12, seed=round_number)
        line.wait_for(moments.randint(5, 100))
        time.sleep(moments.uniform(0.0, 0.05))
        server.kill()
        line.join()
        answered |= line.answered
        server.start()
        assert_consistent(server, recipe, answered)
    # What was cut off can be asked again under its key.
    for key, image in list(line.keys.items())[-12:]:
        assert inspect(server, recipe, image, key=key).status_code == 201
    assert_consistent(server, recipe, answered)


def test_the_next_start_clears_up_what_a_crash_left_half_done(
    new_server: Callable[..., Server], add_recipe: MakeRecipe
) -> None:
    server = new_server().start()
    recipe = add_recipe(server)
    first = inspected(server, recipe, picture(1), key="before")
    orphan = hashlib.sha256(b"orphan").hexdigest()
    folder = server.home / "blobs" / orphan[:2] / orphan[2:4]
    folder.mkdir(parents=True)
    (folder / orphan).write_bytes(b"orphan")
    (server.home / "blobs" / "tmp" / "half").write_bytes(b"orp")
    database = server.database()
    with database.writing() as session:
        long_ago = datetime(2000, 1, 1, tzinfo=UTC)
        repository.reserve(session, "", "abandoned", "0" * 64, uuid4(), timedelta(hours=1), long_ago)
    database.close()

    server.kill()
    server.start()
    assert server.blobs() == {first["image"]["sha256"]}
    assert server.temporary_files() == []
    again = inspect(server, recipe, picture(1), key="before")
    assert again.json() == first
    assert again.headers["idempotent-replay"] == "true"
    inspected(server, recipe, picture(2), key="abandoned")


def test_a_store_that_fails_is_said_and_leaves_no_row(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(sqlite_server)
    temporary = sqlite_server.home / "blobs" / "tmp"
    temporary.rmdir()
    refused = inspect(sqlite_server, recipe, picture(200, seed=4711), key=f"unlucky-{recipe}")
    temporary.mkdir()
    assert_problem(refused, 503, "storage-unavailable")
    assert sqlite_server.inspections(recipe=recipe) == []
    inspected(sqlite_server, recipe, picture(200, seed=4711), key=f"unlucky-{recipe}")


def test_what_cannot_be_answered_is_not_kept(server: Server, recipe: str) -> None:
    """The registered certificate is damaged in the database; the bundle on disk is not, so that it scores."""
    database = server.database()
    with database.writing() as session:
        model = session.get_one(Model, server.models[recipe])
        model.manifest = model.manifest | {"operating_point": {}}
    blobs = server.blobs()
    assert_problem(inspect(server, recipe, picture(200, seed=4712), key=f"damaged {recipe}"), 500, "internal-error")
    assert server.inspections(recipe=recipe) == []
    assert server.blobs() == blobs
    with database.writing() as session:
        manifest = Bundle.read(server.home / "models" / server.models[recipe]).manifest.model_dump(mode="json")
        session.get_one(Model, server.models[recipe]).manifest = manifest
    database.close()


def test_two_processes_serve_the_same_data(new_server: Callable[..., Server], add_recipe: MakeRecipe) -> None:
    first = new_server().start()
    recipe = add_recipe(first)
    second = new_server().start()
    lines = [Line(server, recipe, cameras=4, seed=seed) for seed, server in enumerate((first, second))]
    for line in lines:
        line.wait_for(30)
    second.kill()
    lines[1].join()
    first.kill()
    lines[0].join()
    first.start()
    assert_consistent(first, recipe, lines[0].answered | lines[1].answered)


def test_sigterm_finishes_what_was_begun(new_server: Callable[..., Server], add_recipe: MakeRecipe) -> None:
    server = new_server(drain_seconds=0.7).start()
    recipe = add_recipe(server)
    line = Line(server, recipe, cameras=6, seed=0)
    line.wait_for(10)
    server.terminate()
    time.sleep(0.3)
    answer = server.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:kizu:problem:draining"
    inspected(server, recipe, picture(1, seed=99))
    line.join()
    assert server.process is not None
    server.process.wait(30)
    assert "Traceback" not in server.log()
    database = server.database()
    with database.reading() as session:
        committed = {str(identifier) for identifier in session.scalars(sa.select(Inspection.id))}
    database.close()
    assert set(line.answered) <= committed
