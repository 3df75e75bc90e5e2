"""Geometry of a line chart: several series with optional interval bands, and levels to hold them against.

Notable here:
- Coordinates are SVG user units, y downwards; nothing here knows colours or fonts, as in `charts`.
- A figure that falls over orders of magnitude and ends about zero, on either side, fits no logarithm: `linear_until`
  makes the y axis proportional to asinh(y / linear_until), straight near zero and logarithmic far from it.
- Long series are thinned to the extremes of each column of the picture, so that no spike is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kizu.training.evaluation.charts import Tick, round_values

Floats = NDArray[np.float64]

_TICK_GAP = 15.0


class Frame(NamedTuple):
    """The plotting area; labels stand outside of it."""

    left: float = 62.0
    top: float = 14.0
    width: float = 400.0
    height: float = 210.0

    @property
    def right(self) -> float:
        """Position of the right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Position of the lower edge."""
        return self.top + self.height


@dataclass(frozen=True)
class Series:
    """A figure over x; `lower` and `upper`, given together, bound its interval."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    lower: Sequence[float] | None = None
    upper: Sequence[float] | None = None


@dataclass(frozen=True)
class Level:
    """A value to hold the series against; with bounds it is a band over the whole width."""

    name: str
    value: float
    lower: float | None = None
    upper: float | None = None


@dataclass(frozen=True)
class Dot:
    """A measured point; `title` is its tooltip."""

    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Curve:
    """A drawn series; `band` is empty without an interval, `path` with one point alone."""

    name: str
    path: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class LevelLine:
    """A drawn level; `band` is the y and the height of its bounds."""

    name: str
    y: float
    band: tuple[float, float] | None


@dataclass(frozen=True)
class LineChart:
    """A chart, ready for a template."""

    frame: Frame
    curves: tuple[Curve, ...]
    levels: tuple[LevelLine, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Axis:
    """Map of values to positions: `start` falls on `at`, `stop` on `at + length`; `length` < 0 points upwards."""

    start: float
    stop: float
    at: float
    length: float
    kind: str = "linear"
    """Or `log`, or `asinh`."""
    linear_until: float = 1.0

    def positions(self, values: Sequence[float] | Floats) -> Floats:
        """SVG units, clipped to the axis."""
        low, high = self._transformed(np.array([self.start, self.stop]))
        share = (self._transformed(np.asarray(values, dtype=np.float64)) - low) / (high - low)
        return np.asarray(self.at + self.length * share.clip(0, 1))

    def ticks(self, gap: float = _TICK_GAP) -> tuple[Tick, ...]:
        """Round values with at least `gap` units between them."""
        values = round_values(self.start, self.stop) if self.kind == "linear" else self._decades()
        kept: list[Tick] = []
        for value, position in zip(values, self.positions(values), strict=True):
            if self.start <= value <= self.stop and all(abs(position - tick.at) >= gap for tick in kept):
                kept.append(Tick(float(position), _text(value)))
        return tuple(kept)

    def _transformed(self, values: Floats) -> Floats:
        if self.kind == "log":
            return np.asarray(np.log10(values))
        return np.asarray(np.arcsinh(values / self.linear_until)) if self.kind == "asinh" else values

    def _decades(self) -> list[float]:
        """Zero and powers of ten, the more important first; between them 2 and 5 where there is room."""
        far = max(abs(self.start), abs(self.stop))
        near = self.start if self.kind == "log" else self.linear_until
        powers = [10.0**e for e in range(math.floor(math.log10(near)), math.ceil(math.log10(far)) + 1)]
        sizes = [*reversed(powers), *(m * power for m in (2, 5) for power in reversed(powers))]
        if self.kind == "log":
            return sizes
        sizes = [size for size in sizes if size >= near * 0.7]
        return [0.0, *sizes, *(-size for size in sizes)]


def line_chart(
    series: Sequence[Series],
    *,
    frame: Frame | None = None,
    levels: Sequence[Level] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
    linear_until: float | None = None,
) -> LineChart | None:
    """The chart; None where no series has a point.

    Args:
        levels: horizontal lines; they widen the y axis as the series do.
        x_range: of the x axis; left out: what the series reach.
        y_range: likewise; values beyond are drawn on its edge.
        log_x: logarithmic x; only points with x > 0 are drawn.
        linear_until: > 0, about where the y axis turns from linear to logarithmic; left out: it is linear throughout.
    """
    frame = frame or Frame()
    taken = [_finite(one, log_x) for one in series]
    if not any(one.x for one in taken):
        return None
    x_axis = Axis(*(x_range or _x_range(taken, log_x)), frame.left, frame.width, kind="log" if log_x else "linear")
    y_axis = Axis(
        *(y_range or _y_range(taken, levels, linear_until)),
        frame.bottom,
        -frame.height,
        kind="linear" if linear_until is None else "asinh",
        linear_until=linear_until or 1.0,
    )
    return LineChart(
        frame=frame,
        curves=tuple(_curve(one, x_axis, y_axis) for one in taken if one.x),
        levels=tuple(_level(level, y_axis) for level in levels),
        x_ticks=x_axis.ticks(gap=28.0),
        y_ticks=y_axis.ticks(),
    )


def turning_point(values: Sequence[float], near: float | None) -> float | None:
    """`linear_until` for figures of which those below `near` are as good as zero; None where a linear axis will do.

    Without `near` the smallest size among the figures takes its place.
    """
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return None
    near = near or min(sizes)
    return near if max(sizes) > 20 * near > 0 else None


def _finite(series: Series, log_x: bool) -> Series:
    """Without points that have no position, in the order of x."""
    columns = [series.x, series.y, *([series.lower, series.upper] if series.lower and series.upper else [])]
    points = np.array(columns, dtype=np.float64)
    keep = np.isfinite(points).all(axis=0) & ((points[0] > 0) | (not log_x))
    points = points[:, keep]
    points = points[:, points[0].argsort(kind="stable")]
    x, y, *bounds = (row.tolist() for row in points)
    lower, upper = bounds or (None, None)
    return Series(series.name, x, y, lower, upper)


def _x_range(series: Sequence[Series], log_x: bool) -> tuple[float, float]:
    values = [value for one in series for value in one.x]
    start, stop = min(values), max(values)
    if log_x:
        return (start / 2, stop * 2) if start == stop else (start, stop)
    # A run begins at nothing; an axis that begins at its first measurement would hide how late that was.
    start = min(start, 0.0)
    return (start, stop) if start < stop else (start, start + 1.0)


def _y_range(series: Sequence[Series], levels: Sequence[Level], linear_until: float | None) -> tuple[float, float]:
    values = [value for one in series for row in (one.y, one.lower, one.upper) if row for value in row]
    values += [v for level in levels for v in (level.value, level.lower, level.upper) if v is not None]
    start, stop = min(values), max(values)
    if linear_until is not None:
        return min(start * 1.2, -linear_until), max(stop * 1.2, linear_until)
    margin = 0.05 * (stop - start) or max(abs(start) * 0.1, 1e-6)
    return (0.0 if 0 <= start < 0.4 * stop else start - margin), stop + margin


def _curve(series: Series, x_axis: Axis, y_axis: Axis) -> Curve:
    x, y = x_axis.positions(series.x), y_axis.positions(series.y)
    bounded = bool(series.lower and series.upper)
    low = y_axis.positions(series.lower) if series.lower and bounded else y
    high = y_axis.positions(series.upper) if series.upper and bounded else y
    keep = _thinned(x, (y, low, high))
    x, y, low, high = x[keep], y[keep], low[keep], high[keep]
    band = ""
    if bounded and len(keep) > 1:
        band = f"{_path(x, high)}L{_path(x[::-1], low[::-1])[1:]}Z"
    return Curve(
        name=series.name,
        path=_path(x, y) if len(keep) > 1 else "",
        band=band,
        dots=tuple(
            Dot(round(float(x[i]), 1), round(float(y[i]), 1), _title(series, int(k))) for i, k in enumerate(keep)
        ),
    )


def _thinned(x: Floats, rows: tuple[Floats, ...]) -> NDArray[np.intp]:
    """Positions to draw: all, or in each column two units wide the first, the last, and the extremes of every row."""
    if len(x) <= 150:
        return np.arange(len(x))
    edges = np.flatnonzero(np.diff(np.floor(x / 2))) + 1
    kept: set[int] = set()
    for part in np.split(np.arange(len(x)), edges):
        kept |= {int(part[0]), int(part[-1])}
        for row in rows:
            kept |= {int(part[row[part].argmin()]), int(part[row[part].argmax()])}
    return np.array(sorted(kept), dtype=np.intp)


def _level(level: Level, axis: Axis) -> LevelLine:
    y = float(axis.positions([level.value])[0])
    if level.lower is None or level.upper is None:
        return LevelLine(level.name, y, None)
    bottom, top = axis.positions([level.lower, level.upper])
    return LevelLine(level.name, y, (float(top), float(bottom - top)))


def _title(series: Series, index: int) -> str:
    bounds = ""
    if series.lower and series.upper:
        bounds = f" [{_text(series.lower[index], 4)}, {_text(series.upper[index], 4)}]"
    return f"{series.name} {_text(series.y[index], 4)}{bounds} at {_text(series.x[index], 4)}"


def _path(x: Floats, y: Floats) -> str:
    return "M" + "L".join(f"{px:g},{py:g}" for px, py in np.round(np.stack([x, y], axis=1), 1))


def _text(value: float, digits: int = 6) -> str:
    return f"{value:.{digits}g}".replace("-", "−")
