from __future__ import annotations

import math
import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from kizu.models.rates import (
    GroupedRate,
    Rate,
    clopper_pearson_lower,
    clopper_pearson_upper,
    mean_lower,
    mean_upper,
)

counts = st.integers(1, 400).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total)))
confidences = st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999])


@pytest.mark.parametrize("total", [1, 2, 7, 59, 300, 16642])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_two_sided_interval_is_scipys_exact_one(total: int, confidence: float) -> None:
    for count in {0, 1, total // 3, total - 1, total}:
        expected = binomtest(count, total).proportion_ci(confidence, method="exact")
        rate = Rate(count, total, confidence)
        assert rate.lower == pytest.approx(expected.low, abs=1e-10)
        assert rate.upper == pytest.approx(expected.high, abs=1e-10)


@pytest.mark.parametrize(
    ("misses", "total", "bound"),
    [(0, 300, 0.00994), (0, 1000, 0.00299), (0, 16642, 0.00018), (1, 26353, 0.00018), (5, 58403, 0.00018)],
)
def test_one_sided_bounds_known_from_the_rule_of_three_and_its_kin(misses: int, total: int, bound: float) -> None:
    assert clopper_pearson_upper(misses, total) == pytest.approx(bound, rel=2e-3)
    assert clopper_pearson_lower(total - misses, total) == pytest.approx(1 - bound, rel=2e-3)


@given(counts, confidences)
def test_one_sided_bounds_invert_the_binomial_tails(drawn: tuple[int, int], confidence: float) -> None:
    count, total = drawn
    upper, lower = clopper_pearson_upper(count, total, confidence), clopper_pearson_lower(count, total, confidence)
    if count < total:
        assert binom.cdf(count, total, upper) == pytest.approx(1 - confidence, rel=1e-6)
    if count > 0:
        assert binom.sf(count - 1, total, lower) == pytest.approx(1 - confidence, rel=1e-6)


@given(counts, confidences)
def test_the_interval_holds_the_rate_and_mirrors(drawn: tuple[int, int], confidence: float) -> None:
    count, total = drawn
    rate, mirror = Rate(count, total, confidence), Rate(total - count, total, confidence)
    assert rate.value is not None
    assert 0 <= rate.lower <= rate.value <= rate.upper <= 1
    assert rate.upper == pytest.approx(1 - mirror.lower, abs=1e-9)


@given(counts)
def test_more_confidence_widens_and_more_errors_raise(drawn: tuple[int, int]) -> None:
    count, total = drawn
    narrow, wide = Rate(count, total, 0.9), Rate(count, total, 0.99)
    assert wide.lower <= narrow.lower
    assert wide.upper >= narrow.upper
    if count < total:
        assert Rate(count + 1, total).upper >= Rate(count, total).upper


def test_nothing_observed_leaves_everything_possible() -> None:
    rate = Rate(0, 0)
    assert (rate.value, rate.lower, rate.upper) == (None, 0.0, 1.0)
    assert str(rate) == "– (0 of 0)"
    assert rate.as_dict()["rate"] is None


@pytest.mark.parametrize(("count", "total", "confidence"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0)])
def test_impossible_rates_are_refused(count: int, total: int, confidence: float) -> None:
    for made in (Rate, clopper_pearson_upper, clopper_pearson_lower):
        with pytest.raises(ValueError, match=r"rate needs|confidence"):
            made(count, total, confidence)


def test_a_rate_is_written_with_its_interval_and_counts() -> None:
    assert str(Rate(340, 350)) == "97.1 % [94.8, 98.7] (340/350)"
    assert str(Rate(0, 300)) == "0.0 % [0.0, 1.3] (0/300)"
    # Two digits of how far the interval reaches, from either end.
    assert str(Rate(0, 10**6)) == "0.00000 % [0.00000, 0.00037] (0/1000000)"
    assert str(Rate(10**6, 10**6)) == "100.00000 % [99.99963, 100.00000] (1000000/1000000)"


@given(st.integers(1, 10**7).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_a_printed_interval_never_promises_more_than_the_exact_one(drawn: tuple[int, int]) -> None:
    rate = Rate(*drawn)
    match = re.fullmatch(r"[\d.]+ % \[([\d.]+), ([\d.]+)\] \(\d+/\d+\)", str(rate))
    assert match is not None
    low, high = float(match[1]), float(match[2])
    assert low <= 100 * rate.lower + 1e-9
    assert high >= 100 * rate.upper - 1e-9
    # Two decimals would print the upper bound of 0 in a million as 0.00 %.
    assert high > 0
    assert low < 100


shares = st.lists(st.integers(0, 20).map(lambda count: count / 20), min_size=1, max_size=40)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
@pytest.mark.parametrize("weights", [(0.6, 0.3, 0.1), (0.05, 0.05, 0.9), (0.5, 0.0, 0.5), (0.02, 0.98, 0.0)], ids=str)
def test_the_bound_of_a_mean_fails_as_rarely_as_it_says_over_all_outcomes(
    weights: tuple[float, ...], confidence: float
) -> None:
    support = (0.0, 0.25, 1.0)
    true = sum(weight * value for weight, value in zip(weights, support, strict=True))
    too_high = too_low = 0.0
    for outcome in product(range(3), repeat=5):
        probability = math.prod(weights[index] for index in outcome)
        values = [support[index] for index in outcome]
        too_high += probability * (mean_lower(values, confidence) > true)
        too_low += probability * (mean_upper(values, confidence) < true)
    assert too_high <= 1 - confidence
    assert too_low <= 1 - confidence


def test_the_bound_of_a_mean_is_where_the_bets_have_won_enough() -> None:
    values = [1.0, 0.9, 1.0, 0.85, 0.95, 1.0]
    bound = mean_lower(values, 0.975)
    bets = [1 / (1 + math.exp(-logit)) for logit in range(-5, 4)]
    wealth = 0.5 * math.prod(x / bound for x in values)
    wealth += sum(0.5 / 9 * math.prod(1 + bet * (x / bound - 1) for x in values) for bet in bets)
    assert wealth == pytest.approx(40)


@pytest.mark.parametrize("groups", [1, 5, 30, 300])
def test_groups_without_a_miss_bound_the_mean_nearly_as_single_parts_do(groups: int) -> None:
    bound = mean_lower([1.0] * groups, 0.975)
    assert (0.025 / 2) ** (1 / groups) <= bound <= 0.025 ** (1 / groups) == pytest.approx(Rate(groups, groups).lower)


@given(shares, confidences)
def test_the_bounds_of_a_mean_hold_it_mirror_and_ignore_the_order(values: list[float], confidence: float) -> None:
    low, high = mean_lower(values, confidence), mean_upper(values, confidence)
    assert 0 <= low <= math.fsum(values) / len(values) + 1e-9
    assert math.fsum(values) / len(values) - 1e-9 <= high <= 1
    assert mean_lower([1 - value for value in values], confidence) == pytest.approx(1 - high, abs=1e-9)
    assert mean_lower(values[::-1], confidence) == pytest.approx(low, abs=1e-9)


def test_the_mean_of_nothing_is_unknown_and_of_anything_else_refused() -> None:
    assert (mean_lower([]), mean_upper([])) == (0.0, 1.0)
    for values in ([0.5, 1.1], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            mean_lower(values)
    with pytest.raises(ValueError, match="confidence"):
        mean_lower([0.5], 1.0)


def test_groups_have_equal_weight_and_a_part_without_a_group_is_its_own() -> None:
    counted = [True, True, False, True, True, False]
    rate = GroupedRate.of(counted, ["a", "a", "a", "b", "", ""], 0.9)
    assert sorted(rate.rates) == pytest.approx([0, 2 / 3, 1, 1])
    assert rate.value == pytest.approx(2 / 3)
    assert rate.as_dict() == {
        "rate": rate.value,
        "lower": mean_lower(rate.rates, 0.95),
        "upper": mean_upper(rate.rates, 0.95),
        "groups": 4,
        "confidence": 0.9,
    }
    with pytest.raises(ValueError, match="zip"):
        GroupedRate.of(np.array([True]), ["a", "b"], 0.9)


def test_a_grouped_rate_is_written_with_its_interval_and_groups() -> None:
    rate = GroupedRate((1.0,) * 29 + (0.13,))
    assert (
        str(rate)
        == f"97.1 % [{math.floor(1000 * rate.lower) / 10}, {math.ceil(1000 * rate.upper) / 10}] (mean of 30 groups)"
    )
    assert str(GroupedRate((0.5,))).endswith("(mean of 1 group)")
