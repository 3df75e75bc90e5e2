from __future__ import annotations

import time
from typing import Any

import pytest
import sqlalchemy as sa

from kizu.service.identifiers import new_id
from kizu.service.inspections import repository
from kizu.service.inspections.schemas import Filters
from kizu.service.inspections.tables import Inspection
from kizu.service.storage import schema
from kizu.service.storage.database import Database

from .bundles import picture
from .conftest import assert_problem, fill, inspected
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
    ("filters", "index"),
    [
        ({"serial": "serial-9"}, "ix_inspections_serial_id"),
        ({"recipe": "r", "serial": "serial-9"}, "ix_inspections_serial_id"),
        ({"recipe": "r", "serial": "nobody"}, "ix_inspections_serial_id"),
        ({"recipe": "r", "lot": "lot-9"}, "ix_inspections_lot_id"),
        ({"recipe": "r", "lot": "none"}, "ix_inspections_lot_id"),
        ({"recipe": "r", "station": "none"}, "ix_inspections_station_id"),
    ],
    ids=str,
)
def test_a_page_is_found_by_its_narrowest_index(database: Database, filters: dict[str, str], index: str) -> None:
    """Among many inspections of one recipe: what other parts have is not read."""
    schema.upgrade(database)
    copy_many(database, fill(database), 10_000)
    asked: list[tuple[str, Any]] = []
    sa.event.listen(database.engine, "before_cursor_execute", lambda *call: asked.append((call[2], call[3])))
    with database.reading() as session:
        found = repository.page(session, Filters.model_validate(filters), None, 101)
        statement, parameters = asked[-1]
        explain = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "
        plan = [row[-1] for row in session.connection().exec_driver_sql(explain + statement, parameters)]
    assert any(index in step for step in plan), plan
    assert len(found) == {"serial-9": 1, "lot-9": 100}.get(filters.get("serial") or filters.get("lot") or "", 0)


def copy_many(database: Database, inspection: Inspection, count: int) -> None:
    """Copies of an inspection with serials of their own, a hundred in each lot."""
    copies = [
        {column.key: getattr(inspection, column.key) for column in sa.inspect(Inspection).column_attrs}
        | {"id": new_id(), "serial": f"serial-{i}", "lot": f"lot-{i // 100}", "station": "AOI-1"}
        for i in range(count)
    ]
    with database.writing() as session:
        session.execute(sa.insert(Inspection), copies)
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ANALYZE inspections")


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
