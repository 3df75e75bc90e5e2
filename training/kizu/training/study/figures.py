"""From scores to the figures of `kizu bench scarce`: each arm's, and what it gains over the arm without synthetic NG.

Notable here:
- A threshold for FNR α is the highest that misses at most α of calibration's NG; with fewer than 1 / α of them it is
  the lowest score, and marked. What it gives on the test split is reported: specificity, and the FNR that came out.
- A gain is a mean of differences paired by seed, with Student's interval over seeds: draws of data and of weights vary,
  the test split does not.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from kizu.models.rates import Rate
from kizu.training.data.manifest import NG, OK
from kizu.training.evaluation.detection import TARGET_FNRS, specificity_at_fnr
from kizu.training.evaluation.ranking import auroc
from kizu.training.study.arms import ALL, HALF, is_rival, placed_name

Floats = NDArray[np.float32]
SETS = ("calibration", "test")


def figures_of(scores: Path) -> dict[str, Any]:
    """AUROC, and specificity and FNR of the test split at thresholds from calibration; from a run's `scores.csv`."""
    held: dict[tuple[str, str], list[float]] = {}
    with scores.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            held.setdefault((line["set"], line["label"]), []).append(float(line["score"]))
    ng, ok = ({name: np.array(held.get((name, label), []), np.float32) for name in SETS} for label in (NG, OK))
    ranking = auroc(ng["test"], ok["test"])
    assert ranking is not None, "a test split without NG or OK is refused before training"
    return {
        "auroc": ranking.as_dict(),
        "at": [
            at_target(ng["calibration"], ok["calibration"], ng["test"], ok["test"], target) for target in TARGET_FNRS
        ],
    }


def at_target(
    calibration_ng: Floats, calibration_ok: Floats, test_ng: Floats, test_ok: Floats, target: float
) -> dict[str, Any]:
    """What the threshold for a target FNR, chosen on calibration, gives on the test split."""
    chosen = specificity_at_fnr(calibration_ng, calibration_ok, target)
    if chosen is None:
        raise ValueError("calibration needs OK and NG")
    threshold = np.float32(chosen.threshold)
    return {
        "target_fnr": target,
        "threshold": chosen.threshold,
        "resolution_limited": chosen.resolution_limited,
        "specificity": Rate(int((test_ok < threshold).sum()), test_ok.size).as_dict(),
        "fnr": Rate(int((test_ng < threshold).sum()), test_ng.size).as_dict(),
    }


def paired(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> dict[str, float | None]:
    """Mean of first − second with Student's two-sided interval over the pairs; None for bounds of a single pair."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean, n = float(differences.mean()), differences.size
    if n < 2:
        return {"value": mean, "lower": None, "upper": None}
    reach = float(student.ppf((1 + confidence) / 2, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return {"value": mean, "lower": mean - reach, "upper": mean + reach}


MEASURES = ("auroc", *TARGET_FNRS)
"""AUROC, and specificity at the threshold for each target FNR."""


def value_of(result: dict[str, Any], measure: str | float) -> float:
    """One figure of an arm's result."""
    if measure == "auroc":
        return float(result["figures"]["auroc"]["value"])
    return float(at_of(result, measure)["specificity"]["rate"])


def at_of(result: dict[str, Any], target: str | float) -> dict[str, Any]:
    """What an arm's result says of the threshold for a target FNR."""
    found: dict[str, Any] = next(at for at in result["figures"]["at"] if at["target_fnr"] == target)
    return found


def summary(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each arm, in order: mean and standard deviation of each measure over seeds, and gains.

    Gains are over the arm without synthetic NG on the same data; for arms with all of their NG, over `half` and `all`;
    for what draws without training, over the GAN's placed defects on the same data. All are paired by seed.
    """
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        arms.setdefault(result["arm"], {})[result["seed"]] = result
    return [_of_arm(name, runs, arms) for name, runs in arms.items()]


def _of_arm(name: str, runs: dict[int, dict[str, Any]], arms: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    first, seeds = next(iter(runs.values())), sorted(runs)
    entry: dict[str, Any] = {
        key: first[key] for key in ("arm", "against", "share", "ng_share", "n_ok", "n_ng", "synthetic_ng")
    }
    entry["seeds"] = seeds
    entry["seconds"] = statistics.fmean(run["seconds"]["total"] for run in runs.values())
    entry["interrupted"] = any(run["interrupted"] for run in runs.values())
    entry["measures"], entry["gains"], entry["at"] = {}, {}, {}
    others = [first["against"], *([HALF, ALL] if first["ng_share"] == 1.0 else [])]
    if is_rival(name, first["against"]):
        others.append(placed_name(first["against"]))
    for measure in MEASURES:
        values = [value_of(runs[seed], measure) for seed in seeds]
        spread = statistics.stdev(values) if len(values) > 1 else None
        entry["measures"][str(measure)] = {"mean": statistics.fmean(values), "spread": spread, "values": values}
        if measure != "auroc":
            entry["at"][str(measure)] = _at([at_of(runs[seed], measure) for seed in seeds])
        for other in dict.fromkeys(others):
            shared = sorted(set(runs) & set(arms.get(other, {}))) if other not in (None, name) else []
            if shared:
                mine, theirs = ([value_of(of[seed], measure) for seed in shared] for of in (runs, arms[other]))
                entry["gains"].setdefault(other, {})[str(measure)] = paired(mine, theirs)
    return entry


def _at(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: the outermost bounds of specificity and FNR, the mean FNR, and whether calibration resolved it."""
    entry: dict[str, Any] = {"resolution_limited": any(at["resolution_limited"] for at in found)}
    for rate in ("specificity", "fnr"):
        entry[rate] = {
            "mean": statistics.fmean(at[rate]["rate"] for at in found),
            "lower": min(at[rate]["lower"] for at in found),
            "upper": max(at[rate]["upper"] for at in found),
        }
    return entry
