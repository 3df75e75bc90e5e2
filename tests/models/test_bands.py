from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import betaincinv

from kizu.models import bands
from kizu.models.bands import joint_probability, simultaneous_interval, simultaneous_upper


def exact_probability(bounds: list[Fraction]) -> Fraction:
    """P(U₍ᵢ₎ ≤ bᵢ for all i) in fractions, by the first rank that fails (Bolshev's recursion)."""
    found = [Fraction(1)]
    for n in range(1, len(bounds) + 1):
        failing = (math.comb(n, i) * (1 - bounds[i]) ** (n - i) * found[i] for i in range(n))
        found.append(1 - sum(failing, Fraction(0)))
    return found[-1]


def all_ranks(n: int) -> NDArray[np.int64]:
    return np.arange(1, n + 1)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 60])
def test_the_joint_probability_is_that_of_exact_fractions(n: int) -> None:
    bounds = np.asarray(betaincinv(all_ranks(n), n + 1 - all_ranks(n), 0.99), dtype=np.float64)
    expected = exact_probability([Fraction(float(bound)) for bound in bounds])
    assert joint_probability(all_ranks(n), bounds, n) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("n", [1, 7, 100, 3000])
@pytest.mark.parametrize("slope", [0.05, 0.3, 0.9])
def test_the_joint_probability_of_a_line_is_that_of_daniels_theorem(n: int, slope: float) -> None:
    bounds = 1 - slope * (n + 1 - all_ranks(n)) / n
    assert joint_probability(all_ranks(n), bounds, n) == pytest.approx(1 - slope, rel=1e-10)


def test_a_rank_without_a_bound_takes_no_part() -> None:
    assert joint_probability(np.array([2]), np.array([0.6]), 2) == pytest.approx(0.36, rel=1e-12)
    assert joint_probability(np.array([1]), np.array([0.6]), 2) == pytest.approx(1 - 0.4**2, rel=1e-12)
    assert joint_probability(np.array([1, 2]), np.array([0.0, 1.0]), 2) == 0.0


@pytest.mark.parametrize(("n", "confidence"), [(1, 0.95), (2, 0.8), (59, 0.95), (300, 0.99)])
def test_the_bounds_hold_together_at_the_confidence_and_are_no_wider_than_that(n: int, confidence: float) -> None:
    bounds = simultaneous_upper(n, confidence)
    assert bounds.shape == (n + 1,)
    assert (np.diff(bounds) > 0).all()
    assert bounds[-1] == 1.0
    held = joint_probability(all_ranks(n), bounds[:-1], n)
    assert confidence - 1e-12 <= held <= confidence + 1e-6


def test_one_score_gives_the_bound_of_a_single_order_statistic() -> None:
    assert simultaneous_upper(1, 0.95).tolist() == pytest.approx([0.95, 1.0])
    assert simultaneous_upper(0, 0.95).tolist() == [1.0]


def test_the_band_is_wider_than_one_bound_and_narrower_than_kolmogorovs_at_low_rates() -> None:
    for n in (60, 300, 1000):
        band, ranks = simultaneous_upper(n, 0.95)[:n], all_ranks(n)
        assert (band > betaincinv(ranks, n + 1 - ranks, 0.95)).all()
        low = ranks <= n // 20
        kolmogorov = (ranks - 1) / n + math.sqrt(math.log(20) / (2 * n))
        assert (band[low] < kolmogorov[low]).all()


def test_bounds_on_some_of_the_ranks_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 2500
    sparse = simultaneous_upper(n, 0.95)
    monkeypatch.setattr(bands, "_ALL_RANKS", n)
    dense = simultaneous_upper.__wrapped__(n, 0.95)
    assert len(bands._ranks(n)) == n
    assert (sparse <= dense * 1.03).all()
    assert joint_probability(all_ranks(n), sparse[:-1], n) >= 0.95


def test_the_band_covers_the_whole_distribution_function_as_often_as_it_says() -> None:
    n, runs = 80, 2000
    rng = np.random.default_rng(1)
    truth = np.sort(rng.random((runs, n)), axis=1)  # a uniform score's distribution function is the score
    held = (truth <= simultaneous_upper(n, 0.9)[:n]).all(axis=1).mean()
    assert held == pytest.approx(0.9, abs=3 * math.sqrt(0.09 / runs))
    low, high = np.array([simultaneous_interval(n, count, 0.9) for count in range(n + 1)]).T
    assert ((truth >= low[1:]) & (truth <= high[:-1])).all(axis=1).mean() >= 0.9 - 3 * math.sqrt(0.09 / runs)


def test_an_interval_of_nothing_is_everything_and_of_all_is_mirrored() -> None:
    assert simultaneous_interval(0, 0, 0.95) == (0.0, 1.0)
    low, high = simultaneous_interval(50, 3, 0.95)
    assert simultaneous_interval(50, 47, 0.95) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("n", "confidence"), [(-1, 0.95), (5, 0.0), (5, 1.0)])
def test_arguments_out_of_range(n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="a band needs"):
        simultaneous_upper(n, confidence)
