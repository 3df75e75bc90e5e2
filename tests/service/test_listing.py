from __future__ import annotations

import time

import pytest

from .bundles import picture
from .conftest import assert_problem, inspected
from .processes import Server


def ids(items: list[dict]) -> list[str]:
    return [item["id"] for item in items]


def test_filters(server: Server, recipe: str) -> None:
    a = inspected(server, recipe, picture(5), serial="a", lot="L1", station="s1")
    time.sleep(0.005)
    b = inspected(server, recipe, picture(200), serial="b", lot="L1", station="s2")
    c = inspected(server, recipe, picture(6), serial="c", lot="L2")
    server.client.post(b["links"]["reviews"], json={"label": "NG"})

    def found(**filters: str) -> list[str]:
        return ids(server.inspections(recipe=recipe, **filters))

    assert found() == ids([c, b, a])
    assert found(lot="L1") == ids([b, a])
    assert found(station="s1") == ids([a])
    assert found(serial="c") == ids([c])
    assert found(verdict="NG") == ids([b])
    assert found(verdict="OK", lot="L2") == ids([c])
    assert found(reviewed="true") == ids([b])
    assert found(reviewed="false") == ids([c, a])
    assert found(since=b["received_at"]) == ids([c, b])
    assert found(until=b["received_at"]) == ids([a])
    assert found(serial="nobody") == []


def test_pages_are_stable_while_inspections_arrive(server: Server, recipe: str) -> None:
    before = [inspected(server, recipe, picture(i))["id"] for i in range(25)]
    seen: list[str] = []
    cursor: str | None = None
    while True:
        parameters = {"recipe": recipe, "limit": "7"} | ({"cursor": cursor} if cursor else {})
        page = server.client.get("/v1/inspections", params=parameters).json()
        seen += ids(page["items"])
        inspected(server, recipe, picture(100))
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == before[::-1]


@pytest.mark.parametrize(
    "parameters",
    [
        {"limit": "0"},
        {"limit": "501"},
        {"cursor": "!!"},
        {"cursor": "AAAA"},
        {"verdict": "MAYBE"},
        {"since": "now"},
        {"reviewed": "perhaps"},
        {"serial": "a\0"},
        {"colour": "red"},
    ],
    ids=str,
)
def test_bad_parameters(server: Server, parameters: dict[str, str]) -> None:
    assert_problem(server.client.get("/v1/inspections", params=parameters), 422)
