"""Localisation by a heatmap: pixel AUROC and PRO, in one pass and bounded memory.

Notable here:
- Pixels are never kept: each falls into one of 2²⁰ bins by the leading bits of its float32, which sorts like the value
  and resolves 0.05 % of it, over the whole range of float32 and without a first pass for minimum and maximum.
- The bins' effect on the AUROC is bounded exactly and reported with it.
- PRO needs no list of regions: a histogram in which each region's pixels weigh 1 / |region| holds all it takes.
- Pixels of one image resemble each other, so no interval is given that would treat them as independent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

PRO_FPR_LIMIT = 0.3
_BITS = 20


@dataclass(frozen=True)
class PixelMetrics:
    """Localisation over the images with a mask and the OK images."""

    auroc: float | None
    """P(heatmap on a defect's pixel > heatmap on another pixel), ties counted half; None without a defect pixel."""
    auroc_error: float | None
    """Largest error that binning can have caused in `auroc`."""
    pro: float | None
    """Mean share of each defect region above a threshold, averaged over pixel false positive rates 0 to 0.3."""
    regions: int
    masked_images: int
    ok_images: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)


class PixelAccumulator:
    """Takes heatmaps one by one; `result` may be asked at any time."""

    def __init__(self) -> None:
        self._clear = np.zeros(1 << _BITS)
        self._defect = np.zeros(1 << _BITS)
        self._regions = np.zeros(1 << _BITS)
        self._region_count = 0
        self._masked = 0
        self._ok = 0

    def add(self, heatmap: NDArray[np.float32], mask: NDArray[np.bool_]) -> None:
        """Count one image.

        Args:
            heatmap: float32[h, w], finite; resized bilinearly to the mask's size where that differs.
            mask: bool[H, W], True on defects; all False for an OK image.
        """
        bins = _bins(resize_heatmap(heatmap, mask.shape[0], mask.shape[1]))
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        np.add.at(self._clear, bins[~mask], 1.0)
        if not count:
            self._ok += 1
            return
        self._masked += 1
        self._region_count += count
        inside = bins[mask]
        sizes = np.bincount(labels[mask], minlength=count + 1)
        np.add.at(self._defect, inside, 1.0)
        np.add.at(self._regions, inside, 1.0 / sizes[labels[mask]])

    def result(self) -> PixelMetrics | None:
        """The metrics so far; None where no defect pixel was seen.

        PRO: Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 129 (2021), section 4.2: per-region overlap
        over regions of 8-connected pixels, integrated to a pixel false positive rate of 0.3 and divided by 0.3. The
        rate counts every pixel outside the masks, those of OK images included.
        """
        if not self._masked:
            return None
        auroc = error = pro = None
        if (clear := self._clear.sum()) > 0:
            used = np.flatnonzero(self._clear + self._defect)[::-1]
            negative = self._clear[used] / clear
            positive = self._defect[used] / self._defect.sum()
            below = 1 - np.cumsum(negative)
            # The true AUROC may order the pairs that share a bin either way; half of them is the middle.
            shared = float((positive * negative).sum() / 2)
            auroc = float(np.clip((positive * below).sum() + shared, 0.0, 1.0))
            error = shared
            overlap = np.cumsum(self._regions[used]) / self._region_count
            pro = _area_to(np.cumsum(negative), overlap, PRO_FPR_LIMIT)
        return PixelMetrics(auroc, error, pro, self._region_count, self._masked, self._ok)


def resize_heatmap(heatmap: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """float32[h, w] → float32[height, width], bilinear."""
    if heatmap.shape == (height, width):
        return heatmap
    image = Image.fromarray(np.ascontiguousarray(heatmap, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _bins(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bin numbers that sort as the values do (IEEE 754: flip all bits of negatives, the sign bit of the others)."""
    # Adding zero turns −0 into +0, which must share a bin.
    bits = np.ascontiguousarray(values + np.float32(0), dtype=np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))
    return (ordered >> np.uint32(32 - _BITS)).astype(np.int64)


def _area_to(fpr: NDArray[np.float64], overlap: NDArray[np.float64], limit: float) -> float:
    """Trapezoidal area under the curve from 0 to `limit`, divided by `limit`."""
    x, y = np.concatenate([[0.0], fpr]), np.concatenate([[0.0], overlap])
    inside = x <= limit
    end = np.interp(limit, x, y)
    x, y = np.append(x[inside], limit), np.append(y[inside], end)
    return float(np.clip(np.trapezoid(y, x) / limit, 0.0, 1.0))
