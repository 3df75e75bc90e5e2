"""Figures of the trials: AUROC with intervals, paired differences, ratios of time. Plain data out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from benchmarks.ganomaly_timing import TIMED_BATCHES
from benchmarks.ganomaly_trials import IMAGENET, KIZU, TANH, Trial
from kizu.training.evaluation.ranking import auroc

CONTENDERS = (
    ("Kizu, score latent (published)", KIZU, "latent"),
    ("Kizu, score peak", KIZU, "peak"),
    ("anomalib as it ships", IMAGENET, "latent"),
    ("anomalib, pixels in [−1, 1]", TANH, "latent"),
)
"""(name in the report, arm, score)."""
HEADLINE = CONTENDERS[0][0]


@dataclass(frozen=True)
class Difference:
    """AUROC of one score less that of another on the same images, with its two-sided interval."""

    value: float
    lower: float
    upper: float

    def as_dict(self) -> dict[str, float]:
        """JSON-able form."""
        return {"value": self.value, "lower": self.lower, "upper": self.upper}


def paired_difference(
    first: ArrayLike, second: ArrayLike, labels: ArrayLike, confidence: float = 0.95
) -> Difference | None:
    """AUROC(first) − AUROC(second) of two scores of the same images; None with fewer than two NG or two OK.

    DeLong, DeLong & Clarke-Pearson, Biometrics 44 (1988): the variance of the difference from the differences of the
    two scores' structural components, which keeps what they share out of the interval.
    """
    ng = np.asarray(labels) == 1
    if ng.sum() < 2 or (~ng).sum() < 2:
        return None
    first_ng, first_ok = _components(np.asarray(first, dtype=np.float64), ng)
    second_ng, second_ok = _components(np.asarray(second, dtype=np.float64), ng)
    in_ng, in_ok = first_ng - second_ng, first_ok - second_ok
    value = float(in_ng.mean())
    spread = float(norm.ppf((1 + confidence) / 2)) * math.sqrt(
        in_ng.var(ddof=1) / in_ng.size + in_ok.var(ddof=1) / in_ok.size
    )
    return Difference(value, max(-1.0, value - spread), min(1.0, value + spread))


def compare(trials: Sequence[Trial], labels: Sequence[int]) -> dict[str, Any]:
    """Every figure of the report, JSON-able.

    Args:
        trials: every arm at least once, each with the same seeds.
        labels: of the test images, 1 is NG.
    """
    arms = {arm: sorted((t for t in trials if t.arm == arm), key=lambda t: t.seed) for arm in (KIZU, IMAGENET, TANH)}
    present = [(name, arm, score) for name, arm, score in CONTENDERS if arms[arm]]
    detection = [_detection(name, arms[arm], score, labels) for name, arm, score in present]
    differences = [
        _difference(ours, theirs, arms, labels)
        for ours in present
        for theirs in present
        if ours[1] == KIZU and theirs[1] != KIZU
    ]
    training = [_training(arm, runs) for arm, runs in arms.items() if runs]
    scoring = [entry for arm, runs in arms.items() if runs for entry in _scoring(arm, runs)]
    return {
        "detection": detection,
        "differences": differences,
        "training": training,
        "scoring": scoring,
        "headline": _headline(detection, differences, training, scoring),
        "remarks": {arm: [list(t.remarks) for t in runs] for arm, runs in arms.items() if runs},
    }


def _components(scores: NDArray[np.float64], ng: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Structural components of AUROC: for each NG the share of OK below it, for each OK that of NG above it."""
    x, y = scores[ng], scores[~ng]
    pooled = rankdata(np.concatenate([x, y]))
    return (pooled[: x.size] - rankdata(x)) / y.size, 1 - (pooled[x.size :] - rankdata(y)) / x.size


def _detection(name: str, runs: Sequence[Trial], score: str, labels: Sequence[int]) -> dict[str, Any]:
    truth = np.asarray(labels)
    per_seed = []
    for trial in runs:
        scores = np.asarray(trial.scores[score])
        estimate = auroc(scores[truth == 1], scores[truth == 0])
        assert estimate is not None, "a test split without NG or OK is refused before training"
        per_seed.append({"seed": trial.seed, **estimate.as_dict()})
    return {"name": name, "auroc": per_seed, "mean": statistics.fmean(entry["value"] for entry in per_seed)}


def _difference(
    ours: tuple[str, str, str], theirs: tuple[str, str, str], arms: dict[str, list[Trial]], labels: Sequence[int]
) -> dict[str, Any]:
    per_seed = []
    for a, b in zip(arms[ours[1]], arms[theirs[1]], strict=True):
        found = paired_difference(a.scores[ours[2]], b.scores[theirs[2]], labels)
        if found is not None:
            per_seed.append({"seed": a.seed, **found.as_dict()})
    mean = statistics.fmean(entry["value"] for entry in per_seed) if per_seed else None
    return {"ours": ours[0], "theirs": theirs[0], "auroc": per_seed, "mean": mean}


def _training(arm: str, runs: Sequence[Trial]) -> dict[str, Any]:
    return {
        "name": arm,
        "train_seconds": [t.train_seconds for t in runs],
        "total_seconds": [t.total_seconds for t in runs],
        "loading_seconds": [t.loading_seconds for t in runs],
        "mean_train_seconds": statistics.fmean(t.train_seconds for t in runs),
        "mean_total_seconds": statistics.fmean(t.total_seconds for t in runs),
        "mean_loading_seconds": statistics.fmean(t.loading_seconds for t in runs),
        "updates": runs[0].updates,
        "parameters": runs[0].parameters,
    }


def _scoring(arm: str, runs: Sequence[Trial]) -> list[dict[str, Any]]:
    found = []
    for what in runs[0].throughput:
        for size in TIMED_BATCHES:
            rates = [t.throughput[what][size] for t in runs if size in t.throughput.get(what, {})]
            if rates:
                found.append(
                    {
                        "arm": arm,
                        "what": what,
                        "batch": size,
                        "images_per_second": rates,
                        "median": statistics.median(rates),
                    }
                )
    return found


def _headline(
    detection: list[dict[str, Any]],
    differences: list[dict[str, Any]],
    training: list[dict[str, Any]],
    scoring: list[dict[str, Any]],
) -> dict[str, Any]:
    """Kizu's published score against the better of anomalib's two, and the fastest of anomalib's for time."""
    best = max((d for d in detection if not d["name"].startswith("Kizu")), key=lambda d: d["mean"])
    pair = next(d for d in differences if d["ours"] == HEADLINE and d["theirs"] == best["name"])
    ours = next(t for t in training if t["name"] == KIZU)
    theirs = [t for t in training if t["name"] != KIZU]
    ratios: dict[str, float] = {}
    for size in TIMED_BATCHES:
        mine = [
            s["median"] for s in scoring if s["arm"] == KIZU and s["what"].startswith("ONNX") and s["batch"] == size
        ]
        network = [
            s["median"] for s in scoring if s["arm"] != KIZU and s["what"].startswith("net") and s["batch"] == size
        ]
        other = [
            s["median"] for s in scoring if s["arm"] != KIZU and s["what"].startswith("ONNX") and s["batch"] == size
        ]
        if mine and network:
            ratios[f"batch {size}, against its network in torch"] = mine[0] / max(network)
        if mine and other:
            ratios[f"batch {size}, against its ONNX with preprocessing"] = mine[0] / max(other)
    return {
        "ours": HEADLINE,
        "best_peer": best["name"],
        "kizu_auroc": next(d for d in detection if d["name"] == HEADLINE)["mean"],
        "peer_auroc": best["mean"],
        "auroc_difference": pair["mean"],
        "training_speedup": min(t["mean_train_seconds"] for t in theirs) / ours["mean_train_seconds"],
        "training_speedup_with_preparation": min(t["mean_total_seconds"] for t in theirs) / ours["mean_total_seconds"],
        "scoring_speedup": ratios,
    }
