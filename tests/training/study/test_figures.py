from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from kizu.models.rates import Rate
from kizu.training.study.figures import figures_of


def write(path: Path, **scores: np.ndarray) -> Path:
    """Scores by `<set>_<label>`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "path", "label", "defect", "group", "score"])
        for name, values in scores.items():
            part, _, label = name.partition("_")
            writer.writerows(
                [part, f"{name}{i}.png", label.upper(), "", "", repr(float(v))] for i, v in enumerate(values)
            )
    return path


CALIBRATION = {"calibration_ng": np.arange(100, 300), "calibration_ok": np.arange(-50, 50)}


def test_thresholds_come_from_calibration_and_figures_from_test(tmp_path):
    # The tenth, second and lowest of 200 NG that may be missed leave 110, 102 and 100 as thresholds.
    test_ng, test_ok = np.array([90.0, 101, 105, 200, 300]), np.array([0.0, 50, 99, 100, 101, 102, 109, 110])
    figures = figures_of(write(tmp_path / "scores.csv", **CALIBRATION, test_ng=test_ng, test_ok=test_ok))
    told = [(at["threshold"], at["specificity"]["count"], at["fnr"]["count"]) for at in figures["at"]]
    assert told == [(110.0, 7, 3), (102.0, 5, 2), (100.0, 3, 1)]
    assert [at["resolution_limited"] for at in figures["at"]] == [False, False, True]
    assert figures["at"][0]["specificity"] == Rate(7, 8).as_dict()
    assert figures["at"][0]["fnr"] == Rate(3, 5).as_dict()


def test_test_scores_move_no_threshold_and_calibration_scores_no_ranking(tmp_path):
    rng = np.random.default_rng(0)
    test = {"test_ng": rng.normal(2, 1, 60), "test_ok": rng.normal(0, 1, 80)}
    first = figures_of(write(tmp_path / "a.csv", **CALIBRATION, **test))
    other_test = figures_of(
        write(tmp_path / "b.csv", **CALIBRATION, test_ng=test["test_ng"] + 5, test_ok=-test["test_ok"])
    )
    thresholds = [[at["threshold"] for at in figures["at"]] for figures in (first, other_test)]
    assert thresholds[0] == thresholds[1]
    shifted = {name: values + 7 for name, values in CALIBRATION.items()}
    other_calibration = figures_of(write(tmp_path / "c.csv", **shifted, **test))
    assert other_calibration["auroc"] == first["auroc"]
    assert [at["threshold"] for at in other_calibration["at"]] == [value + 7 for value in thresholds[0]]


def test_auroc_counts_pairs_of_the_test_split(tmp_path):
    ng, ok = np.array([1.0, 3, 5]), np.array([0.0, 2, 3, 4])
    figures = figures_of(write(tmp_path / "scores.csv", **CALIBRATION, test_ng=ng, test_ok=ok))
    pairs = (ng[:, None] > ok).mean() + 0.5 * (ng[:, None] == ok).mean()
    assert figures["auroc"]["value"] == pytest.approx(pairs)
