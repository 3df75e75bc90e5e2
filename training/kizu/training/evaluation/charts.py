"""Geometry of the report's two charts; the template draws it as SVG.

Notable here:
- Coordinates are SVG user units, y downwards; nothing here knows colours or fonts.
- Curves are thinned to what a screen can show, so a report of a million images is as small as one of a hundred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kizu.models.operating_point import OperatingPoint
from kizu.training.evaluation.detection import AtOperatingPoint
from kizu.training.evaluation.scoring import Scored

LEFT, TOP, WIDTH, HEIGHT = 56.0, 14.0, 400.0, 300.0
BINS = 48


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class RocChart:
    """False call rate to the right, detection rate upwards."""

    path: str
    area: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marker: tuple[float, float]
    """The operating point, with its bounds as a cross."""
    cross_x: tuple[float, float]
    cross_y: tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """One bin of one class; `title` is its tooltip."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Histogram:
    """Counts of OK above a common axis and of NG below it, each with a scale of its own."""

    ok: tuple[Bar, ...]
    ng: tuple[Bar, ...]
    axis: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    threshold: float
    review: tuple[float, float] | None
    """x and width of the review band."""
    logarithmic: bool
    clipped: int
    """Images whose score lies beyond the ends; they are counted in the outermost bars."""


def roc_chart(scored: Scored, at: AtOperatingPoint) -> RocChart | None:
    """The ROC curve with the operating point on it; None without NG or OK."""
    if not scored.ng.size or not scored.ok.size:
        return None
    false_calls, detections = roc_points(scored.ng, scored.ok)
    x, y = LEFT + WIDTH * false_calls, TOP + HEIGHT * (1 - detections)
    path = _path(x, y)
    here_x, here_y = 1 - (at.specificity.value or 0.0), 1 - (at.fnr_at_threshold.value or 0.0)
    percents = (0.0, 0.25, 0.5, 0.75, 1.0)
    return RocChart(
        path=path,
        area=f"{path}L{LEFT + WIDTH:.1f},{TOP + HEIGHT:.1f}L{LEFT:.1f},{TOP + HEIGHT:.1f}Z",
        x_ticks=tuple(Tick(LEFT + WIDTH * p, f"{p:.0%}") for p in percents),
        y_ticks=tuple(Tick(TOP + HEIGHT * (1 - p), f"{p:.0%}") for p in percents),
        marker=(LEFT + WIDTH * here_x, TOP + HEIGHT * (1 - here_y)),
        cross_x=(LEFT + WIDTH * (1 - at.specificity.upper), LEFT + WIDTH * (1 - at.specificity.lower)),
        cross_y=(TOP + HEIGHT * at.fnr_at_threshold.lower, TOP + HEIGHT * at.fnr_at_threshold.upper),
    )


def roc_points(ng: NDArray[np.float32], ok: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False call rates and detection rates for every distinct threshold, from (0, 0) to (1, 1)."""
    levels = np.unique(np.concatenate([ng, ok]))[::-1]
    false_calls = 1 - np.searchsorted(np.sort(ok), levels, side="left") / ok.size
    detections = 1 - np.searchsorted(np.sort(ng), levels, side="left") / ng.size
    return np.concatenate([[0.0], false_calls]), np.concatenate([[0.0], detections])


def histogram(scored: Scored, operating_point: OperatingPoint) -> Histogram | None:
    """Score distributions with the threshold and the review band; None without images."""
    if not scored.scores.size:
        return None
    start, stop = _range(scored.scores.astype(np.float64), operating_point)
    edges = np.linspace(start, stop, BINS + 1)
    clipped = np.clip(scored.scores.astype(np.float64), start, stop)
    ok = np.histogram(clipped[scored.labels == 0], edges)[0]
    ng = np.histogram(clipped[scored.labels == 1], edges)[0]
    peak = max(int(ok.max()), int(ng.max()))
    positive = np.concatenate([ok[ok > 0], ng[ng > 0]])
    logarithmic = bool(peak > 60 * positive.min())
    # Each class keeps room for its own peak: NG are few, and a common scale would hide them.
    up = 1.0 if not ng.any() else 0.0 if not ok.any() else 0.58
    axis = TOP + HEIGHT * up

    def x_of(value: float) -> float:
        return LEFT + WIDTH * min(max((value - start) / (stop - start), 0.0), 1.0)

    band = (x_of(operating_point.review_threshold), x_of(operating_point.threshold))
    return Histogram(
        ok=_bars(ok, edges, axis, HEIGHT * up, logarithmic, upwards=True, label="OK"),
        ng=_bars(ng, edges, axis, HEIGHT * (1 - up), logarithmic, upwards=False, label="NG"),
        axis=axis,
        x_ticks=tuple(Tick(x_of(v), f"{v:g}") for v in round_values(start, stop)),
        y_ticks=(
            *_count_ticks(int(ok.max()), axis, -HEIGHT * up, logarithmic),
            *_count_ticks(int(ng.max()), axis, HEIGHT * (1 - up), logarithmic),
        ),
        threshold=band[1],
        review=(band[0], band[1] - band[0]) if operating_point.review_threshold < operating_point.threshold else None,
        logarithmic=logarithmic,
        clipped=int(np.count_nonzero((scored.scores < start) | (scored.scores > stop))),
    )


def _range(scores: NDArray[np.float64], operating_point: OperatingPoint) -> tuple[float, float]:
    """All scores and the threshold; far outliers are left to the outermost bins where they would squeeze the rest."""
    marks = [operating_point.threshold, operating_point.review_threshold]
    start, stop = min(scores.min(), *marks), max(scores.max(), *marks)
    near_start, near_stop = np.quantile(scores, [0.01, 0.99])
    near_start, near_stop = min(near_start, *marks), max(near_stop, *marks)
    if stop - start > 3 * (near_stop - near_start) > 0:
        start, stop = max(start, near_start), min(stop, near_stop)
    margin = 0.03 * (stop - start) or max(abs(start) * 0.1, 1e-6)
    return float(start - margin), float(stop + margin)


def _bars(
    counts: NDArray[np.int64],
    edges: NDArray[np.float64],
    axis: float,
    room: float,
    logarithmic: bool,
    *,
    upwards: bool,
    label: str,
) -> tuple[Bar, ...]:
    width = WIDTH / BINS
    bars = []
    for i in np.flatnonzero(counts):
        height = room * _height(int(counts[i]), int(counts.max()), logarithmic)
        title = f"{counts[i]} {label}, score {edges[i]:.4g} to {edges[i + 1]:.4g}"
        bars.append(Bar(LEFT + width * float(i) + 0.5, axis - height if upwards else axis, width - 1, height, title))
    return tuple(bars)


def _height(count: int, peak: int, logarithmic: bool) -> float:
    return 0.96 * (math.log1p(count) / math.log1p(peak) if logarithmic else count / peak)


def _count_ticks(peak: int, axis: float, room: float, logarithmic: bool) -> list[Tick]:
    if not peak:
        return []
    steps = [10**e for e in range(9)] if logarithmic else [v for v in round_values(0, peak) if v == int(v) and v > 0]
    shown = [int(v) for v in steps if v <= peak] or [peak]
    return [Tick(axis + room * _height(v, peak, logarithmic), f"{v}") for v in shown]


def round_values(start: float, stop: float, about: int = 5) -> list[float]:
    """Round numbers inside [start, stop], start < stop."""
    raw = (stop - start) / about
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(magnitude * m for m in (1, 2, 5, 10) if magnitude * m >= raw * 0.999)
    first = math.ceil(start / step - 1e-9)
    last = math.floor(stop / step + 1e-9)
    return [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def _path(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """An SVG path; points that fall on the same tenth of a unit are drawn once."""
    points = np.round(np.stack([x, y], axis=1), 1)
    keep = np.concatenate([[True], np.any(np.diff(points, axis=0) != 0, axis=1)])
    return "M" + "L".join(f"{px:g},{py:g}" for px, py in points[keep])
