"""Every request has an id, in its answer and in the log, whatever became of it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable

import httpx
import pytest

from kizu.service.registry.tables import Model

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected
from .processes import Server

NewServer = Callable[..., Server]


def logged(server: Server, answer: httpx.Response, part: str) -> str:
    """The one line with `part` that belongs to a request; it may be written after the answer."""
    request_id = answer.headers["x-request-id"]
    end = time.monotonic() + 5
    while not (found := [line for line in server.log().splitlines() if f"[{request_id}]" in line and part in line]):
        assert time.monotonic() < end, server.log()
        time.sleep(0.05)
    (line,) = found
    return line


def access(server: Server, answer: httpx.Response) -> str:
    """The access line of an answer."""
    return logged(server, answer, "kizu.service.access")


def test_an_inspection_is_traced_to_its_verdict(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(sqlite_server)
    answer = inspect(sqlite_server, recipe, picture(1), serial="Teil 7")
    line = access(sqlite_server, answer)
    assert re.search(
        rf" INFO kizu\.service\.access \[\w{{32}}\]: POST /v1/inspections\?recipe={recipe}&serial=Teil(\+|%20)7 201 "
        rf"/v1/inspections/{answer.json()['id']} \d+\.\d ms {len(answer.content)} B 127\.0\.0\.1$",
        line,
    ), line


def test_ids_are_the_clients_or_new(sqlite_server: Server) -> None:
    def identified(given: str | None) -> str:
        headers = {} if given is None else {"x-request-id": given}
        return str(sqlite_server.client.get("/v1/models", headers=headers).headers["x-request-id"])

    assert identified("line-4:7f/1") == "line-4:7f/1"
    for unfit in ("two words", "x" * 129, "", 'a"b'):
        assert re.fullmatch(r"\w{32}", identified(unfit))
    assert len({identified(None) for _ in range(10)}) == 10


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/v1/inspections/01a20413-ab57-7000-9c86-324ce9bb2b01", 404, "unknown-inspection"),
        ("/nowhere", 404, None),
        ("/v1/inspections?limit=0", 422, "invalid-request"),
        ("/v1/inspections?serial=%E9", 422, "invalid-request"),
    ],
)
def test_what_is_refused_is_traced(sqlite_server: Server, path: str, status: int, kind: str | None) -> None:
    answer = sqlite_server.client.get(path)
    content = assert_problem(answer, status, kind)
    assert content["request_id"] == answer.headers["x-request-id"]
    assert f": GET {path} {status} {f'{kind} ' if kind else ''}" in access(sqlite_server, answer)


def test_a_body_over_the_limit_is_traced(sqlite_server: Server) -> None:
    answer = inspect(sqlite_server, "r", bytes(1_000_001))
    assert_problem(answer, 413, "body-too-large")
    assert " 413 body-too-large " in access(sqlite_server, answer)


def test_what_cannot_be_served_is_traced(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    server = new_server(queue_size=1).start()
    recipe, damaged = add_recipe(server), add_recipe(server)
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        head = f"POST /v1/inspections?recipe={recipe} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        slow.sendall(head.encode() + b"Content-Length: 100\r\n\r\nhalf")
        time.sleep(0.5)
        full = inspect(server, recipe, picture(1))
        assert_problem(full, 429, "overloaded")
        assert " INFO " in access(server, full)
        assert " 429 overloaded " in access(server, full)
    end = time.monotonic() + 10
    while inspect(server, recipe, picture(1)).status_code != 201:
        assert time.monotonic() < end

    (server.home / "blobs").rename(server.home / "away")
    lost = inspect(server, recipe, picture(2))
    (server.home / "away").rename(server.home / "blobs")
    assert_problem(lost, 503, "storage-unavailable")
    assert " WARNING " in access(server, lost)
    assert " 503 storage-unavailable " in access(server, lost)
    # What the service says about it carries the id too.
    assert " ERROR " in logged(server, lost, "the image store fails")

    database = server.database()
    with database.writing() as session:
        session.get_one(Model, server.models[damaged]).manifest = {"operating_point": {}}
    database.close()
    fault = inspect(server, damaged, picture(1))
    content = assert_problem(fault, 500, "internal-error")
    assert content["request_id"] == fault.headers["x-request-id"]
    assert " 500 internal-error " in access(server, fault)
    assert " ERROR " in logged(server, fault, "Exception in ASGI application")


def test_health_checks_that_succeed_are_not_logged(new_server: NewServer, add_recipe: MakeRecipe) -> None:
    server = new_server().start()
    failed = server.client.get("/readyz")
    add_recipe(server)
    inspected(server, next(iter(server.models)), picture(1))
    quiet = [server.client.get(path).headers["x-request-id"] for path in ("/readyz", "/healthz")]
    assert " 503 no-champion " in access(server, failed)
    last = server.client.get("/v1/models")
    access(server, last)
    assert not any(request_id in server.log() for request_id in quiet)
