from __future__ import annotations

import pytest

from kizu.models.rates import Rate, clopper_pearson_lower, clopper_pearson_upper
from kizu.service.quality.estimates import Counts, caveats, estimate_fnr, estimate_specificity
from kizu.service.quality.repository import Cell

from .bundles import picture
from .conftest import MakeRecipe, assert_problem, inspected, upload
from .processes import Server


def flagged(count: int, label: str | None) -> Cell:
    return Cell(None, "NG", False, None, label, count)


def passed(count: int, label: str | None, *, sampled: bool, probability: float = 0.1) -> Cell:
    return Cell(None, "OK", sampled, probability, label, count)


PLANT = [
    flagged(20, "NG"),
    flagged(30, "OK"),
    passed(900, None, sampled=False),
    passed(98, "OK", sampled=True),
    passed(2, "NG", sampled=True),
]
"""1 050 inspected; all 50 flagged and 100 of 1 000 passes reviewed, sampled with probability 0.1; 2 of those NG."""


def test_fnr_from_an_audit_sample_by_hand() -> None:
    estimate = estimate_fnr(Counts.of(PLANT), 0.95)
    # Horvitz–Thompson: each NG found in the sample stands for ten.
    assert estimate.rate == pytest.approx(20 / (20 + 20))
    worst = 1000 * clopper_pearson_upper(2, 100, 1 - 0.05 / 4)
    best = max(1000 * clopper_pearson_lower(2, 100, 1 - 0.05 / 4), 2)
    assert estimate.upper == pytest.approx(worst / (worst + 20))
    assert estimate.lower == pytest.approx(best / (best + 20))
    assert estimate.reason is None


def test_specificity_from_an_audit_sample_by_hand() -> None:
    estimate = estimate_specificity(Counts.of(PLANT), 0.95)
    assert estimate.rate == pytest.approx((1000 - 20) / (1000 - 20 + 30))
    assert estimate.rate is not None
    assert estimate.lower < estimate.rate < estimate.upper


def test_strata_of_different_probability_are_weighted_apart() -> None:
    cells = [
        flagged(10, "NG"),
        *(passed(90, None, sampled=False), passed(9, "OK", sampled=True), passed(1, "NG", sampled=True)),
        passed(50, None, sampled=False, probability=0.5),
        passed(46, "OK", sampled=True, probability=0.5),
        passed(4, "NG", sampled=True, probability=0.5),
    ]
    missed = 1 / 0.1 + 4 / 0.5
    assert estimate_fnr(Counts.of(cells), 0.95).rate == pytest.approx(missed / (missed + 10))


def test_sampled_but_not_yet_reviewed_count_as_missing_at_random() -> None:
    counts = Counts.of(
        [
            flagged(10, "NG"),
            passed(50, None, sampled=True),
            passed(49, "OK", sampled=True),
            passed(1, "NG", sampled=True),
            passed(900, None, sampled=False),
        ]
    )
    assert estimate_fnr(counts, 0.95).rate == pytest.approx(20 / 30)
    assert any("50 of 100 audit samples still wait" in caveat for caveat in caveats(counts))


def test_flagged_that_nobody_reviewed_widen_the_bounds() -> None:
    all_reviewed = estimate_fnr(Counts.of(PLANT), 0.95)
    some = estimate_fnr(Counts.of([*PLANT, flagged(50, None)]), 0.95)
    assert some.rate == pytest.approx(20 / (20 + 40))
    assert some.lower < all_reviewed.lower


def test_without_an_audited_pass_there_is_no_estimate() -> None:
    counts = Counts.of([flagged(20, "NG"), passed(1000, None, sampled=False), passed(30, "OK", sampled=False)])
    estimate = estimate_fnr(counts, 0.95)
    assert estimate.rate is None
    assert estimate.reason == "no audited pass has been reviewed, so FNR cannot be estimated"
    assert estimate.upper == pytest.approx(1000 / 1020)  # every pass that nobody saw could be NG
    assert any("Only 30 of 1030 passed inspections" in caveat for caveat in caveats(counts))


def test_passes_that_could_never_be_sampled_forbid_an_estimate() -> None:
    estimate = estimate_fnr(Counts.of([*PLANT, passed(5, None, sampled=False, probability=0.0)]), 0.95)
    assert estimate.rate is None
    assert "audit rate was 0" in str(estimate.reason)


def test_where_everything_is_reviewed_the_estimate_is_the_rate() -> None:
    counts = Counts.of(
        [flagged(18, "NG"), flagged(5, "OK"), passed(2, "NG", sampled=False), passed(75, "OK", sampled=True)]
    )
    estimate, rate = estimate_fnr(counts, 0.95), Rate(2, 20)
    assert (estimate.rate, estimate.lower, estimate.upper) == (rate.value, rate.lower, rate.upper)
    assert caveats(counts) == []


def test_nothing_inspected_knows_nothing() -> None:
    estimate = estimate_fnr(Counts.of([]), 0.95)
    assert (estimate.rate, estimate.lower, estimate.upper) == (None, 0.0, 1.0)


def test_the_bounds_cover_the_truth_as_often_as_they_say() -> None:
    """2 000 simulated months of 2 000 parts, audited at 10 %."""
    import numpy as np

    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        missed, sampled = 30, rng.random(1900) < 0.1
        sampled_ng = int(sampled[:missed].sum())
        counts = Counts.of(
            [
                *(flagged(70, "NG"), flagged(30, "OK"), passed(1900 - int(sampled.sum()), None, sampled=False)),
                passed(int(sampled.sum()) - sampled_ng, "OK", sampled=True),
                passed(sampled_ng, "NG", sampled=True),
            ]
        )
        estimate = estimate_fnr(counts, 0.95)
        covered += estimate.lower <= 0.3 <= estimate.upper
    assert covered / 2000 >= 0.95 - 3 * (0.05 * 0.95 / 2000) ** 0.5


def quality(server: Server, recipe: str, **parameters: str) -> dict:
    answer = server.client.get("/v1/quality", params={"recipe": recipe, **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


def label(server: Server, inspection: dict, label: str) -> None:
    assert server.client.post(inspection["links"]["reviews"], json={"label": label}).status_code == 201


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
    assert total["fnr_estimate"]["rate"] == pytest.approx((4 / 3) / (4 / 3 + 3))
    assert any("audit samples still wait" in caveat for caveat in total["caveats"])

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
    groups = quality(server, recipe, group_by="model_version")["groups"]
    assert [(group["key"], group["flagged"], group["passed"]) for group in groups] == [
        (f"{recipe} v1", 1, 0),
        (f"{recipe} v2", 0, 1),
    ]


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
