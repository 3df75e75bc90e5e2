"""A service that says it is ready can store and answer an inspection."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from kizu.service.storage.blobs import LocalBlobStore

from .bundles import make_bundle, picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected, upload
from .processes import POSTGRES, Server, postgres_database

NewServer = Callable[..., Server]


def readiness(server: Server, **parameters: str) -> tuple[int, str | None]:
    """Status of /readyz, and the kind of its problem."""
    answer = server.client.get("/readyz", params=parameters)
    if answer.status_code == 200:
        return 200, None
    content = assert_problem(answer, 503)
    assert str(server.home) not in answer.text
    return 503, content["type"].rpartition(":")[2]


def wait_until(server: Server, state: tuple[int, str | None], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while (found := readiness(server)) != state:
        assert time.monotonic() < end, found
        time.sleep(0.1)


def test_without_a_champion_nothing_is_ready_but_for_models(
    new_server: NewServer, add_recipe: MakeRecipe, tmp_path: Path
) -> None:
    server = new_server().start()
    assert readiness(server) == (503, "no-champion")
    assert readiness(server, models="false") == (200, None)
    make_bundle(tmp_path / "challenger", "challenger")
    upload(server, tmp_path / "challenger")
    assert readiness(server) == (503, "no-champion")
    add_recipe(server)
    assert readiness(server) == (200, None)


def test_an_image_folder_that_is_gone_and_comes_back(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    server = new_server().start()
    recipe = add_recipe(server)
    kept = inspected(server, recipe, picture(1))
    assert readiness(server) == (200, None)
    (server.home / "blobs").rename(server.home / "away")
    assert_problem(inspect(server, recipe, picture(1)), 503, "storage-unavailable")
    assert_problem(inspect(server, recipe, picture(2)), 503, "storage-unavailable")
    assert readiness(server) == (503, "storage-unavailable")
    # Not 410: the image is not gone, its store is.
    assert_problem(server.client.get(kept["links"]["image"]), 503, "storage-unavailable")
    assert not (server.home / "blobs").exists()
    (server.home / "away").rename(server.home / "blobs")
    inspected(server, recipe, picture(2))
    wait_until(server, (200, None), 3)
    assert server.client.get(kept["links"]["image"]).content == picture(1)
    assert len(server.inspections(recipe=recipe)) == 2


def test_nobody_has_to_send_an_image_to_find_the_folder_gone(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    server = new_server().start()
    add_recipe(server)
    assert readiness(server) == (200, None)
    (server.home / "blobs").rename(server.home / "away")
    wait_until(server, (503, "storage-unavailable"), 3)
    (server.home / "away").rename(server.home / "blobs")
    wait_until(server, (200, None), 3)


def test_an_image_folder_that_comes_back_empty(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    server = new_server().start()
    recipe = add_recipe(server)
    inspected(server, recipe, picture(1))
    shutil.rmtree(server.home / "blobs")
    assert_problem(inspect(server, recipe, picture(1)), 503, "storage-unavailable")
    (server.home / "blobs").mkdir()
    again = inspected(server, recipe, picture(1))
    assert server.client.get(again["links"]["image"]).content == picture(1)
    wait_until(server, (200, None), 3)
    # The service is one of the processes that share the new folder, so nobody sweeps it meanwhile.
    swept: list[str] = []
    LocalBlobStore(server.home / "blobs").open_shared(lambda: swept.append("swept")).release()
    assert swept == []


def test_a_disk_without_room_for_images_as_large_as_those_that_come(
    new_server: NewServer, add_recipe: MakeRecipe
) -> None:
    """The process may write files of 150 kB, as if the disk had no more room; its database is elsewhere."""
    with postgres_database() as url:
        server = new_server(database_url=url).start()
        recipe = add_recipe(server)
        small, large = picture(255, seed=1), picture(255, seed=2, size=(500, 500))
        assert len(large) > 200_000
        assert server.process is not None
        before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (150_000, before[1]))
        inspected(server, recipe, small)
        time.sleep(1.1)
        assert readiness(server) == (200, None)
        assert_problem(inspect(server, recipe, large), 503, "storage-unavailable")
        assert readiness(server) == (503, "storage-unavailable")
        time.sleep(1.1)
        assert readiness(server) == (503, "storage-unavailable")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, before)
        wait_until(server, (200, None), 3)
        inspected(server, recipe, large)
        server.stop()


def test_a_locked_database(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    server = new_server().start()
    add_recipe(server)
    database = server.database()
    with database.writing() as session:
        session.execute(sa.text("UPDATE recipes SET name = name"))
        time.sleep(1.1)
        began = time.monotonic()
        assert readiness(server) == (503, "database-unavailable")
        assert time.monotonic() - began < 4
        # Whoever asks again does not wait again.
        began = time.monotonic()
        assert [readiness(server) for _ in range(20)] == [(503, "database-unavailable")] * 20
        assert time.monotonic() - began < 2
    database.close()
    wait_until(server, (200, None))


def test_a_database_that_goes_away(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    with postgres_database() as url:
        server = new_server(database_url=url).start()
        recipe = add_recipe(server)
        assert readiness(server) == (200, None)
        name = url.rpartition("/")[2]
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            wait_until(server, (503, "database-unavailable"), 5)
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        wait_until(server, (200, None), 5)
        inspected(server, recipe, picture(1))
        server.stop()


@pytest.mark.parametrize("value", ["perhaps", ""])
def test_a_bad_parameter(sqlite_server: Server, value: str) -> None:
    assert_problem(sqlite_server.client.get("/readyz", params={"models": value}), 422)
