"""Clocks that are wrong: what they send is refused, and what is stored can always be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from kizu.service.identifiers import first_id_at
from kizu.service.inspections.tables import Inspection
from kizu.service.registry.tables import Promotion
from kizu.service.reviews.tables import Review

from .bundles import make_bundle, picture
from .conftest import assert_problem, inspect, inspected, upload
from .processes import Server

OUTSIDE_IN_UTC = [
    "1970-01-01T00:00:07+09:00",
    "9000-12-31T23:59:59-10:00",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59-14:00",
]
INSIDE_IN_UTC = {
    "1970-01-01T00:00:00Z": "1970-01-01T00:00:00Z",
    "1969-12-31T20:00:00-04:00": "1970-01-01T00:00:00Z",
    "9001-01-01T08:00:00+09:00": "9000-12-31T23:00:00Z",
}


@pytest.mark.parametrize("sent", OUTSIDE_IN_UTC)
def test_a_time_out_of_range_in_utc_is_refused_and_stores_nothing(server: Server, recipe: str, sent: str) -> None:
    content = assert_problem(inspect(server, recipe, picture(5), captured_at=sent), 422, "invalid-request")
    assert "captured_at" in content["detail"]
    assert "clock" in content["detail"]
    assert server.inspections(recipe=recipe) == []


@pytest.mark.parametrize("sent", INSIDE_IN_UTC)
def test_a_time_in_range_in_utc_can_be_read_back_everywhere(server: Server, recipe: str, sent: str) -> None:
    first = inspected(server, recipe, picture(200), captured_at=sent, key=f"{sent} {recipe}")
    assert inspected(server, recipe, picture(200), captured_at=sent, key=f"{sent} {recipe}") == first
    assert read_everywhere(server, recipe, first) == [INSIDE_IN_UTC[sent]] * 3


@pytest.mark.parametrize("path", ["/v1/inspections", "/v1/quality"])
@pytest.mark.parametrize("parameter", ["since", "until", "captured_since", "captured_until"])
@pytest.mark.parametrize("sent", OUTSIDE_IN_UTC)
def test_a_span_out_of_range_in_utc_is_refused(
    server: Server, recipe: str, path: str, parameter: str, sent: str
) -> None:
    answer = server.client.get(path, params={"recipe": recipe, parameter: sent})
    assert parameter in assert_problem(answer, 422, "invalid-request")["detail"]


@pytest.mark.parametrize("path", ["/v1/inspections", "/v1/quality"])
@pytest.mark.parametrize("sent", INSIDE_IN_UTC)
def test_a_span_in_range_in_utc_is_taken(server: Server, recipe: str, path: str, sent: str) -> None:
    for parameter in ("since", "until", "captured_since", "captured_until"):
        assert server.client.get(path, params={"recipe": recipe, parameter: sent}).status_code == 200


def test_whatever_time_is_stored_can_be_read(server: Server, recipe: str) -> None:
    """As an earlier version stored it, before its migration."""
    inspection = inspected(server, recipe, picture(200), key=f"stored {recipe}")
    database = server.database()
    with database.writing() as session:
        row = session.get_one(Inspection, UUID(inspection["id"]))
        row.captured_at = datetime(1969, 12, 31, 15, 0, 7, tzinfo=UTC)
    database.close()
    again = inspected(server, recipe, picture(200), key=f"stored {recipe}")
    assert again["captured_at"] == "1969-12-31T15:00:07Z"
    assert read_everywhere(server, recipe, inspection) == ["1969-12-31T15:00:07Z"] * 3


def ahead() -> UUID:
    """An identifier that was made while the clock was a year ahead."""
    return first_id_at(datetime.now(UTC) + timedelta(days=365))


def test_a_review_counts_after_one_that_was_made_while_the_clock_was_ahead(server: Server, recipe: str) -> None:
    inspection = inspected(server, recipe, picture(200))
    database = server.database()
    with database.writing() as session:
        at = {"inspection_id": UUID(inspection["id"]), "created_at": datetime.now(UTC)}
        session.add(Review(id=ahead(), label="NG", reviewer="ann", **at))
    database.close()
    for label in ("OK", "NG", "OK"):
        answer = server.client.post(inspection["links"]["reviews"], json={"label": label, "reviewer": "ann"})
        assert answer.status_code == 201
        assert abs(datetime.fromisoformat(answer.json()["created_at"]) - datetime.now(UTC)) < timedelta(seconds=30)
    detail = server.client.get(inspection["links"]["self"]).json()
    assert [review["label"] for review in detail["reviews"]] == ["NG", "OK", "NG", "OK"]
    assert detail["label"] == "OK"


def test_a_rollback_follows_the_order_of_promotions_though_the_clock_was_ahead(
    server: Server, recipe: str, tmp_path: Path
) -> None:
    first = server.models[recipe]
    make_bundle(tmp_path / "v2", recipe, threshold=0.8)
    make_bundle(tmp_path / "v3", recipe, threshold=0.9)
    second, third = (upload(server, tmp_path / name)["id"] for name in ("v2", "v3"))
    assert server.client.post(f"/v1/models/{second}/promote").status_code == 200
    database = server.database()
    with database.writing() as session:
        promoted = session.scalars(sa.select(Promotion).where(Promotion.model_id == second)).one()
        promoted.id = ahead()
    database.close()
    assert server.client.post(f"/v1/models/{third}/promote").status_code == 200
    back = [server.client.post(f"/v1/recipes/{recipe}/rollback").json()["id"] for _ in range(2)]
    assert back == [second, first]


def read_everywhere(server: Server, recipe: str, inspection: dict) -> list[str]:
    """The time of capture by itself, in the list and in the queue."""
    detail = server.client.get(inspection["links"]["self"])
    listed = server.client.get("/v1/inspections", params={"recipe": recipe})
    queued = server.client.get("/v1/reviews/queue", params={"recipe": recipe})
    assert [answer.status_code for answer in (detail, listed, queued)] == [200, 200, 200]
    return [item["captured_at"] for item in (detail.json(), *listed.json()["items"], *queued.json()["items"])]
