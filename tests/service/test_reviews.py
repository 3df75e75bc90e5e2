from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa

from kizu.service.identifiers import new_id
from kizu.service.inspections.audit import AuditSampler
from kizu.service.inspections.order import as_share, place_of
from kizu.service.registry.tables import Model
from kizu.service.reviews import service
from kizu.service.reviews.agreement import Agreement, agreement
from kizu.service.reviews.schemas import NewReview
from kizu.service.storage import schema
from kizu.service.storage.database import Database

from .bundles import make_bundle, picture
from .conftest import MakeRecipe, assert_problem, fill, inspected
from .processes import Server


def review(server: Server, inspection: dict, label: str, **fields: str) -> dict:
    answer = server.client.post(inspection["links"]["reviews"], json={"label": label, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def queue(server: Server, recipe: str, **parameters: str) -> dict:
    answer = server.client.get("/v1/reviews/queue", params={"recipe": recipe, **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_inspection_and_its_reviews_are_read_at_one_moment(database: Database, tmp_path: Path) -> None:
    schema.upgrade(database)
    inspection = fill(database)
    with database.writing() as session:
        manifest = make_bundle(tmp_path / "bundle").manifest.model_dump(mode="json")
        session.get_one(Model, inspection.model_id).manifest = manifest
    sampler = AuditSampler(b"key", 0.0)
    service.add(database, sampler, inspection.id, NewReview(label="OK"))

    to_come = ["NG"]

    def review_between(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "FROM inspections" in statement and to_come:
            service.add(database, sampler, inspection.id, NewReview(label=to_come.pop()))  # type: ignore[arg-type]

    sa.event.listen(database.engine, "after_cursor_execute", review_between)
    seen = service.detail(database, inspection.id)
    assert (seen.label, [review.label for review in seen.reviews]) == ("OK", ["OK"])
    seen = service.detail(database, inspection.id)
    assert (seen.label, [review.label for review in seen.reviews]) == ("NG", ["OK", "NG"])


def test_reviews_add_up_and_the_latest_counts(server: Server, recipe: str) -> None:
    inspection = inspected(server, recipe, picture(200))
    review(server, inspection, "OK", reviewer="ann")
    review(server, inspection, "NG", defect="short", note="two\nlines", reviewer="bob")
    stored = server.client.get(inspection["links"]["self"]).json()
    assert stored["label"] == "NG"
    assert [(r["label"], r["defect"], r["note"], r["reviewer"]) for r in stored["reviews"]] == [
        ("OK", None, None, "ann"),
        ("NG", "short", "two\nlines", "bob"),
    ]
    assert stored["verdict"] == inspection["verdict"]


def test_the_label_agrees_with_the_last_review_under_contention(server: Server, recipe: str) -> None:
    inspection = inspected(server, recipe, picture(200))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: review(server, inspection, "NG" if i % 2 else "OK"), range(16)))
    stored = server.client.get(inspection["links"]["self"]).json()
    assert len(stored["reviews"]) == 16
    assert stored["label"] == stored["reviews"][-1]["label"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"label": "MAYBE"},
        {"label": "OK", "defect": "short"},
        {"label": "NG", "defect": "x" * 129},
        {"label": "NG", "note": "x" * 4001},
        {"label": "NG", "reviewer": "a\0"},
        {"label": "NG", "colour": "red"},
        [],
    ],
    ids=lambda body: str(body)[:30],
)
def test_bad_reviews(server: Server, recipe: str, body: object) -> None:
    inspection = inspected(server, recipe, picture(200))
    assert_problem(server.client.post(inspection["links"]["reviews"], json=body), 422)
    assert server.client.get(inspection["links"]["self"]).json()["reviews"] == []


def test_reviews_of_nothing(server: Server) -> None:
    url = "/v1/inspections/01a20413-ab57-7000-9c86-324ce9bb2b01/reviews"
    assert_problem(server.client.post(url, json={"label": "OK"}), 404, "unknown-inspection")
    broken = server.client.post(url, content=b"{", headers={"content-type": "application/json"})
    assert_problem(broken, 422)


def in_order(inspections: list[dict]) -> list[str]:
    return sorted((inspection["id"] for inspection in inspections), key=lambda found: found.replace("-", "")[-12:])


def test_the_queue_holds_flagged_and_sampled_passes_in_random_order(server: Server, add_recipe: MakeRecipe) -> None:
    """These services sample every pass for audit."""
    recipe = add_recipe(server, review_threshold=0.3)
    waiting = [inspected(server, recipe, picture(value)) for value in (200, 5, 100, 6, 201)]
    found = queue(server, recipe)
    assert [item["id"] for item in found["items"]] == in_order(waiting)
    assert found["pending"] == 5
    review(server, waiting[0], "NG")
    review(server, waiting[1], "OK")
    assert [item["id"] for item in queue(server, recipe)["items"]] == in_order(waiting[2:])


def test_a_pass_found_ng_is_handed_out_again_unmarked_to_others_until_two_agree(server: Server, recipe: str) -> None:
    passed, flagged = inspected(server, recipe, picture(5)), inspected(server, recipe, picture(200))
    fresh = queue(server, recipe)["items"]
    review(server, passed, "NG", reviewer="ann")
    review(server, flagged, "NG", reviewer="ann")

    def waits_for(**reviewer: str) -> list[str]:
        found = queue(server, recipe, **reviewer)
        assert found["pending"] == len(found["items"])
        return [item["id"] for item in found["items"]]

    assert waits_for() == waits_for(reviewer="ann") == []
    assert waits_for(reviewer="bob") == [passed["id"]]
    assert queue(server, recipe, reviewer="bob")["items"] == [item for item in fresh if item["id"] == passed["id"]]
    review(server, passed, "OK", reviewer="bob")
    assert waits_for(reviewer="ann") == waits_for(reviewer="bob") == []
    assert waits_for(reviewer="eve") == [passed["id"]]
    review(server, passed, "NG", reviewer="eve")
    assert waits_for(reviewer="dan") == []


@pytest.mark.parametrize(
    ("reviews", "expected"),
    [
        ([], Agreement(None, False, None)),
        ([("ann", "OK")], Agreement(None, False, None)),
        ([("ann", "NG")], Agreement(None, True, None)),
        ([("ann", "NG"), ("ann", "OK")], Agreement(None, False, None)),
        ([("ann", "NG"), ("bob", "NG")], Agreement("NG", False, None)),
        ([("ann", "NG"), (None, "NG")], Agreement(None, True, None)),
        ([("ann", "NG"), ("bob", "OK")], Agreement(None, True, None)),
        ([("ann", "NG"), ("bob", "OK"), ("eve", "OK")], Agreement("OK", False, None)),
        ([("ann", "NG"), ("bob", "OK"), ("eve", "OK"), ("dan", "NG")], Agreement(None, True, None)),
    ],
    ids=str,
)
def test_agreement_needs_two_names(reviews: list[tuple[str | None, str]], expected: Agreement) -> None:
    assert agreement("OK", reviews) == expected
    assert not agreement("NG", reviews).again


@pytest.mark.parametrize(
    ("reviews", "expected"),
    [
        ([("ann", "OK")], Agreement(None, False, "waiting")),
        ([("ann", "OK"), ("ann", "OK")], Agreement(None, False, "waiting")),
        ([("ann", "OK"), ("bob", "OK")], Agreement("OK", False, "done")),
        ([("ann", "OK"), ("bob", "NG")], Agreement(None, True, "done")),
        ([("ann", "OK"), ("bob", "NG"), ("eve", "NG")], Agreement("NG", False, "done")),
        ([("ann", "NG"), ("bob", "OK")], Agreement(None, True, None)),
    ],
    ids=str,
)
def test_an_audit_sample_found_ok_and_drawn_is_reviewed_again(reviews: list, expected: Agreement) -> None:
    assert agreement("OK", reviews, rechecks=True) == expected


def test_about_half_of_the_audits_found_ok_are_handed_out_to_somebody_else(server: Server, recipe: str) -> None:
    audits = [inspected(server, recipe, picture(value)) for value in range(20, 60)]
    flagged = inspected(server, recipe, picture(200))
    for inspection in (*audits, flagged):
        review(server, inspection, "OK", reviewer="ann")
    again = {item["id"] for item in queue(server, recipe, reviewer="bob")["items"]}
    assert 5 <= len(again) <= 35
    assert again <= {inspection["id"] for inspection in audits}
    assert queue(server, recipe, reviewer="ann")["items"] == queue(server, recipe)["items"] == []
    for inspection in audits:
        if inspection["id"] in again:
            review(server, inspection, "OK", reviewer="bob")
    assert queue(server, recipe, reviewer="eve")["items"] == []


def test_the_order_of_the_queue_is_uniform_and_not_that_of_arrival() -> None:
    places = [as_share(place_of(new_id())) for _ in range(2000)]
    assert abs(sum(places) / 2000 - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
    rising = sum(a < b for a, b in pairwise(places))
    assert abs(rising - 1000) < 5 * (2000 / 12) ** 0.5


def test_the_queue_is_blind_unless_asked(server: Server, recipe: str) -> None:
    inspections = [inspected(server, recipe, picture(value)) for value in (5, 200)]
    first, second = queue(server, recipe)["items"]
    assert set(first) == set(second)
    assert not {"verdict", "score", "threshold", "audited"} & set(first)
    assert "heatmap" not in first["links"]
    shown = {item["id"]: item for item in queue(server, recipe, blind="false")["items"]}
    assert [shown[inspection["id"]]["verdict"] for inspection in inspections] == ["OK", "NG"]
    assert [shown[inspection["id"]]["score"] for inspection in inspections] == [i["score"] for i in inspections]


def test_the_queue_in_pages(server: Server, recipe: str) -> None:
    expected = in_order([inspected(server, recipe, picture(200 + i)) for i in range(7)])
    first = queue(server, recipe, limit="4")
    second = queue(server, recipe, limit="4", cursor=first["next"])
    assert [item["id"] for item in first["items"] + second["items"]] == expected
    assert second["next"] is None


def test_the_queue_of_an_unknown_recipe(server: Server) -> None:
    assert_problem(server.client.get("/v1/reviews/queue", params={"recipe": "nobody-knows"}), 404, "unknown-recipe")
    assert_problem(server.client.get("/v1/reviews/queue"), 422)
