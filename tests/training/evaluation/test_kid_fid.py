from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kizu.training.evaluation import kid_fid
from kizu.training.evaluation.kid_fid import (
    compare_images,
    fid,
    kid,
    nearest_training_distance,
    precision_recall,
    real_floor,
)

Floats = NDArray[np.float64]


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape)


def kernel(x: Floats, y: Floats) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def direct_kid(x: Floats, y: Floats) -> float:
    m, n = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (7, 7), (5, 12)])
def test_kid_by_its_definition(m: int, n: int) -> None:
    x, y = normal(1, m, 6), normal(2, n, 6) + 0.3
    estimate = kid(x, y, seed=0)
    assert estimate.value == pytest.approx(direct_kid(x, y), rel=1e-10)
    assert estimate.lower <= estimate.value <= estimate.upper
    assert estimate == kid(torch.from_numpy(x), torch.from_numpy(y), seed=0)


def test_kid_is_unbiased_and_goes_negative() -> None:
    values = np.array([kid(normal(2 * i, 12, 5), normal(2 * i + 1, 20, 5), seed=0).value for i in range(250)])
    assert abs(values.mean()) < 3.5 * values.std() / np.sqrt(len(values))
    assert 0.3 < (values < 0).mean() < 0.75


@pytest.mark.parametrize(
    ("shift", "scale", "least", "most"), [(0.0, 1.0, 0.95, 1.0), (0.3, 1.0, 0.92, 1.0), (0, 1.6, 0.92, 1)]
)
def test_the_kid_interval_covers_as_often_as_it_says(shift: float, scale: float, least: float, most: float) -> None:
    d, m = 8, 30
    wide = [normal(9 + i, 1500, d) for i in range(4)]
    measured = [kid_value(wide[0], shift + scale * wide[1]), kid_value(wide[2], shift + scale * wide[3])]
    truth = sum(measured) / 2 if shift or scale != 1 else 0.0
    covered = 0
    for i in range(100):
        estimate = kid(normal(100 + 2 * i, m, d), shift + scale * normal(101 + 2 * i, m, d), seed=i)
        covered += int(estimate.lower <= truth <= estimate.upper)
    assert least <= covered / 100 <= most


def kid_value(x: Floats, y: Floats) -> float:
    return kid(x, y, seed=0).value


def test_images_drawn_twice_do_not_pull_the_resamples_up() -> None:
    """With k(x, x) among the pairs, the resamples of 20 images in 64 dimensions would all lie above the estimate."""
    x, y = normal(1, 20, 64), normal(2, 20, 64)
    estimate = kid(x, y, seed=0)
    middle = (estimate.lower + estimate.upper) / 2
    assert abs(middle - estimate.value) < 0.25 * (estimate.upper - estimate.lower)


def test_the_large_sample_interval_agrees_with_the_full_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(1, 300, 8), normal(2, 200, 8) + 0.4
    full = kid(x, y, seed=0)
    monkeypatch.setattr(kid_fid, "_EXACT", 100)
    first_order = kid(x, y, seed=0)
    assert first_order.value == full.value
    assert first_order.lower == pytest.approx(full.lower, rel=0.1)
    assert first_order.upper == pytest.approx(full.upper, rel=0.1)


def test_very_large_sets_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid_fid, "_LARGEST", 150)
    x, y = normal(1, 300, 8), normal(2, 200, 8) + 0.4
    estimate = kid(x, y, seed=0)
    assert "at most 150 images" in estimate.method
    monkeypatch.undo()
    assert estimate.lower < kid_value(x, y) < estimate.upper
    assert estimate.value != kid_value(x, y)


def test_the_floor_holds_most_fresh_images_and_not_different_ones() -> None:
    x = normal(1, 60, 8)
    floor = real_floor(x, seed=0)
    assert floor == real_floor(x, seed=0)
    assert abs(floor.value) < 0.1 * (floor.upper - floor.lower)
    fresh = [kid_value(x, normal(10 + i, 60, 8)) for i in range(40)]
    assert np.mean([floor.lower <= value <= floor.upper for value in fresh]) >= 0.9
    assert kid_value(x, normal(2, 60, 8) + 0.6) > floor.upper


def test_fid_by_its_closed_form() -> None:
    """Samples whitened and recoloured, so that their mean and covariance are exactly those put in."""
    d, n = 5, 40
    a, b = normal(1, d, d), normal(2, d, d)
    shift = np.arange(d) / 3.0
    x, y = exact(3, n, d) @ a, exact(4, 2 * n, d) @ b + shift
    left, right = a.T @ a, b.T @ b
    crossed = np.sqrt(np.linalg.eigvals(left @ right).astype(complex)).real.sum()
    expected = shift @ shift + np.trace(left) + np.trace(right) - 2 * crossed
    assert fid(x, y) == pytest.approx(expected, rel=1e-9)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(exact(3, n, d), 3 * exact(4, n, d)) == pytest.approx(d * (3 - 1) ** 2)


def exact(seed: int, n: int, d: int) -> Floats:
    z = normal(seed, n, d)
    z -= z.mean(axis=0)
    return z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False))).T


def test_fid_does_not_need_more_images_than_dimensions() -> None:
    x, y = normal(1, 6, 40), normal(2, 9, 40)
    assert fid(x, y) == pytest.approx(fid(y, x))
    assert fid(x, y) > 0


def test_the_estimators_agree_with_torch_fidelity() -> None:
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    metric_prc = pytest.importorskip("torch_fidelity.metric_prc")
    x, y = torch.from_numpy(normal(1, 80, 12)), torch.from_numpy(normal(2, 80, 12) * 0.8 + 0.2)
    statistics = [metric_fid.fid_features_to_statistics(z) for z in (x, y)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    assert fid(x, y) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8)
    theirs = metric_kid.kid_features_to_metric(x, y, kid_subsets=1, kid_subset_size=80, verbose=False)
    assert kid(x, y, seed=0).value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-8)
    theirs = metric_prc.prc_features_to_metric(y, x, prc_neighborhood=3, verbose=False)
    assert precision_recall(x, y) == pytest.approx((theirs["precision"], theirs["recall"]))


def test_precision_and_recall_tell_fidelity_from_variety() -> None:
    near, far = normal(1, 100, 4), normal(2, 100, 4) + 100
    assert precision_recall(near, far) == (0, 0)
    assert precision_recall(near, near.copy()) == (1, 1)
    both = np.concatenate([near, far])
    precision, recall = precision_recall(both, normal(3, 200, 4))
    assert precision > 0.8
    assert recall < 0.55
    precision, recall = precision_recall(normal(3, 200, 4), both)
    assert precision < 0.55
    assert recall > 0.8


def test_precision_and_recall_of_fewer_images_than_neighbours() -> None:
    assert precision_recall(normal(1, 2, 3), normal(1, 2, 3)) == (1, 1)


@pytest.mark.parametrize("count", [20, 200])
def test_copies_are_told_from_fresh_images(count: int) -> None:
    train = normal(1, count, 16)
    fresh = nearest_training_distance(train, normal(2, 100, 16))
    assert not fresh.memorised
    assert fresh.median_ratio == pytest.approx(1, abs=0.3)
    copies = nearest_training_distance(train, train[:100] + 1e-3 * normal(3, min(count, 100), 16))
    assert copies.memorised
    assert copies.near_copies.value == 1
    assert copies.median_ratio is not None
    assert copies.median_ratio < 0.01
    np.testing.assert_array_equal(copies.indices, np.arange(min(count, 100)))
    half = np.concatenate([train[:50], normal(4, 50, 16)])
    assert nearest_training_distance(train, half).near_copies.count >= len(train[:50])


def test_nearest_distances_by_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid_fid, "_BLOCK", 7)
    train, fake = normal(1, 30, 5), normal(2, 20, 5)
    found = nearest_training_distance(train, fake)
    among = np.linalg.norm(fake[:, None] - train[None], axis=2)
    np.testing.assert_allclose(found.distances, among.min(axis=1))
    within = np.linalg.norm(train[:, None] - train[None], axis=2)
    np.fill_diagonal(within, np.inf)
    assert found.train_median == pytest.approx(np.median(within.min(axis=1)))
    assert found.threshold == pytest.approx(np.quantile(within.min(axis=1), 0.01))


def test_duplicates_among_the_training_images_do_not_hide_copies() -> None:
    train = np.concatenate([normal(1, 50, 8)] * 2)
    assert nearest_training_distance(train, train[:30]).memorised
    assert not nearest_training_distance(np.concatenate([train, normal(2, 100, 8)]), normal(3, 60, 8)).memorised
    same = nearest_training_distance(np.ones((5, 3)), np.ones((4, 3)))
    assert same.median_ratio is None
    json.dumps(same.as_dict(), allow_nan=False)


@pytest.mark.parametrize("broken", [np.zeros((1, 4)), np.zeros((3, 5)), np.zeros(4), np.full((3, 4), np.nan)])
def test_features_that_cannot_be_compared_are_refused(broken: Floats) -> None:
    for measure in (lambda x, y: kid(x, y, seed=0), fid, precision_recall, nearest_training_distance):
        with pytest.raises(ValueError, match=r"features|at least 2"):
            measure(normal(1, 6, 4), broken)


class Thumbnail:
    """Sixteen mean brightnesses."""

    def __init__(self, is_inception: bool):
        self.name, self.is_inception = "thumbnail", is_inception

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1), 4).flatten(1) / 64 - 2


@pytest.mark.parametrize("is_inception", [True, False])
def test_a_comparison_of_images(is_inception: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randint(256, (2, 40, 3, 8, 8), generator=generator, dtype=torch.uint8)
    metrics = compare_images(real, fake, Thumbnail(is_inception), train=real, seed=1)
    written = json.loads(json.dumps(metrics.as_dict(), allow_nan=False))
    assert (written["n_real"], written["n_fake"], written["extractor"]) == (40, 40, "thumbnail")
    assert (metrics.fid is None, metrics.frechet is None) == (not is_inception, is_inception)
    assert metrics.frechet_biased
    assert metrics.floor is not None
    assert metrics.floor.lower < metrics.kid.value < metrics.floor.upper
    assert metrics.nearest is not None
    assert not metrics.nearest.memorised
    assert metrics == compare_images(real, fake, Thumbnail(is_inception), train=real, seed=1)
    few = compare_images(real[:3], fake, Thumbnail(is_inception))
    assert few.floor is None
    assert few.nearest is None
