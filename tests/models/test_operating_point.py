from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom, chisquare, norm

from kizu.models.operating_point import (
    OperatingPoint,
    choose_operating_point,
    draw_independent,
    median_size,
    required_ng,
    smallest_certifiable_fnr,
    umbrella_rank,
)


def tail(n: int, k: int, alpha: float) -> float:
    """P(Bin(n, α) ≤ k − 1), summed term by term."""
    return math.fsum(math.comb(n, j) * alpha**j * (1 - alpha) ** (n - j) for j in range(k))


def choose(ng: object, ok: object, **options: object) -> OperatingPoint:
    return choose_operating_point(ng, ok, **{"target_fnr": 0.05, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.05, 0.02, 0.01])
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_umbrella_rank_is_the_largest_that_the_exact_tail_allows(alpha: float, confidence: float) -> None:
    for n in [1, 2, 5, 13, 14, 28, 29, 58, 59, 60, 92, 93, 200, 299, 500]:
        k = umbrella_rank(n, alpha, confidence)
        assert k == 0 or tail(n, k, alpha) <= 1 - confidence
        assert tail(n, k + 1, alpha) > 1 - confidence


@given(st.integers(1, 5000), st.floats(1e-4, 0.5), st.sampled_from([0.8, 0.95, 0.99, 0.999]))
def test_umbrella_rank_against_binomial_tails_everywhere(n: int, alpha: float, confidence: float) -> None:
    k = umbrella_rank(n, alpha, confidence)
    assert k == 0 or binom.cdf(k - 1, n, alpha) <= 1 - confidence
    assert binom.cdf(k, n, alpha) > 1 - confidence


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 59), (0.01, 299), (0.001, 2995), (0.00018, 16642)])
def test_the_required_number_of_ng(alpha: float, n: int) -> None:
    assert required_ng(alpha, 0.95) == n
    assert umbrella_rank(n, alpha, 0.95) == 1
    assert umbrella_rank(n - 1, alpha, 0.95) == 0


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_what_n_ng_just_certify_needs_n_of_them(confidence: float) -> None:
    for n in range(1, 500):
        assert required_ng(smallest_certifiable_fnr(n, confidence), confidence) == n


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (3, 2), (5, 3)])
def test_a_tail_that_equals_the_allowed_probability_is_allowed(n: int, rank: int) -> None:
    assert tail(n, rank, 0.5) == 0.5
    assert umbrella_rank(n, 0.5, 0.5) == rank


def true_fnrs(rank: int, n: int, calibrations: int) -> NDArray[np.float64]:
    """True FNR of the rank-th smallest of n standard normal NG scores, over simulated calibrations."""
    rng = np.random.default_rng(20240817)
    fnrs = []
    for _ in range(calibrations):
        threshold = np.sort(rng.normal(size=n))[rank - 1]
        fnrs.append(0.5 * math.erfc(-threshold / math.sqrt(2)))
    return np.array(fnrs)


def test_the_certificate_holds_in_simulation() -> None:
    n, alpha, delta, calibrations = 500, 0.05, 0.05, 2000
    rng = np.random.default_rng(7)
    exceeded = 0
    for _ in range(calibrations):
        point = choose(rng.normal(2, 1, n), rng.normal(0, 1, 20), target_fnr=alpha, confidence=1 - delta)
        exceeded += 0.5 * math.erfc(-(point.threshold - 2) / math.sqrt(2)) > alpha
    share = exceeded / calibrations
    expected = float(binom.cdf(umbrella_rank(n, alpha, 1 - delta) - 1, n, alpha))
    error = math.sqrt(delta * (1 - delta) / calibrations)
    assert expected == pytest.approx(0.0343, abs=5e-4)
    assert share <= delta + 3 * error
    assert share == pytest.approx(expected, abs=4 * error)


def test_a_split_conformal_rank_would_break_the_certificate() -> None:
    n, alpha = 500, 0.05
    exceeded = np.mean(true_fnrs(math.floor(alpha * (n + 1)), n, 2000) > alpha)
    assert exceeded > 0.4


def test_enough_ng_are_certified() -> None:
    ng = np.arange(100, dtype=np.float32)
    point = choose(ng, [-1.0, 1.5, 50.0])
    assert point.certified
    assert point.basis == "certified"
    assert point.rank == umbrella_rank(100, 0.05, 0.95) == 2
    assert point.threshold == 1.0
    assert point.certified_fnr == 0.05
    assert (point.passed_ok, point.n_ok) == (1, 3)
    assert "Certified: with 95 % confidence the FNR is at most 5 %" in point.statement()


def test_too_few_ng_give_the_smallest_certifiable_fnr() -> None:
    point = choose([3.0, 1.0, 2.0], [0.0], target_fnr=0.01)
    assert not point.certified
    assert point.basis == "smallest-certifiable"
    assert (point.rank, point.threshold, point.required_ng) == (1, 1.0, 299)
    assert point.certified_fnr is not None
    assert point.certified_fnr == pytest.approx(1 - 0.05 ** (1 / 3))
    assert umbrella_rank(3, point.certified_fnr * (1 + 1e-9), 0.95) == 1
    assert umbrella_rank(3, point.certified_fnr * (1 - 1e-6), 0.95) == 0
    assert "Not certifiable at FNR 1 %" in point.statement()


def test_without_ng_the_fnr_is_unknown() -> None:
    ok = np.arange(1000, dtype=np.float32)
    point = choose([], ok, target_specificity=0.99)
    assert point.basis == "specificity"
    assert point.certified_fnr is None
    assert point.rank is None
    assert point.passed_ok == 990
    assert point.verdict(float(ok[989])) == "OK"
    assert point.verdict(float(ok[990])) == "NG"
    assert "FNR unknown" in point.statement()


@pytest.mark.parametrize(("share", "passed"), [(0.9, 9), (0.91, 10), (1.0, 10), (0.05, 1)])
def test_the_specificity_target_is_met_by_the_fewest_passed(share: float, passed: int) -> None:
    assert choose([], np.arange(10), target_specificity=share).passed_ok == passed


def test_a_tolerance_raises_a_specificity_threshold_where_there_is_room() -> None:
    """The threshold goes 4 tolerances above the highest score to pass, then keeps 1 from the value that it came to."""
    margin = 0.01 * 4.5  # of the median score
    point = choose([], np.arange(10), target_specificity=0.5, tolerance=0.01)
    assert point.passed_ok == 5
    assert point.threshold == pytest.approx(4 + 3 * margin)
    # No further than the next score, here 4.1.
    crowded = choose([], [0, 1, 2, 3, 4, 4.1, 6, 7, 8, 9], target_specificity=0.5, tolerance=0.01)
    assert crowded.passed_ok == 5
    assert crowded.threshold == pytest.approx(0.99 * 4.1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_tied_scores_never_miss_more_than_the_rank_allows(ng: list[int], ok: list[int]) -> None:
    point = choose(ng, ok, target_fnr=0.2, confidence=0.8, review_band=0.3)
    assert sum(point.verdict(score) != "NG" for score in ng) <= (point.rank or 0) - 1
    assert sum(point.verdict(score) != "NG" for score in ok) == point.passed_ok
    assert point.review_threshold <= point.threshold


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 NG calibration scores"):
        choose([1.0, bad], [0.0])
    with pytest.raises(ValueError, match="1 OK calibration scores"):
        choose([1.0], [0.0, bad])


@pytest.mark.parametrize(
    "options",
    [
        {"target_fnr": 0.0},
        {"target_fnr": 1.0},
        {"confidence": 1.0},
        {"confidence": 0.0},
        {"target_specificity": 0.0},
        {"target_specificity": 1.1},
        {"review_band": -0.1},
        {"review_band": 1.5},
        {"tolerance": -0.1},
    ],
)
def test_targets_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        choose([1.0], [0.0], **options)


def test_shares_that_floating_point_cannot_hold_are_not_off_by_one() -> None:
    ok = np.arange(100, dtype=np.float32)
    assert choose([], ok, target_specificity=0.07).passed_ok == 7
    assert choose([200.0], ok, review_band=0.29).review_threshold == 71.0


def test_no_scores_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="there are none"):
        choose([], [])


def test_the_review_band_holds_the_asked_share_of_ok() -> None:
    ok = np.arange(100, dtype=np.float32)
    point = choose(np.arange(90, 290, dtype=np.float32), ok, review_band=0.05)
    verdicts = [point.verdict(float(score)) for score in ok]
    assert verdicts.count("REVIEW") == 5
    assert verdicts.index("REVIEW") + 5 == verdicts.index("NG")
    assert choose([5.0], ok, review_band=0.0).review_threshold == choose([5.0], ok).threshold
    # Fewer OK below the threshold than the band asks for: all of them are reviewed.
    assert choose([2.0], ok, review_band=0.05).review_threshold == 0.0


def test_verdicts_at_the_very_boundary_in_float32() -> None:
    threshold, review = np.float32(0.1), np.float32(0.05)
    ng = np.full(60, threshold)
    point = choose(ng, [review, 0.01], review_band=0.5)
    assert point.verdict(float(threshold)) == "NG"
    assert point.verdict(np.nextafter(threshold, np.float32(0))) == "REVIEW"
    assert point.verdict(float(review)) == "REVIEW"
    assert point.verdict(np.nextafter(review, np.float32(0))) == "OK"
    assert point.verdict(math.nan) == "NG"
    assert OperatingPoint.model_validate_json(point.model_dump_json()).verdict(float(threshold)) == "NG"


def test_scores_are_compared_as_the_float32_that_they_are_stored_as() -> None:
    point = choose([0.1], [0.1])
    assert point.threshold == float(np.float32(0.1)) > 0.1
    assert point.passed_ok == 0


@given(st.floats(-1e6, 1e6, width=32), st.sampled_from([0.0, 1e-6, 1e-4]))
def test_a_tolerance_only_ever_lowers_the_threshold(score: float, tolerance: float) -> None:
    assert choose([score], [], tolerance=tolerance).threshold <= score


def test_logits_keep_their_distance_from_a_threshold_near_zero() -> None:
    ng = np.concatenate([np.array([1e-7, 2e-7], np.float32), np.linspace(1, 5, 98, dtype=np.float32)])
    ok = np.linspace(-5, -1, 100, dtype=np.float32)
    point = choose(ng, ok, target_fnr=0.05, tolerance=1e-4)
    nearest = np.abs(np.concatenate([ng, ok]) - np.float32(point.threshold)).min()
    assert nearest > 1e-4


def test_the_size_of_scores_is_the_median_of_their_magnitudes_and_0_of_none() -> None:
    assert median_size(np.array([-3, 1, 2], np.float32)) == 2.0
    assert median_size(np.array([], np.float32)) == 0.0


def test_the_statement_never_rounds_a_promise_up() -> None:
    few = choose(np.arange(300), [0.0], target_fnr=0.001, confidence=0.999)
    assert few.certified_fnr == pytest.approx(0.022762, abs=1e-6)
    assert "with 99.9 % confidence, is an FNR of at most 2.28 %" in few.statement()
    for n in range(1, 400):
        point = choose(np.arange(n), [0.0], target_fnr=1e-5)
        printed = float(point.statement().split("FNR of at most ")[1].split(" %")[0])
        assert printed >= 100 * smallest_certifiable_fnr(n, 0.95) - 1e-9


def board_scores(rng: np.random.Generator, boards: int, of_each: int, correlation: float) -> NDArray[np.float64]:
    """NG scores that are standard normal, and correlated within a board: shape [boards, of_each]."""
    common = rng.normal(size=(boards, 1))
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * rng.normal(size=(boards, of_each))


def chosen_by_board(scores: NDArray[np.float64], key: object, **options: object) -> OperatingPoint:
    boards = [f"board-{number}" for number in range(len(scores)) for _ in range(scores.shape[1])]
    return choose(scores.ravel(), [], ng_groups=boards, draw_key=f"{key}", **options)


@pytest.mark.parametrize(("boards", "of_each"), [(3, 100), (10, 30), (59, 5), (100, 4)])
def test_a_certificate_holds_on_new_boards_however_alike_the_parts_of_one_are(boards: int, of_each: int) -> None:
    rng, runs, exceeded = np.random.default_rng(4), 400, 0
    for run in range(runs):
        point = chosen_by_board(board_scores(rng, boards, of_each, 0.5), run)
        assert point.certified_fnr is not None
        assert point.certified == (boards >= 59)
        exceeded += norm.cdf(point.threshold) > point.certified_fnr
    assert exceeded / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_parts_of_the_groups_that_were_seen_have_a_certificate_of_their_own() -> None:
    rng, runs, exceeded = np.random.default_rng(5), 400, 0
    for run in range(runs):
        common = rng.normal(size=(4, 1))
        scores = common + rng.normal(size=(4, 50))
        point = chosen_by_board(scores, run, target_fnr=0.1)
        assert point.groups_only_fnr == 0.1
        exceeded += float(np.mean(norm.cdf(point.threshold - common))) > 0.1
    assert exceeded / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_one_ng_of_each_group_counts_and_each_without_a_group() -> None:
    scores = [5.0, 6.0, 7.0, 8.0, 1.0]
    point = choose(scores, [0.0], ng_groups=["a", "a", "b", "", ""])
    assert (point.n_ng, point.n_ng_groups, point.n_independent, point.independence) == (5, 2, 4, "groups")
    assert point.certified_fnr == smallest_certifiable_fnr(4, 0.95)
    assert point.groups_only_fnr == smallest_certifiable_fnr(5, 0.95)
    assert point.threshold == 1.0
    singles = choose(scores, [0.0], ng_groups=list("abcde"))
    assert (singles.n_independent, singles.independence, singles.groups_only_fnr) == (5, "groups", None)
    assert choose(scores, [0.0]).independence == "parts"
    with pytest.raises(ValueError, match="shorter"):
        choose(scores, [0.0], ng_groups=["a"])


def test_the_threshold_is_the_lower_of_the_order_statistics_of_groups_and_of_parts() -> None:
    scores, groups = [*range(100), *range(1000, 1059)], ["low"] * 100 + [f"{i}" for i in range(59)]
    drawn = draw_independent(scores, groups, "key")[0]
    point = choose(scores, [0.0], ng_groups=groups, draw_key="key")
    assert point.rank == umbrella_rank(60, 0.05, 0.95) == 1
    assert point.groups_only_rank == umbrella_rank(159, 0.05, 0.95) == 4
    assert point.threshold == 3.0 < drawn
    alike = chosen_by_board(np.repeat(np.arange(60.0)[:, None], 10, axis=1), "key")
    assert alike.groups_only_rank is not None
    assert alike.groups_only_rank > 10
    assert alike.threshold == 0.0


def test_the_draw_follows_from_the_data_alone() -> None:
    rng = np.random.default_rng(0)
    scores, groups = rng.normal(size=60).astype(np.float32), [f"g{i % 6}" for i in range(60)]
    order = rng.permutation(60)
    drawn = draw_independent(scores, groups, "data")
    assert (draw_independent(scores[order], [groups[i] for i in order], "data") == drawn).all()
    assert len({groups[int(np.flatnonzero(scores == score)[0])] for score in drawn}) == 6
    assert {tuple(draw_independent(scores, groups, f"{key}")) for key in range(20)} != {tuple(drawn)}


def test_every_ng_of_a_group_is_drawn_as_often() -> None:
    counts = Counter(float(draw_independent([1, 2, 3, 4], ["a"] * 4, f"{key}")[0]) for key in range(4000))
    assert sorted(counts) == [1, 2, 3, 4]
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_the_statement_speaks_of_new_parts_and_of_these_groups_apart() -> None:
    rng = np.random.default_rng(1)
    many = chosen_by_board(board_scores(rng, 60, 3, 0.5), "k")
    assert many.for_new_parts
    assert "Certified for new parts: with 95 % confidence the FNR is at most 5 %" in many.statement()
    assert "one drawn from each group" in many.statement()
    assert "For parts of these groups only, in the mixture seen here: at most 5 %" in many.statement()
    few = chosen_by_board(board_scores(rng, 3, 100, 0.5), "k")
    assert not few.for_new_parts
    assert "Not certifiable at FNR 5 % for new parts: that needs 59 groups" in few.statement()
    assert "an FNR of at most 63.2 %" in few.statement()
    assert "For parts of these groups only, in the mixture seen here: at most 5 %" in few.statement()


def test_the_statement_says_which_ng_were_looked_at() -> None:
    ng = np.arange(60)
    assert "also looked at while the model was designed" in choose(ng, [0.0]).statement()
    reserved = choose(ng, [0.0], certified_on="certification").statement()
    assert "nothing else has read them" in reserved
    assert "On 1 certification OK parts" in reserved
    assert "looked at" not in reserved
    assert "No group is known" in reserved
    assert "looked at" not in choose([], [0.0]).statement()


def test_a_threshold_passes_gaps_that_are_too_narrow_for_it() -> None:
    """A gap takes twice the tolerance, of the upper score or of the median if that is larger."""
    assert choose([2.0], [1.95, 0.0], tolerance=0.01).threshold == pytest.approx(2.0 - 0.01 * 2.0)
    assert choose([2.0], [1.99, 1.98, 0.0], tolerance=0.01).threshold == pytest.approx(1.98 - 0.01 * 1.985)
    assert choose([2.0], [1.99, 1.98], tolerance=0.01).threshold == pytest.approx(1.98 - 0.01 * 1.99)


def test_the_review_threshold_keeps_clear_of_scores_too() -> None:
    point = choose([10.0], np.arange(10), review_band=0.3, tolerance=0.01)
    assert point.threshold == pytest.approx(10 - 0.01 * 10)
    assert point.review_threshold == pytest.approx(7 - 0.01 * 7)
    without_band = choose([10.0], np.arange(10), tolerance=0.01)
    assert without_band.review_threshold == without_band.threshold


def test_a_threshold_among_scores_too_dense_for_any_gap_is_lowered_by_the_tolerance_alone() -> None:
    point = choose([2.0], np.linspace(1, 2, 20_000), tolerance=0.01)
    assert point.threshold == pytest.approx(0.99 * 2.0)


def test_a_threshold_keeps_clear_of_scores_that_it_does_not_rest_on() -> None:
    point = choose(np.linspace(1, 2, 60), [0.0], tolerance=1e-4)
    clear = choose(np.linspace(1, 2, 60), [0.0], tolerance=1e-4, other_scores=[point.threshold])
    assert clear.threshold < point.threshold
    assert clear.rank == point.rank


def test_a_point_from_before_groups_counted_speaks_as_it_did() -> None:
    text = OperatingPoint.model_validate(BEFORE_GROUPS).statement()
    assert text.startswith(
        "Certified: with 95 % confidence the FNR is at most 10 % (threshold = NG score number 2 of 48"
    )
    assert "came from only 12 groups; parts of one group resemble each other" in text
    assert "looked at" not in text
    assert not OperatingPoint.model_validate(BEFORE_GROUPS).for_new_parts
    of_48 = OperatingPoint.model_validate(BEFORE_GROUPS | {"n_ng_groups": 48})
    assert of_48.for_new_parts
    assert "groups" not in of_48.statement()


BEFORE_GROUPS = {
    "threshold": -2.5,
    "review_threshold": -2.8,
    "basis": "certified",
    "target_fnr": 0.1,
    "certified_fnr": 0.1,
    "confidence": 0.95,
    "rank": 2,
    "n_ng": 48,
    "n_ok": 180,
    "n_ng_groups": 12,
    "required_ng": 29,
    "passed_ok": 180,
}
