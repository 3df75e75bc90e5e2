from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import sqlalchemy as sa

from kizu.service.inspections import repository
from kizu.service.inspections.tables import IdempotencyKey
from kizu.service.storage import schema
from kizu.service.storage.database import Database

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, fill, inspect, inspected
from .processes import Server

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


def test_the_same_request_gives_the_stored_answer(server: Server, recipe: str) -> None:
    first = inspect(server, recipe, picture(5), key="part-1", serial="a", station="s1")
    again = inspect(server, recipe, picture(5), key="part-1", serial="a", station="s1")
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"
    assert len(server.inspections(recipe=recipe)) == 1


def test_a_replay_survives_reviews_and_promotions(server: Server, recipe: str) -> None:
    first = inspected(server, recipe, picture(5), key="reviewed")
    server.client.post(first["links"]["reviews"], json={"label": "NG"})
    assert inspected(server, recipe, picture(5), key="reviewed") == first


def test_another_body_under_the_same_key_is_refused(server: Server, recipe: str) -> None:
    inspected(server, recipe, picture(5), key="part-2", serial="a")
    assert_problem(inspect(server, recipe, picture(6), key="part-2", serial="a"), 422, "idempotency-key-reused")
    assert_problem(inspect(server, recipe, picture(5), key="part-2", serial="b"), 422, "idempotency-key-reused")
    assert len(server.inspections(recipe=recipe)) == 1


def test_stations_have_keys_of_their_own(server: Server, recipe: str) -> None:
    ids = {inspected(server, recipe, picture(5), key="part-3", station=station)["id"] for station in ("s1", "s2")}
    ids.add(inspected(server, recipe, picture(5), key="part-3-" + recipe)["id"])
    assert len(ids) == 3


def test_of_many_at_once_one_inspects(server: Server, recipe: str) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: inspect(server, recipe, picture(5), key=f"at-once-{recipe}"), range(24)))
    accepted = [answer for answer in answers if answer.status_code == 201]
    for answer in answers:
        if answer.status_code != 201:
            assert_problem(answer, 409, "request-in-flight")
            assert answer.headers["retry-after"]
    assert sum("idempotent-replay" not in answer.headers for answer in accepted) == 1
    assert len({answer.json()["id"] for answer in accepted}) == 1
    assert len(server.inspections(recipe=recipe)) == 1


def test_a_key_that_another_process_works_on_is_in_flight_until_its_lease_ends(server: Server, recipe: str) -> None:
    """The reservation is made as another process would make it: in the database."""
    database = server.database()
    key, image = f"elsewhere-{recipe}", picture(5)
    fingerprint = request_fingerprint(recipe, image)
    with database.writing() as session:
        assert repository.reserve(session, "", key, fingerprint, uuid4(), timedelta(seconds=60), LONG_AGO)
        assert not repository.reserve(session, "", key, fingerprint, uuid4(), timedelta(seconds=60), LONG_AGO)
    assert_problem(inspect(server, recipe, image, key=key), 409, "request-in-flight")
    assert_problem(inspect(server, recipe, picture(6), key=key), 422, "idempotency-key-reused")
    with database.writing() as session:
        row = repository.find_key(session, "", key)
        assert row is not None
        row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    inspected(server, recipe, image, key=key)
    database.close()


def test_a_failed_request_gives_its_key_back(server: Server, recipe: str) -> None:
    assert_problem(inspect(server, recipe, picture(5)[:-30], key=f"fails-{recipe}"), 422, "damaged-image")
    inspected(server, recipe, picture(5), key=f"fails-{recipe}")


def test_a_key_that_could_not_be_given_back_is_free_once_the_database_answers(
    new_server: Callable[..., Server], add_recipe: MakeRecipe
) -> None:
    """The image store fails, and then the database refuses to release the key."""
    server = new_server().start()
    recipe = add_recipe(server)
    temporary = server.home / "blobs" / "tmp"
    database = server.database()
    with database.writing() as session:
        session.execute(
            sa.text(
                "CREATE TRIGGER stuck BEFORE DELETE ON idempotency_keys BEGIN SELECT RAISE(ABORT, 'disk failure'); END"
            )
        )
    temporary.rmdir()
    temporary.touch()
    assert_problem(inspect(server, recipe, picture(5), key="unlucky"), 503, "storage-unavailable")
    temporary.unlink()
    temporary.mkdir()
    assert_problem(inspect(server, recipe, picture(5), key="unlucky"), 409, "request-in-flight")
    with database.writing() as session:
        session.execute(sa.text("DROP TRIGGER stuck"))
    database.close()
    end = time.monotonic() + 10
    while (answer := inspect(server, recipe, picture(5), key="unlucky")).status_code == 409:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert answer.status_code == 201, answer.text
    assert "cannot be given back" in server.log()


def test_an_old_key_is_forgotten(new_server: Callable[..., Server], add_recipe: MakeRecipe) -> None:
    server = new_server(idempotency_key_hours=2 / 3600).start()
    recipe = add_recipe(server)
    first = inspect(server, recipe, picture(5), key="part-4", serial="a")
    time.sleep(2.1)
    # Free even if it has not been removed yet, for another part as well.
    second = inspect(server, recipe, picture(6), key="part-4", serial="b")
    assert (first.status_code, second.status_code) == (201, 201)
    assert "idempotent-replay" not in second.headers
    assert inspect(server, recipe, picture(6), key="part-4", serial="b").headers["idempotent-replay"] == "true"
    assert ids_of(server, recipe) == {first.json()["id"], second.json()["id"]}

    database = server.database()
    with database.writing() as session:
        reserved = (uuid4(), timedelta(seconds=-10), LONG_AGO)
        assert repository.reserve(session, "", "left behind", "0" * 64, *reserved)
    end = time.monotonic() + 10
    while keys(database):
        assert time.monotonic() < end
        time.sleep(0.2)
    database.close()
    assert len(ids_of(server, recipe)) == 2


def test_forgetting_spares_what_is_not_old(database: Database) -> None:
    now = datetime.now(UTC)
    schema.upgrade(database)
    old = [fill(database, at=now - timedelta(hours=2 + i)) for i in range(5)]
    young = fill(database, at=now - timedelta(minutes=30))
    with database.writing() as session:
        for inspection in (*old, young):
            key, lease = str(inspection.id), timedelta(seconds=60)
            assert repository.reserve(session, "s", key, "0" * 64, inspection.id, lease, LONG_AGO)
            repository.add(session, inspection, "s", key)
        assert repository.reserve(session, "s", "in work", "0" * 64, uuid4(), timedelta(seconds=60), LONG_AGO)
        an_hour_ago = now - timedelta(hours=1)
        assert [repository.forget_keys(session, an_hour_ago, 3) for _ in range(3)] == [3, 2, 0]
    assert keys(database) == {str(young.id), "in work"}


def keys(database: Database) -> set[str]:
    with database.reading() as session:
        return set(session.scalars(sa.select(IdempotencyKey.key)))


def ids_of(server: Server, recipe: str) -> set[str]:
    return {item["id"] for item in server.inspections(recipe=recipe)}


def request_fingerprint(recipe: str, image: bytes) -> str:
    from kizu.service.inspections.schemas import Metadata
    from kizu.service.inspections.submission import Submission
    from kizu.service.storage.blobs import key_of

    return Submission(image, "image/png", Metadata(recipe=recipe), "any").fingerprint(key_of(image))
