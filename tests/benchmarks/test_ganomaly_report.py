"""From trials to figures and reports, on trials made by hand."""

import json

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from benchmarks.ganomaly_figures import Difference, compare, paired_difference
from benchmarks.ganomaly_report import headline, render_markdown, tables
from benchmarks.ganomaly_trials import ARMS, IMAGENET, KIZU, TANH, Trial, schedule
from kizu.training.evaluation.ranking import auroc
from kizu.training.study.environment import current_environment

LABELS = [0] * 30 + [1] * 20


def trial(arm: str, seed: int, shift: float, seconds: float, rate: float = 100.0) -> Trial:
    rng = np.random.default_rng([seed, ARMS.index(arm)])
    scores = {
        name: (rng.normal(size=50) + shift * np.array(LABELS)).tolist()
        for name in (("latent", "peak") if arm == KIZU else ("latent",))
    }
    return Trial(
        arm=arm,
        seed=seed,
        scores=scores,
        train_seconds=seconds,
        total_seconds=seconds + 1,
        loading_seconds=0.5,
        updates=28,
        parameters=4_000_000,
        throughput={
            "network in torch": {32: rate, 1: rate / 4},
            "ONNX with preprocessing": {32: 2 * rate, 1: rate / 2},
        },
        versions={} if arm == KIZU else {"anomalib": "2.7.0"},
        remarks=() if arm == KIZU else ("the whole process took 9 s",),
    )


def result(figures):
    return {
        "command": "python -m benchmarks.ganomaly cells --size 64",
        "environment": current_environment().as_dict(),
        "peer_versions": {"anomalib": "2.7.0"},
        "dataset": {"name": "cells", "counts": {"test": {"OK": 30, "NG": 20}}, "split_fingerprint": "ab" * 32},
        "settings": {"size": 64, "epochs": 2},
        "figures": figures,
    }


def test_trials_take_turns_and_every_other_round_is_reversed():
    order = schedule(5, 3)
    assert order[:3] == [(5, arm) for arm in ARMS]
    assert order[3:6] == [(6, arm) for arm in reversed(ARMS)]
    assert sorted(order) == sorted((5 + i, arm) for i in range(3) for arm in ARMS)
    sides = [arm == KIZU for _, arm in order]
    assert sides.count(True) == 3
    assert not any(sides[i] and sides[i + 1] for i in range(2))


def test_figures_compare_the_published_score_with_the_better_of_the_two_peers():
    trials = [trial(KIZU, s, 2.0, 10) for s in (0, 1)]
    trials += [trial(IMAGENET, s, 0.5, 30) for s in (0, 1)] + [trial(TANH, s, 1.0, 20) for s in (0, 1)]
    figures = compare(trials, LABELS)
    found = figures["headline"]
    assert found["best_peer"] == "anomalib, pixels in [−1, 1]"
    assert found["training_speedup"] == pytest.approx(2.0)
    assert found["training_speedup_with_preparation"] == pytest.approx(21 / 11)
    assert found["scoring_speedup"]["batch 32, against its network in torch"] == pytest.approx(2.0)
    assert found["scoring_speedup"]["batch 1, against its ONNX with preprocessing"] == pytest.approx(1.0)
    means = {entry["name"]: entry["mean"] for entry in figures["detection"]}
    assert found["auroc_difference"] == pytest.approx(found["kizu_auroc"] - means[found["best_peer"]])
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_losing_is_said():
    trials = [trial(KIZU, 0, 0.0, 50, rate=10), trial(IMAGENET, 0, 3.0, 10), trial(TANH, 0, 3.0, 10)]
    text = "\n".join(headline(compare(trials, LABELS)))
    assert "LOWER" in text
    assert text.count("SLOWER") == 6


def test_report_has_every_figure_and_no_path():
    figures = compare([trial(KIZU, 0, 2, 10), trial(IMAGENET, 0, 1, 30), trial(TANH, 0, 1, 20)], LABELS)
    text = render_markdown(result(figures), ["- a note"])
    for wanted in (
        "python -m benchmarks.ganomaly cells --size 64",
        "Load average",
        "anomalib 2.7.0",
        "30 OK, 20 NG",
        "- a note",
        "the whole process took 9 s",
        f"{figures['headline']['kizu_auroc']:.4f}",
    ):
        assert wanted in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines if "updates" in line or line.startswith("| Kizu |")}) == 1
    assert len(tables(figures)) == 4


def difference(first: ArrayLike, second: ArrayLike) -> Difference:
    found = paired_difference(first, second, LABELS)
    assert found is not None
    return found


def auroc_of(scores: NDArray[np.float64]) -> float:
    labels = np.array(LABELS)
    found = auroc(scores[labels == 1], scores[labels == 0])
    assert found is not None
    return found.value


def test_paired_difference_is_that_of_the_two_aurocs_and_tighter_for_scores_that_agree():
    rng = np.random.default_rng(3)
    labels = np.array(LABELS)
    first = rng.normal(size=50) + labels
    alike, apart = first + 0.05 * rng.normal(size=50), rng.normal(size=50) + labels
    for second in (alike, apart):
        assert difference(first, second).value == pytest.approx(auroc_of(first) - auroc_of(second))
    near, far = difference(first, alike), difference(first, apart)
    assert near.upper - near.lower < (far.upper - far.lower) / 2
    same = difference(first, first)
    assert (same.value, same.lower, same.upper) == (0, 0, 0)
    assert paired_difference([1.0, 2.0], [1.0, 2.0], [0, 1]) is None


def test_paired_interval_covers_the_true_difference():
    """Two scores of equal skill that share most of their noise: the interval holds 0 in about 95 % of samples."""
    rng = np.random.default_rng(11)
    labels = np.array([0] * 80 + [1] * 60)
    covered = 0
    for _ in range(400):
        shared = rng.normal(size=140) + labels
        found = paired_difference(shared + 0.7 * rng.normal(size=140), shared + 0.7 * rng.normal(size=140), labels)
        assert found is not None
        covered += found.lower <= 0 <= found.upper
    assert 0.91 <= covered / 400 <= 0.985
