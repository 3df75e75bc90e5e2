from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from kizu.models.rates import Rate, clopper_pearson_upper
from kizu.service.inspections.span import Span
from kizu.service.quality import repository
from kizu.service.storage import schema
from kizu.service.storage.database import Database

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, fill, inspected, upload
from .processes import Server


def quality(server: Server, recipe: str, **parameters: str) -> dict:
    answer = server.client.get("/v1/quality", params={"recipe": recipe, **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def label(server: Server, inspection: dict, label: str, reviewer: str | None = None) -> None:
    review = {"label": label, "reviewer": reviewer}
    assert server.client.post(inspection["links"]["reviews"], json=review).status_code == 201


@pytest.mark.parametrize(
    ("zone", "received", "days"),
    [
        ("UTC", ["2026-03-01T23:59:59Z", "2026-03-02T00:00:00Z"], ["2026-03-01", "2026-03-02"]),
        ("Asia/Tokyo", ["2026-03-01T14:59:59.999Z", "2026-03-01T15:00:00Z"], ["2026-03-01", "2026-03-02"]),
        ("America/St_Johns", ["2026-03-01T03:29:59Z", "2026-03-01T03:30:00Z"], ["2026-02-28", "2026-03-01"]),
        # Summer time ends in Berlin: that day has 25 hours.
        ("Europe/Berlin", ["2026-10-24T22:00:00Z", "2026-10-25T22:59:59Z"], ["2026-10-25"]),
        ("Europe/Berlin", ["2026-10-24T21:59:59Z", "2026-10-25T23:00:00Z"], ["2026-10-24", "2026-10-26"]),
    ],
)
def test_days_begin_in_the_plants_time_zone(
    database: Database, zone: str, received: list[str], days: list[str]
) -> None:
    schema.upgrade(database)
    for moment in received:
        fill(database, at=datetime.fromisoformat(moment))
    with database.reading() as session:
        cells = repository.cells(session, "r", Span(), "day", zone)
    assert sorted({cell.key for cell in cells}, key=str) == days
    assert sorted({cell.day for cell in cells}, key=str) == days


def test_a_span_of_capture(server: Server, recipe: str) -> None:
    for hour in ("06", "07", "08"):
        inspected(server, recipe, picture(200), lot="L", captured_at=f"2026-03-01T{hour}:00:00+09:00")
    inspected(server, recipe, picture(200))

    def found(**span: str) -> tuple[int, int]:
        report = quality(server, recipe, **span)
        return len(server.inspections(recipe=recipe, **span)), report["inspected"]

    assert found() == (4, 4)
    assert found(captured_since="2026-02-28T22:00:00Z") == (2, 2)
    assert found(captured_until="2026-02-28T22:00:00Z") == (1, 1)
    assert found(captured_since="2026-03-01T07:00:00+09:00", captured_until="2026-03-01T08:00:00+09:00") == (1, 1)
    assert found(captured_since="2026-03-01T07:00:00+09:00", until="2026-03-01T08:00:00+09:00") == (0, 0)
    report = quality(server, recipe, captured_since="2026-03-01T07:00:00+09:00")
    assert (report["captured_since"], report["captured_until"]) == ("2026-02-28T22:00:00Z", None)
    span = {"captured_since": "2026-03-01T08:00:00Z", "captured_until": "2026-03-01T07:00:00Z"}
    assert_problem(server.client.get("/v1/quality", params={"recipe": recipe, **span}), 422, "invalid-request")


def test_the_service_reports_days_of_its_setting(new_server: Callable[..., Server], add_recipe: MakeRecipe) -> None:
    # The zone is 14 hours ahead of UTC, or 12 behind it: in one of them it is another day now.
    zone, ahead = ("Pacific/Kiritimati", 14) if datetime.now(UTC).hour >= 10 else ("Etc/GMT+12", -12)
    server = new_server(time_zone=zone).start()
    recipe = add_recipe(server)
    inspection = inspected(server, recipe, picture(200))
    report = quality(server, recipe, group_by="day")
    day = (datetime.fromisoformat(inspection["received_at"]) + timedelta(hours=ahead)).date().isoformat()
    assert day != inspection["received_at"][:10]
    assert (report["time_zone"], [group["key"] for group in report["groups"]]) == (zone, [day])


def test_figures_over_http(server: Server, add_recipe: MakeRecipe) -> None:
    """Lot A holds 3 tp, 1 fp, 2 tn and 1 fn; lot B a flagged REVIEW that is OK, and a pass nobody looked at."""
    recipe = add_recipe(server, review_threshold=0.3)
    for value, truth in [(200, "NG")] * 3 + [(201, "OK")] + [(5, "OK")] * 2 + [(6, "NG")]:
        label(server, inspected(server, recipe, picture(value), lot="A", station="s"), truth)
    label(server, inspected(server, recipe, picture(100), lot="B"), "OK")
    inspected(server, recipe, picture(7), lot="B")

    total = quality(server, recipe, group_by="lot")
    assert [total[name] for name in ("inspected", "passed", "flagged", "reviewed")] == [9, 4, 5, 8]
    assert [total[name] for name in ("tp", "fp", "tn", "fn")] == [3, 2, 2, 1]
    assert total["fnr"] == Rate(1, 4).as_dict()
    assert total["specificity"] == Rate(2, 4).as_dict()
    assert total["overkill"] == Rate(2, 4).as_dict()
    assert total["escape_rate"] == Rate(1, 3).as_dict()
    assert total["review_coverage"]["passed"]["count"] == 3
    # Only one reviewer has found the miss so far.
    assert total["fnr_estimate"]["lower"] == 0.0
    assert total["fnr_estimate"]["upper"] > 1 / 4
    assert any("audit samples still wait" in caveat for caveat in total["caveats"])
    first, second = total["reviews_needed"]
    assert first == {
        "what": "audit samples",
        "count": 1,
        "sentence": "Review these 1 audit samples: the queue mixes them in.",
        "queue": f"/v1/reviews/queue?recipe={recipe}",
    }
    # The miss, and those of the two passes found OK that were drawn for it.
    assert (second["what"], 1 <= second["count"] <= 3) == ("second reviews", True)
    realised = total["realised"]
    assert [realised[name] for name in ("missed_lower", "missed_upper", "caught_lower", "caught_upper")] == [0, 2, 3, 3]
    assert total["model_versions"] == []

    a, b = total["groups"]
    assert (a["key"], a["tp"], a["fp"], a["tn"], a["fn"]) == ("A", 3, 1, 2, 1)
    assert (b["key"], b["tp"], b["fp"], b["tn"], b["fn"]) == ("B", 0, 1, 0, 0)
    assert b["fnr"]["rate"] is None
    assert b["fnr"]["upper"] == 1.0

    stations = quality(server, recipe, group_by="station")["groups"]
    assert [(group["key"], group["inspected"]) for group in stations] == [("s", 7), (None, 2)]
    days = quality(server, recipe, group_by="day")["groups"]
    assert sum(group["inspected"] for group in days) == 9
    assert all(len(group["key"]) == len("2026-01-01") for group in days)
    assert quality(server, recipe, until="2020-01-01T00:00:00Z")["inspected"] == 0
    assert quality(server, recipe, since="2020-01-01T00:00:00Z")["inspected"] == 9
    assert quality(server, recipe, confidence="0.99")["fnr"] == Rate(1, 4, 0.99).as_dict()


def test_a_changed_mind_changes_the_figures(server: Server, recipe: str) -> None:
    inspection = inspected(server, recipe, picture(200))
    label(server, inspection, "OK")
    label(server, inspection, "NG")
    figures = quality(server, recipe)
    assert (figures["tp"], figures["fp"], figures["reviewed"]) == (1, 0, 1)


def test_by_model_version(server: Server, tmp_path, recipe: str) -> None:
    from .bundles import make_bundle

    inspected(server, recipe, picture(150))
    make_bundle(tmp_path / "v2", recipe, threshold=0.8)
    upload(server, tmp_path / "v2", promote=True)
    inspected(server, recipe, picture(150))
    assert any("2 model versions decided" in caveat for caveat in quality(server, recipe)["caveats"])
    groups = quality(server, recipe, group_by="model_version")["groups"]
    assert quality(server, recipe)["model_versions"] == groups
    assert [(group["key"], group["flagged"], group["passed"]) for group in groups] == [
        (f"{recipe} v1", 1, 0),
        (f"{recipe} v2", 0, 1),
    ]


def test_intervals_of_many_groups_say_that_some_miss_or_widen(server: Server, recipe: str) -> None:
    for lot in ("A", "B"):
        label(server, inspected(server, recipe, picture(200), lot=lot), "NG")
    found = quality(server, recipe, group_by="lot")
    assert any("expected to miss" in caveat for caveat in found["caveats"])
    assert found["groups"][0]["fnr_estimate"]["upper"] == pytest.approx(clopper_pearson_upper(0, 1, 1 - 0.05 / 2))
    wide = quality(server, recipe, group_by="lot", simultaneous="true")
    assert any("Bonferroni" in caveat for caveat in wide["caveats"])
    assert wide["groups"][0]["fnr_estimate"]["upper"] == pytest.approx(clopper_pearson_upper(0, 1, 1 - 0.05 / 4))
    assert wide["fnr_estimate"] == found["fnr_estimate"]


def test_the_bounds_extrapolate_only_along_the_order_of_the_queue(server: Server, recipe: str) -> None:
    """The last six of twelve flagged parts say nothing of the others; the first five speak for the one that waits."""
    for value in range(200, 212):
        inspected(server, recipe, picture(value))
    links = [item["links"] for item in queue_of(server, recipe)]
    for behind in links[6:]:
        label(server, {"links": behind}, "NG")
    found = quality(server, recipe)["fnr_estimate"]
    assert found["reason"].startswith("of some days no flagged inspection")
    assert found["upper"] == pytest.approx(clopper_pearson_upper(0, 6, 0.975))
    for ahead in links[:5]:
        label(server, {"links": ahead}, "NG")
    assert quality(server, recipe)["fnr_estimate"]["rate"] == 0.0


def test_a_miss_counts_once_two_reviewers_agree(server: Server, recipe: str) -> None:
    label(server, inspected(server, recipe, picture(200)), "NG")
    missed = inspected(server, recipe, picture(5))
    lower = []
    for reviewer, found in (("ann", "NG"), ("ann", "NG"), (None, "NG"), ("bob", "OK"), ("eve", "NG")):
        label(server, missed, found, reviewer)
        lower.append(quality(server, recipe)["fnr_estimate"]["lower"])
    assert lower[:4] == [0.0] * 4
    assert lower[4] == pytest.approx(Rate(1, 2).lower)


def test_rechecks_of_audits_found_ok_enter_the_upper_bound(server: Server, recipe: str) -> None:
    label(server, inspected(server, recipe, picture(200)), "NG")
    for value in range(10, 40):
        label(server, inspected(server, recipe, picture(value)), "OK", "ann")
    assert quality(server, recipe)["fnr_estimate"]["upper"] == pytest.approx(Rate(0, 1).upper)
    rechecks = queue_of(server, recipe, reviewer="bob")
    assert rechecks
    for item in rechecks:
        label(server, item, "OK", "bob")
    # An overlooked NG would have been drawn with probability 1/2: whoever is seen stands for two.
    upper, odds = quality(server, recipe)["fnr_estimate"]["upper"], 2 * Rate(0, 1).upper / (1 - Rate(0, 1).upper)
    assert upper == pytest.approx(odds / (1 + odds))


def queue_of(server: Server, recipe: str, **parameters: str) -> list[dict]:
    return server.client.get("/v1/reviews/queue", params={"recipe": recipe, **parameters}).json()["items"]


@pytest.mark.parametrize(
    "parameters",
    [
        {"group_by": "colour"},
        {"since": "yesterday"},
        {"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"},
        {"confidence": "1"},
        {"confidence": "nan"},
    ],
    ids=str,
)
def test_bad_parameters(server: Server, recipe: str, parameters: dict[str, str]) -> None:
    assert_problem(server.client.get("/v1/quality", params={"recipe": recipe, **parameters}), 422)


def test_unknown_recipe(server: Server) -> None:
    assert_problem(server.client.get("/v1/quality", params={"recipe": "nobody-knows"}), 404, "unknown-recipe")
    assert_problem(server.client.get("/v1/quality"), 422)
