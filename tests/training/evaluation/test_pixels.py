from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from kizu.training.evaluation.pixels import PixelAccumulator, PixelMetrics, _bins, resize_heatmap
from kizu.training.evaluation.ranking import delong

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def measure(*pairs: tuple[np.ndarray, np.ndarray]) -> PixelMetrics:
    accumulator = PixelAccumulator()
    for heatmap, mask in pairs:
        accumulator.add(heatmap.astype(np.float32), mask.astype(bool))
    result = accumulator.result()
    assert result is not None
    return result


def direct_pro(pairs: list[tuple[np.ndarray, np.ndarray]], limit: float) -> float:
    """PRO by going through every threshold."""
    regions = []
    for heatmap, mask in pairs:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        regions += [heatmap[labels == i + 1] for i in range(count)]
    clear = np.concatenate([heatmap[~mask] for heatmap, mask in pairs])
    levels = np.unique(np.concatenate([heatmap.ravel() for heatmap, _ in pairs]))[::-1]
    x = [0.0, *((clear >= t).mean() for t in levels)]
    y = [0.0, *(np.mean([(r >= t).mean() for r in regions]) for t in levels)]
    area = 0.0
    for x0, x1, y0, y1 in zip(x, x[1:], y, y[1:], strict=False):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def test_pro_by_hand() -> None:
    # Ten clear pixels and two regions: a (two pixels) and b (one). Scores fall: a1, clear, a2, clear, b, the rest.
    mask = np.array([[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]], dtype=bool)
    heatmap = np.array([[9, 7, 8, 6, 0, 0, 0, 0, 0, 0, 0, 0, 5]], dtype=float)
    # (FPR, PRO): (0, 0) (0, ¼) (.1, ¼) (.1, ½) (.2, ½) (.2, 1) (1, 1); clipped at 0.3:
    # .1·¼ + .1·½ + .1·1 = 0.175, over 0.3.
    assert measure((heatmap, mask)).pro == pytest.approx(0.175 / 0.3)


def test_pro_against_every_threshold_on_random_maps() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(4):
        mask = ndimage.binary_dilation(rng.random((24, 20)) < 0.01, iterations=2)
        pairs.append((np.round(rng.random((24, 20)) + 0.5 * mask, 2), mask))
    pairs.append((np.round(rng.random((24, 20)), 2), np.zeros((24, 20), dtype=bool)))
    found = measure(*pairs)
    assert found.pro == pytest.approx(direct_pro(pairs, 0.3), abs=1e-9)
    assert (found.masked_images, found.ok_images) == (4, 1)


def test_pixel_auroc_is_exact_within_its_stated_error() -> None:
    rng = np.random.default_rng(1)
    mask = rng.random((64, 64)) < 0.1
    # Values this close together share bins.
    heatmap = (1000 + rng.normal(0, 0.5, (64, 64)) + 0.4 * mask).astype(np.float32)
    found = measure((heatmap, mask))
    exact, _ = delong(heatmap[mask].astype(np.float64), heatmap[~mask].astype(np.float64))
    assert found.auroc is not None
    assert found.auroc_error is not None
    assert abs(found.auroc - exact) <= found.auroc_error
    spread = measure((heatmap - 1000, mask))
    assert spread.auroc == pytest.approx(exact, abs=2e-3)
    assert spread.auroc_error is not None
    assert spread.auroc_error < 2e-3


@given(st.lists(finite, min_size=2, max_size=50))
def test_bins_keep_the_order(values: list[float]) -> None:
    array = np.sort(np.array(values, dtype=np.float32))
    bins = _bins(array)
    assert (np.diff(bins) >= 0).all()
    assert (bins >= 0).all()
    assert (bins < 1 << 20).all()


def test_zero_of_either_sign_is_one_bin() -> None:
    bins = _bins(np.array([-0.0, 0.0], dtype=np.float32))
    assert bins[0] == bins[1]


def test_regions_touching_at_a_corner_are_one() -> None:
    assert measure((np.eye(4), np.eye(4))).regions == 1


def test_a_perfect_and_a_useless_heatmap() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:4, 2:5] = True
    perfect = measure((mask.astype(float), mask))
    assert (perfect.auroc, perfect.pro) == pytest.approx((1.0, 1.0))
    useless = measure((np.zeros((10, 10)), mask))
    assert useless.auroc == pytest.approx(0.5)
    # One threshold for all: the diagonal, 0.3 / 2.
    assert useless.pro == pytest.approx(0.15)


def test_without_clear_pixels_or_masks_nothing_is_claimed() -> None:
    full = measure((np.ones((3, 3)), np.ones((3, 3))))
    assert full.auroc is None
    assert full.pro is None
    accumulator = PixelAccumulator()
    accumulator.add(np.ones((3, 3), dtype=np.float32), np.zeros((3, 3), dtype=bool))
    assert accumulator.result() is None


def test_a_heatmap_is_resized_to_its_mask() -> None:
    heatmap = np.array([[0, 0], [0, 1]], dtype=np.float32)
    grown = resize_heatmap(heatmap, 8, 6)
    assert grown.shape == (8, 6)
    assert grown.dtype == np.float32
    assert grown[0, 0] == 0
    assert grown[-1, -1] == 1
    mask = np.zeros((8, 6), dtype=bool)
    mask[6:, 4:] = True
    found = measure((heatmap, mask))
    assert found.auroc == 1.0
