from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kizu.service.inference.errors import OverloadedError
from kizu.service.inspections.admission import Admission

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected
from .processes import Server


def test_so_many_requests_are_in_work_and_no_more() -> None:
    admission = Admission(max_requests=2, max_bytes=100)
    with admission.request(), admission.request():
        with pytest.raises(OverloadedError, match="Too many inspections"), admission.request():
            pass
        assert admission.requests == 2
    with admission.request():
        assert admission.requests == 1


def test_requests_hold_their_bytes_until_they_end_however_they_end() -> None:
    admission = Admission(max_requests=9, max_bytes=100)
    with admission.request() as first:
        first.reserve(60)
        with suppress(RuntimeError), admission.request() as second:
            second.reserve(30)
            with pytest.raises(OverloadedError, match="large images"):
                second.reserve(20)
            assert admission.bytes == 90
            raise RuntimeError
        assert (admission.requests, admission.bytes) == (1, 60)
        with pytest.raises(OverloadedError), admission.memory(50):
            pass
        with admission.memory(40):
            assert admission.bytes == 100
    assert (admission.requests, admission.bytes) == (0, 0)


def test_a_request_that_is_alone_always_gets_its_memory() -> None:
    admission = Admission(max_requests=1, max_bytes=100)
    with admission.request() as only:
        only.reserve(1000)
        assert admission.bytes == 1000
    assert admission.bytes == 0


def test_overload_is_answered_429_and_loses_nothing(new_server: Callable[..., Server], add_recipe: MakeRecipe) -> None:
    server = new_server(queue_size=2, decode_threads=1).start()
    recipe = add_recipe(server)
    image = picture(100, size=(1500, 1500), seed=1)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: inspect(server, recipe, image), range(64)))
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert accepted
    assert refused
    for answer in refused:
        assert_problem(answer, 429, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert {item["id"] for item in server.inspections(recipe=recipe)} == set(accepted)
    inspected(server, recipe, image)
