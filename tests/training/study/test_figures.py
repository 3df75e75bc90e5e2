from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from kizu.models.rates import Rate
from kizu.training.study.figures import MEASURES, at_of, figures_of, paired, summary, value_of


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


def test_a_paired_gain_is_the_mean_difference_with_students_interval():
    first, second = [0.9, 0.8, 0.95], [0.85, 0.8, 0.8]
    gain = paired(first, second)
    mean, deviation = 0.2 / 3, np.std([0.05, 0.0, 0.15], ddof=1)
    reach = student.ppf(0.975, 2) * deviation / 3**0.5
    assert gain == pytest.approx({"value": mean, "lower": mean - reach, "upper": mean + reach})


def test_the_interval_covers_the_true_gain_as_often_as_it_says():
    rng = np.random.default_rng(1)
    shared = rng.normal(0.8, 0.1, (3000, 5))  # what a seed does to both arms alike
    first, second = shared + rng.normal(0.03, 0.02, (3000, 5)), shared + rng.normal(0, 0.01, (3000, 5))
    gains = [paired(a, b) for a, b in zip(first, second, strict=True)]
    covered = np.mean([gain["lower"] <= 0.03 <= gain["upper"] for gain in gains])
    assert covered == pytest.approx(0.95, abs=0.016)  # four standard errors


def test_one_pair_has_no_interval():
    assert paired([0.9], [0.8]) == {"value": pytest.approx(0.1), "lower": None, "upper": None}


def result(arm: str, seed: int, value: float, against: str | None = "half", ng_share: float = 1.0):
    at = [
        {
            "target_fnr": target,
            "threshold": 0.0,
            "resolution_limited": target == 0.001 and seed == 1,
            "specificity": Rate(round(1000 * value), 1000).as_dict(),
            "fnr": Rate(10 * seed, 1000).as_dict(),
        }
        for target in MEASURES
        if target != "auroc"
    ]
    return {
        "arm": arm,
        "seed": seed,
        "against": against,
        "share": 0.5,
        "ng_share": ng_share,
        "n_ok": 50,
        "n_ng": 20,
        "synthetic_ng": 0,
        "seconds": {"total": 10.0 * (seed + 1)},
        "interrupted": seed == 2,
        "figures": {"auroc": {"value": value}, "at": at},
    }


def test_a_summary_pairs_by_seed_and_not_by_place():
    results = [result("half", seed, 0.5 + 0.1 * seed, None) for seed in (0, 1, 2)]
    results += [result("half + x", seed, 0.6 + 0.1 * seed) for seed in (2, 0, 1)]
    half, other = summary(results)
    assert half["gains"] == {}
    gain = other["gains"]["half"]["auroc"]
    assert (gain["value"], gain["lower"], gain["upper"]) == pytest.approx((0.1, 0.1, 0.1))
    assert other["seeds"] == [0, 1, 2]
    assert other["measures"]["auroc"]["values"] == pytest.approx([0.6, 0.7, 0.8])
    assert other["measures"]["auroc"]["spread"] == pytest.approx(0.1)
    assert other["seconds"] == 20
    assert other["interrupted"]


def test_a_summary_holds_only_seeds_together_that_both_arms_ran():
    results = [result("half", seed, 0.5, None) for seed in (0, 1)] + [result("half + x", seed, 0.6) for seed in (1, 2)]
    gain = summary(results)[1]["gains"]["half"]["auroc"]
    assert gain == {"value": pytest.approx(0.1), "lower": None, "upper": None}


def test_bounds_of_an_arm_are_the_outermost_of_its_seeds():
    arm = summary([result("half", seed, value, None) for seed, value in ((0, 0.5), (1, 0.9))])[0]
    at = arm["at"]["0.001"]
    assert at["specificity"]["lower"] == Rate(500, 1000).lower
    assert at["specificity"]["upper"] == Rate(900, 1000).upper
    assert at["fnr"]["mean"] == 0.005
    assert at["resolution_limited"]
    assert not arm["at"]["0.01"]["resolution_limited"]


def test_an_arm_of_the_curve_is_held_against_its_own_plain_arm_alone():
    results = [result("half", 0, 0.5, None), result("all", 0, 0.7)]
    results += [
        result("5 % of the NG", 0, 0.3, None, 0.05),
        result("5 % of the NG + GAN", 0, 0.4, "5 % of the NG", 0.05),
    ]
    by_name = {arm["arm"]: arm for arm in summary(results)}
    assert list(by_name["5 % of the NG + GAN"]["gains"]) == ["5 % of the NG"]
    assert by_name["5 % of the NG"]["gains"] == {}
    assert list(by_name["all"]["gains"]) == ["half"]


def test_a_figure_is_found_by_its_target():
    found = result("half", 3, 0.4)
    assert value_of(found, "auroc") == 0.4
    assert value_of(found, 0.01) == 0.4
    assert at_of(found, 0.05)["fnr"]["count"] == 30
