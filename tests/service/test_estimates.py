from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import betaincinv, gammaincinv

from benchmarks.estimates import coverage, tally, usefulness
from benchmarks.estimates_before import fnr_bounds_before
from benchmarks.estimates_scenarios import scenarios
from kizu.models.rates import Rate, clopper_pearson_lower, clopper_pearson_upper
from kizu.service.quality.bounds import Gamma, Sightings, ratio_bounds, sightings
from kizu.service.quality.caveats import caveats, reviews_needed
from kizu.service.quality.counts import Counts, ReviewStratum
from kizu.service.quality.estimates import (
    RateEstimate,
    RealisedCounts,
    estimate_fnr,
    estimate_specificity,
    rates,
    realised,
)
from kizu.service.quality.repository import Cell


def flagged(count: int, label: str | None, *, share: float = 1.0, drawn: bool = True, day: str = "1") -> Cell:
    return Cell(None, "NG", False, None, label, count, day, share, drawn)


def passed(
    count: int,
    label: str | None,
    *,
    sampled: bool,
    probability: float = 0.1,
    share: float = 1.0,
    drawn: bool = True,
    day: str = "1",
) -> Cell:
    return Cell(None, "OK", sampled, probability, label, count, day, share, drawn)


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
    # 2 of the 22 NG that were seen had passed; each of those stands for ten.
    upper, lower = clopper_pearson_upper(2, 22, 0.975), clopper_pearson_lower(2, 22, 0.975)
    assert estimate.upper == pytest.approx(10 * upper / (10 * upper + 1 - upper))
    assert estimate.lower == pytest.approx(10 * lower / (10 * lower + 1 - lower))
    assert estimate.reason is None


def test_specificity_from_an_audit_sample_by_hand() -> None:
    estimate = estimate_specificity(Counts.of(PLANT), 0.95)
    assert estimate.rate == pytest.approx((1000 - 20) / (1000 - 20 + 30))
    assert estimate.rate is not None
    assert estimate.lower < estimate.rate < estimate.upper


def test_rates_among_reviewed_parts_are_plain_counts() -> None:
    found = rates(Counts.of(PLANT), 0.9)
    assert {name: (rate.count, rate.total, rate.confidence) for name, rate in found.items()} == {
        "fnr": (2, 22, 0.9),
        "specificity": (98, 128, 0.9),
        "overkill": (30, 128, 0.9),
        "escape_rate": (2, 100, 0.9),
    }


BACKLOG = [
    *PLANT[2:],
    flagged(20, "NG", share=0.5),
    flagged(30, "OK", share=0.5),
    flagged(50, None, share=0.5, drawn=False),
]
"""As `PLANT`, with half of 100 flagged reviewed in random order: drawn NG stand for ten among passes, for two here."""


def gamma(ng: int, probability: float, inclusion: float) -> float:
    """Bound of an expected number, of which `ng` were seen, each with probability `inclusion`."""
    return float(gammaincinv(ng, probability)) / inclusion


def test_what_was_inspected_is_bounded_with_one_error_for_all_that_is_uncertain() -> None:
    alone = realised(Counts.of(PLANT), 0.95)
    assert alone.missed == pytest.approx((gamma(2, 0.025, 0.1), gamma(3, 0.975, 0.1)))
    assert alone.caught == (20, 20)
    both = realised(Counts.of(BACKLOG), 0.95)
    assert both.missed == pytest.approx((2, gamma(3, 0.9875, 0.1)))  # no fewer than were found
    assert both.caught == pytest.approx((gamma(20, 0.0125, 0.5), gamma(21, 0.9875, 0.5)))


def test_counted_and_drawn_strata_add_up() -> None:
    both = Sightings(counted=(3, 7), drawn=((2, 4, 0.1),), certain=(2, 900))
    assert both.realised(0.025) == pytest.approx((3 + gamma(2, 0.025, 0.1), 7 + gamma(5, 0.975, 0.1)))
    assert Sightings((3, 7), (), (0, 0)).realised(0.025) == (3, 7)
    # Strata of different weight, one event of the largest weight more above: moments of Fay & Feuer.
    mixed = Sightings(counted=(3, 7), drawn=((2, 4, 0.1), (1, 1, 0.5)), certain=(3, 900))
    y, v = 3 + 2 / 0.1 + 1 / 0.5, 3 + 2 / 0.01 + 1 / 0.25
    assert (mixed.lower().shape, mixed.lower().scale) == pytest.approx((y * y / v, v / y))
    y, v = 7 + 5 / 0.1 + 1 / 0.5, 7 + 5 / 0.01 + 1 / 0.25
    assert (mixed.upper().shape, mixed.upper().scale) == pytest.approx((y * y / v, v / y))


def test_what_is_doubtful_or_overlooked_is_seen_at_the_end_that_it_hurts() -> None:
    stratum = ReviewStratum(
        0.1, total=1000, ok=90, ng=10, queued=100, drawn=100, drawn_ng=7, drawn_doubtful=3, certain_ng=7, doubtful=3
    )
    ok, ng = (sightings([stratum], label, 0.025) for label in ("OK", "NG"))
    assert (ok.drawn, ok.certain) == (((90, 93, 0.1),), (90, 990))
    assert (ng.drawn, ng.certain) == (((7, 10, 0.1),), (7, 910))
    out_of_order = replace(stratum, other_overlooked=2, other_doubtful=1)
    assert sightings([out_of_order], "NG", 0.025).drawn == ((9, 13, 0.1),)
    rechecked = replace(out_of_order, rechecked=20, overlooked=1, overlooked_doubtful=2, recheck_probability=0.5)
    assert sightings([rechecked], "NG", 0.025).drawn == ((7, 10, 0.1), (1, 3, 0.05))
    assert sightings([rechecked], "OK", 0.025).drawn == ((90, 93, 0.1),)


def test_a_stratum_is_thinned_where_that_bounds_more_tightly_than_counting() -> None:
    """Seeing none of those drawn with probability π leaves −ln(error)/π: 37 for 0.1 and an error of 0.025."""

    def thinned(unknown: int, inclusion: float = 0.1) -> bool:
        return bool(sightings([ReviewStratum(inclusion, total=unknown)], "NG", 0.025).drawn)

    assert not thinned(36)
    assert thinned(37)
    assert thinned(8, 0.5)
    assert not thinned(7, 0.5)
    assert not thinned(10**6, 0.0)
    few, many = ReviewStratum(0.01, total=20), ReviewStratum(0.2, total=1000)
    found = sightings([few, many], "NG", 0.025)
    assert (found.counted, found.drawn) == ((0, 20), ((0, 0, 0.2),))
    # 37 for both, against 30 and 7 for counting the first.
    assert len(sightings([ReviewStratum(0.1, total=30), ReviewStratum(0.5, total=1000)], "NG", 0.025).drawn) == 2


def test_nothing_seen_bounds_no_ratio_from_that_side() -> None:
    none, some = Sightings((0, 0), (), (0, 0)), Sightings((3, 3), (), (0, 0))
    assert ratio_bounds(none, some, 0.025) == pytest.approx((0.0, clopper_pearson_upper(0, 3, 0.975)))
    assert ratio_bounds(some, none, 0.025) == pytest.approx((clopper_pearson_lower(3, 3, 0.975), 1.0))


@pytest.mark.parametrize(
    ("missed", "caught", "fnr"),
    [
        ((2, 10), (20, 30), (2 / 32, 10 / 30)),
        ((2, 10), (10, 30), (2 / 32, 0.5)),
        ((1, 10), (0, 1), (0.5, 1.0)),
        ((0, 5), (5, 8), (0.0, 0.5)),
        ((0, 0), (0, 3), (0.0, 1.0)),
        ((0, 0), (4, 4), (0.0, 0.0)),
    ],
)
def test_the_realised_fnr_takes_the_end_of_each_count_that_hurts_it(missed: Any, caught: Any, fnr: Any) -> None:
    assert RealisedCounts(missed, caught, 0.95).fnr == pytest.approx(fnr)


def test_specificity_bounds_share_half_of_the_error_among_uncertain_counts() -> None:
    found = estimate_specificity(Counts.of(PLANT), 0.95)
    fn = 2, gamma(3, 0.9875, 0.1)  # no fewer than were found
    assert found.lower == pytest.approx(betaincinv(1000 - fn[1], 31, 0.0125))
    assert found.upper == pytest.approx(betaincinv(1000 - fn[0] + 1, 30, 0.9875))
    found = estimate_specificity(Counts.of(BACKLOG), 0.95)
    fn = 2, gamma(3, 0.99375, 0.1)
    fp = gamma(30, 0.00625, 0.5), 80  # no more than 50 are unseen
    assert found.lower == pytest.approx(betaincinv(1000 - fn[1], fp[1] + 1, 0.0125))
    assert found.upper == pytest.approx(betaincinv(1000 - fn[0] + 1, fp[0], 0.9875))


@pytest.mark.parametrize(
    ("ok_passed", "ng_passed", "ok_flagged", "ng_flagged"),
    [(3, 0, 3, 0), (1, 0, 3, 0), (0, 5, 3, 0), (5, 0, 0, 3), (5, 0, 1, 3)],
)
def test_the_specificity_of_known_parts_is_their_rate_at_its_ends_too(
    ok_passed: int, ng_passed: int, ok_flagged: int, ng_flagged: int
) -> None:
    cells = [passed(ok_passed, "OK", sampled=True), passed(ng_passed, "NG", sampled=True)]
    cells += [flagged(ok_flagged, "OK"), flagged(ng_flagged, "NG")]
    found = estimate_specificity(Counts.of([cell for cell in cells if cell.count]), 0.95)
    rate = Rate(ok_passed, ok_passed + ok_flagged)
    assert (found.rate, found.lower, found.upper) == pytest.approx((rate.value, rate.lower, rate.upper))
    assert found.reason is None


def test_without_any_ok_there_is_no_specificity() -> None:
    found = estimate_specificity(Counts.of([passed(2, "NG", sampled=True), flagged(3, "NG")]), 0.95)
    assert (found.rate, found.reason) == (None, "nothing has been found to be OK")


def test_unreviewed_flagged_parts_forbid_an_estimate_and_the_reason_says_which() -> None:
    unseen = flagged(5, None, share=0.2, drawn=False, day="2")
    none, some = Counts.of([*PLANT[2:], unseen]), Counts.of([*PLANT, unseen])
    for estimate, what in ((estimate_fnr, "FNR"), (estimate_specificity, "specificity")):
        found = estimate(none, 0.95)
        assert found.rate is None
        assert found.reason == f"no flagged inspection has been reviewed, so {what} cannot be estimated"
        assert "of some days no flagged inspection has been reviewed" in str(estimate(some, 0.95).reason)
    assert estimate_specificity(none, 0.95).upper == 1.0


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


def waiting(share: float, drawn: bool) -> Counts:
    """Half of 100 audit samples reviewed, in the order of the queue or not."""
    return Counts.of(
        [
            flagged(10, "NG"),
            passed(50, None, sampled=True, share=share, drawn=False),
            passed(49, "OK", sampled=True, share=share, drawn=drawn),
            passed(1, "NG", sampled=True, share=share, drawn=drawn),
            passed(900, None, sampled=False),
        ]
    )


def test_audit_samples_that_wait_count_as_missing_at_random_only_behind_a_random_order() -> None:
    in_order, chosen = estimate_fnr(waiting(0.5, True), 0.95), estimate_fnr(waiting(0.001, False), 0.95)
    assert in_order.rate == pytest.approx(20 / 30)
    assert chosen.rate is None
    assert "in the order of the queue" in str(chosen.reason)
    assert chosen.upper > in_order.upper
    assert any("50 of 100 audit samples still wait" in caveat for caveat in caveats(waiting(0.5, True)))


def test_the_answer_names_what_to_review() -> None:
    needed = reviews_needed(Counts.of([*PLANT, flagged(7, None, share=0.2, drawn=False)]))
    assert [(reviews.what, reviews.count) for reviews in needed] == [("flagged", 7)]
    assert "Review these 50 audit samples" in reviews_needed(waiting(0.5, True))[0].sentence
    assert reviews_needed(Counts.of(PLANT)) == []


@pytest.mark.parametrize("flood", [50, 500, 5000, 500_000])
def test_unreviewed_flagged_parts_never_lower_the_upper_bound(flood: int) -> None:
    before = estimate_fnr(Counts.of(PLANT), 0.95)
    after = estimate_fnr(Counts.of([*PLANT, flagged(flood, None, share=1 / flood, drawn=False, day="2")]), 0.95)
    assert after.upper == pytest.approx(before.upper)
    assert after.lower < before.lower
    assert after.rate is None


def test_flagged_that_wait_behind_the_random_order_are_extrapolated() -> None:
    cells = [*PLANT[2:], flagged(20, "NG", share=0.5), flagged(30, "OK", share=0.5)]
    found = estimate_fnr(Counts.of([*cells, flagged(50, None, share=0.5, drawn=False)]), 0.95)
    assert found.rate == pytest.approx(20 / (20 + 40))


def test_no_stratum_borrows_from_another() -> None:
    """10 000 passes without any reviewed audit leave no point estimate, whatever the other days say."""
    silent = passed(200, None, sampled=True, share=0.001, drawn=False, day="2")
    found = estimate_fnr(Counts.of([*PLANT, passed(9800, None, sampled=False, day="2"), silent]), 0.95)
    assert found.rate is None
    assert found.upper > 0.9


def test_without_an_audited_pass_there_is_no_estimate() -> None:
    counts = Counts.of([flagged(20, "NG"), passed(1000, None, sampled=False), passed(30, "OK", sampled=False)])
    estimate = estimate_fnr(counts, 0.95)
    assert estimate.rate is None
    assert estimate.reason == "no audited pass has been reviewed, so FNR cannot be estimated"
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
    assert (estimate.rate, estimate.lower, estimate.upper) == pytest.approx((rate.value, rate.lower, rate.upper))
    estimate, rate = estimate_specificity(counts, 0.95), Rate(75, 80)
    assert (estimate.rate, estimate.lower, estimate.upper) == pytest.approx((rate.value, rate.lower, rate.upper))
    assert [caveat[:16] for caveat in caveats(counts)] == ["The bounds assum"]


def test_one_more_review_of_a_small_lot_does_not_change_the_estimand() -> None:
    """One pass and three flagged NG: the process rate is as uncertain with two of them reviewed as with three."""
    whole = Counts.of([passed(1, "OK", sampled=True), flagged(3, "NG")])
    part = Counts.of(
        [passed(1, "OK", sampled=True), flagged(2, "NG", share=0.9), flagged(1, None, share=0.9, drawn=False)]
    )
    assert estimate_fnr(whole, 0.95).upper == pytest.approx(clopper_pearson_upper(0, 3, 0.975))
    assert estimate_fnr(part, 0.95).upper == pytest.approx(clopper_pearson_upper(0, 2, 0.975))
    assert realised(whole, 0.95).fnr == (0.0, 0.0)
    assert realised(part, 0.95).caught == (2, 3)


def test_a_miss_that_one_reviewer_found_counts_above_and_not_below() -> None:
    audits = [flagged(20, "NG"), passed(900, None, sampled=False), passed(98, "OK", sampled=True)]
    one = Cell(None, "OK", True, 0.1, "NG", 2, "1", doubtful=True)
    two = Cell(None, "OK", True, 0.1, "NG", 2, "1", confirmed="NG")
    denied = Cell(None, "OK", True, 0.1, "NG", 2, "1", confirmed="OK")
    doubtful, certain, ok = (estimate_fnr(Counts.of([*audits, cell]), 0.95) for cell in (one, two, denied))
    assert (doubtful.lower, doubtful.rate, doubtful.upper) == (ok.lower, 0.0, certain.upper)
    assert certain.rate == pytest.approx(0.5)
    assert certain.lower > 0
    assert any("2 passes that somebody found NG wait" in caveat for caveat in caveats(Counts.of([*audits, one])))
    assert reviews_needed(Counts.of([*audits, one]))[0].what == "second reviews"
    assert realised(Counts.of([one, passed(5, "OK", sampled=True)]), 0.95).missed == (0, 2)


def test_what_rechecks_find_raises_the_bounds_and_the_estimate() -> None:
    def fnr(found: str | None, **keywords: Any) -> RateEstimate:
        ok = Cell(None, "OK", True, 0.1, "OK", 78, "1", recheck_probability=0.5)
        checked = Cell(None, "OK", True, 0.1, "OK", 20, "1", recheck="done", confirmed="OK", recheck_probability=0.5)
        again = Cell(None, "OK", True, 0.1, "NG", 2, "1", recheck="done", confirmed=found, recheck_probability=0.5)
        cells = [flagged(20, "NG"), passed(900, None, sampled=False), ok, checked, replace(again, **keywords)]
        return estimate_fnr(Counts.of(cells), 0.95)

    found, none, doubtful = fnr("NG"), fnr("OK"), fnr(None, doubtful=True)
    # Audited with probability 0.1 and rechecked with 0.5: each stands for twenty.
    assert found.rate == pytest.approx(40 / (40 + 20))
    assert none.rate == 0.0
    assert (doubtful.lower, doubtful.rate, doubtful.upper) == (0.0, 0.0, found.upper)
    assert none.upper < found.upper
    out_of_order = fnr("NG", recheck_share=0.001, recheck_drawn=False)
    assert out_of_order.upper >= 2 / 22


@pytest.mark.parametrize(("audited", "missed"), [(1.0, 4), (0.1, 2)])
def test_where_every_pass_is_reviewed_what_rechecks_find_stands_for_the_audits_alone(
    audited: float, missed: int
) -> None:
    """Of audits that all passes went through, each recheck of probability 0.5 stands for two."""
    ok = Cell(None, "OK", True, audited, "OK", 98, "1", recheck_probability=0.5)
    again = Cell(None, "OK", True, audited, "NG", 2, "1", recheck="done", confirmed="NG", recheck_probability=0.5)
    assert estimate_fnr(Counts.of([flagged(20, "NG"), ok, again]), 0.95).rate == pytest.approx(missed / (missed + 20))


def test_nothing_inspected_knows_nothing() -> None:
    estimate = estimate_fnr(Counts.of([]), 0.95)
    assert (estimate.rate, estimate.lower, estimate.upper) == (None, 0.0, 1.0)


UNHELD = ("overlooked", "reviewed again", "overlook 10%", "overlook 30%")
"""Ends of the names of scenarios whose bounds need an assumption that the scenario breaks."""
ADVERSE = [scenario for scenario in scenarios() if not scenario.name.endswith(UNHELD)]
RUNS = 120


@pytest.mark.parametrize("scenario", ADVERSE, ids=lambda scenario: scenario.name)
def test_both_bounds_miss_as_rarely_as_they_say(scenario) -> None:
    found = coverage(scenario, RUNS, seed=0)
    most = 0.025 + 4 * (0.025 * 0.975 / RUNS) ** 0.5
    assert found.upper_misses <= most
    assert found.lower_misses <= most


def test_two_reviewers_who_agree_on_a_false_ng_are_rare() -> None:
    """Where no NG is missed, any confirmed one is an error: 0.08 are expected among 400 audits."""
    scenario = next(scenario for scenario in scenarios() if scenario.name.endswith("reviewed again"))
    assert coverage(scenario, RUNS, seed=0).lower_misses < 0.2


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_the_upper_bound_stays_useful(rate: float) -> None:
    """At most 1.5 times the binomial bound of the audits alone, with all that is queued reviewed."""
    assert usefulness(rate, 40, seed=0)[1] <= 1.5


def test_specificity_holds_in_a_backlog() -> None:
    rng = np.random.default_rng(0)
    scenario = next(scenario for scenario in scenarios() if scenario.name.endswith("half reviewed, random"))
    inside = 0
    for _ in range(RUNS):
        found = estimate_specificity(Counts.of(tally(scenario.draw(rng))), 0.95)
        inside += found.lower <= 1 - 0.16 <= found.upper
    assert inside >= 0.9 * RUNS


@pytest.mark.parametrize(
    "name", ["flood of 500 flagged", "likely NG first among flagged", "all passes, 90% of flagged"]
)
def test_the_scenarios_break_bounds_that_extrapolate(name: str) -> None:
    scenario = next(scenario for scenario in scenarios() if scenario.name.startswith(name))
    assert coverage(scenario, 60, seed=0, bounds=fnr_bounds_before).upper_misses > 0.15


def test_where_nothing_was_seen_every_low_quantile_is_zero() -> None:
    assert Gamma(0.0, 1.0).quantile(0.025) == 0
    assert Sightings((0, 0), (), (0, 0)).lower().quantile(0.5) == 0


def test_a_stratum_all_of_which_was_reviewed_is_thinned_by_its_rechecks_alone() -> None:
    all_reviewed = ReviewStratum(
        probability=1.0, total=40, ok=38, ng=2, queued=40, drawn=40, drawn_ng=2, certain_ng=2, rechecked=10,
        recheck_probability=0.25, overlooked=1,
    )  # fmt: skip
    seen = sightings([all_reviewed], "NG", 0.025)
    assert seen.counted == (0, 0)
    assert seen.drawn == ((2, 2, 1.0), (1, 1, 0.25))
    assert sightings([replace(all_reviewed, rechecked=0, overlooked=0)], "NG", 0.025).counted == (2, 2)
