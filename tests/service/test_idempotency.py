from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from kizu.service.inspections import repository

from .bundles import picture
from .conftest import assert_problem, inspect, inspected
from .processes import Server


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
        assert repository.reserve(session, "", key, fingerprint, uuid4(), timedelta(seconds=60))
        assert not repository.reserve(session, "", key, fingerprint, uuid4(), timedelta(seconds=60))
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


def request_fingerprint(recipe: str, image: bytes) -> str:
    from kizu.service.inspections.schemas import Metadata
    from kizu.service.inspections.submission import Submission
    from kizu.service.storage.blobs import key_of

    return Submission(image, "image/png", Metadata(recipe=recipe), "any").fingerprint(key_of(image))
