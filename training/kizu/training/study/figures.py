"""Figures of one training in the scarce study, from its scores.

Notable here:
- A threshold for FNR α is the highest that misses at most α of calibration's NG; with fewer than 1 / α of them it is
  the lowest score, and marked. What it gives on the test split is reported: specificity, and the FNR that came out.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kizu.models.rates import Rate
from kizu.training.data.manifest import NG, OK
from kizu.training.evaluation.detection import TARGET_FNRS, specificity_at_fnr
from kizu.training.evaluation.ranking import auroc

Floats = NDArray[np.float32]
Measure = Literal["auroc"] | float
"""AUROC, or specificity at the threshold for this target FNR."""
SETS = ("calibration", "test")
MEASURES: tuple[Measure, ...] = ("auroc", *TARGET_FNRS)
AIM = 0.01
"""Target FNR that arms are compared at first."""


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
    """Specificity and FNR of the test split at the threshold for a target FNR, which calibration fixes."""
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
