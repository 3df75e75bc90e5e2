from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from kizu.training.evaluation.ranking import RESAMPLES, auroc, average_precision, delong

few_levels = st.lists(st.integers(0, 4).map(float), min_size=1, max_size=15)


def kernel(ng: NDArray[np.float64], ok: NDArray[np.float64]) -> NDArray[np.float64]:
    """ψ(x, y): 1 where an NG outscores an OK, ½ where they tie."""
    return (ng[:, None] > ok[None]) + 0.5 * (ng[:, None] == ok[None])


def direct_average_precision(ng: list[float], ok: list[float]) -> float:
    total, caught_before = 0.0, 0
    for threshold in sorted({*ng, *ok}, reverse=True):
        caught = sum(score >= threshold for score in ng)
        flagged = caught + sum(score >= threshold for score in ok)
        total += (caught - caught_before) / len(ng) * caught / flagged
        caught_before = caught
    return total


@given(few_levels, few_levels)
def test_auroc_and_variance_by_their_definitions_with_ties(ng: list[float], ok: list[float]) -> None:
    x, y = np.array(ng), np.array(ok)
    psi = kernel(x, y)
    value, variance = delong(x, y)
    assert value == pytest.approx(psi.mean(), abs=1e-12)
    if len(ng) < 2 or len(ok) < 2 or psi.mean() in (0, 1):
        assert variance is None
    else:
        expected = psi.mean(axis=1).var(ddof=1) / len(ng) + psi.mean(axis=0).var(ddof=1) / len(ok)
        assert variance == pytest.approx(expected, abs=1e-12)


def test_delong_variance_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, 60), rng.normal(0, 1, 90)
    psi = kernel(x, y)
    draws = [psi[np.ix_(rng.integers(0, 60, 60), rng.integers(0, 90, 90))].mean() for _ in range(2000)]
    _, variance = delong(x, y)
    assert variance is not None
    assert variance == pytest.approx(np.var(draws), rel=0.12)


@pytest.mark.parametrize(("shift", "m", "n"), [(1.0, 40, 60), (2.3, 60, 200)])
def test_the_auroc_interval_covers_as_often_as_it_says(shift: float, m: int, n: int) -> None:
    rng = np.random.default_rng(2)
    truth = norm.cdf(shift / np.sqrt(2))
    covered = 0
    for _ in range(1000):
        estimate = auroc(rng.normal(shift, 1, m), rng.normal(0, 1, n))
        assert estimate is not None
        covered += estimate.lower <= truth <= estimate.upper
    assert 0.93 <= covered / 1000 <= 0.985


def test_under_perfect_separation_the_auroc_interval_still_covers() -> None:
    rng = np.random.default_rng(3)
    shift, m, n = 3.2, 8, 12
    truth = norm.cdf(shift / np.sqrt(2))
    perfect = covered = 0
    for _ in range(400):
        estimate = auroc(rng.normal(shift, 1, m), rng.normal(0, 1, n))
        assert estimate is not None
        if estimate.value == 1:
            perfect += 1
            covered += estimate.lower <= truth <= estimate.upper
    assert perfect > 100
    assert covered == perfect


def test_perfect_separation_is_bounded_as_min_m_n_independent_pairs() -> None:
    estimate = auroc(range(10, 30), range(10))
    assert estimate is not None
    assert (estimate.value, estimate.upper) == (1.0, 1.0)
    assert estimate.lower == pytest.approx(0.025 ** (1 / 10))
    assert estimate.method.startswith("Hoeffding")
    mirrored = auroc(range(10), range(10, 30))
    assert mirrored is not None
    assert (mirrored.lower, mirrored.upper) == pytest.approx((0.0, 1 - 0.025 ** (1 / 10)))


@given(few_levels, few_levels, st.sampled_from([0.8, 0.95, 0.99]))
def test_every_interval_stays_in_range_and_holds_its_value(ng: list[float], ok: list[float], confidence: float) -> None:
    for estimate in (auroc(ng, ok, confidence), average_precision(ng, ok, confidence)):
        assert estimate is not None
        assert 0 <= estimate.lower <= estimate.value <= estimate.upper <= 1
        # Fifteen images of each kind can never make anyone sure.
        assert estimate.upper > estimate.lower


@settings(max_examples=50)
@given(few_levels, few_levels)
def test_average_precision_by_its_definition_with_ties(ng: list[float], ok: list[float]) -> None:
    estimate = average_precision(ng, ok)
    assert estimate is not None
    assert estimate.value == pytest.approx(direct_average_precision(ng, ok), abs=1e-12)


def test_the_bootstrap_is_stratified_seeded_and_covers() -> None:
    rng = np.random.default_rng(4)
    ng, ok = rng.normal(1.5, 1, 25), rng.normal(0, 1, 60)
    first = average_precision(ng, ok)
    assert first == average_precision(ng, ok)
    assert first != average_precision(ng, ok, seed=1)
    draws = [
        direct_average_precision(list(rng.choice(ng, ng.size)), list(rng.choice(ok, ok.size))) for _ in range(RESAMPLES)
    ]
    assert first is not None
    assert (first.lower, first.upper) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


def test_resampling_in_blocks_changes_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    ng, ok = rng.normal(1.5, 1, 25), rng.normal(0, 1, 60)
    whole = average_precision(ng, ok)
    monkeypatch.setattr("kizu.training.evaluation.ranking._BLOCK", 85 * 30)
    blocks = average_precision(ng, ok)
    assert whole is not None
    assert blocks is not None
    assert (blocks.lower, blocks.upper) == pytest.approx((whole.lower, whole.upper), abs=0.03)


def test_perfect_average_precision_gets_a_lower_bound_that_covers() -> None:
    rng = np.random.default_rng(6)
    shift, m, n = 3.5, 10, 20
    # Average precision of the population at this share of NG.
    thresholds = np.linspace(8, -5, 20001)
    recall, false = norm.sf(thresholds, shift), norm.sf(thresholds)
    precision = m * recall / (m * recall + n * false)
    truth = float(np.trapezoid(precision, recall))
    perfect = covered = 0
    for _ in range(400):
        ng, ok = rng.normal(shift, 1, m), rng.normal(0, 1, n)
        if ng.min() > ok.max():
            estimate = average_precision(ng, ok)
            assert estimate is not None
            perfect += 1
            covered += estimate.lower <= truth <= estimate.upper
    assert perfect > 100
    assert covered == perfect


def test_one_label_alone_has_no_ranking() -> None:
    assert auroc([], [1.0]) is None
    assert auroc([1.0], []) is None
    assert average_precision([], [1.0]) is None
    assert average_precision([1.0], []) is None


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        auroc([np.nan], [0.0])
