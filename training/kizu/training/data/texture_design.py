"""Brushed metal and what can be wrong with it, as fields of numbers to be photographed.

Notable here:
- Grain is white noise through an anisotropic filter, so its mean, strength, direction and period are known exactly.
- Where the grain's direction or period is at fault, two grains are mixed by shares whose squares add up to 1, and then
  levelled: the mean stays, the variance nearly so, and the texture's other statistics alone tell.
- Lengths are in image sides, lightness in shares of the sheet's own; each defect answers where it can be seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]

MARGIN = 0.15
"""How far noise reaches beyond the image on all sides, in image sides: filters wrap around there, unseen."""
_GRITS = 40
"""Streaks in an area as large as the image: so few that each stands alone, whatever the image's pixels."""
_SEEN = 0.35
"""Share of a soft defect's full strength from which it counts as seen."""


@dataclass(frozen=True)
class Grain:
    """Direction and size of brush marks."""

    direction: float
    """Radians."""
    period: float
    """Width of the finest marks, in image sides."""
    length: float
    """Length of the finest marks, in image sides."""


@dataclass
class Surface:
    """A sheet's surface as one image shows it, float32[S, S] each; defects are drawn into it."""

    grain: Grain
    texture: Floats
    """Brush marks, mean 0, standard deviation 1."""
    relief: Floats
    """Light that slopes and edges gain or lose."""
    film: Floats
    """Share of the surface's light that what lies on it replaces, 0 to 1."""
    film_colour: Floats
    """What the film shows, float32[3], in shares of the sheet's lightness."""

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return len(self.texture)


def grid(size: int) -> tuple[Floats, Floats]:
    """The pixels' centres x, y in image sides, float32[size, size] each, from 0 to 1."""
    across: Floats = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    x: Floats = np.broadcast_to(across, (size, size))
    return x, x.T


def brush(grain: Grain, size: int, random: np.random.Generator) -> Floats:
    """Brush marks float32[size, size], mean 0 and standard deviation 1 over many draws.

    Three layers of one noise: fine marks, broad marks of the same direction, and pores without one; and streaks, which
    single grits leave, from a noise that is almost everywhere 0.
    """
    side = round(size * (1 + 2 * MARGIN))
    noise, grits = random.standard_normal((2, side, side))
    rare = _GRITS / size**2
    grits *= (random.random((side, side)) < rare) / np.sqrt(rare)
    fy, fx = np.fft.fftfreq(side)[:, None] * size, np.fft.rfftfreq(side)[None, :] * size
    along = fx * np.cos(grain.direction) + fy * np.sin(grain.direction)
    across = fy * np.cos(grain.direction) - fx * np.sin(grain.direction)

    def layer(share: float, length: float, width: float) -> NDArray[np.float64]:
        return share * _unit_gain(along, across, length, max(width, 1.5 / size), side)

    marks = layer(0.72, grain.length, grain.period) + layer(0.45, 2.5 * grain.length, 4 * grain.period)
    marks += layer(0.30, grain.period, grain.period)
    streaks = layer(0.5, 0.8 * grain.length, grain.period)
    spectrum = np.fft.rfft2(noise) * marks + np.fft.rfft2(grits) * streaks
    spectrum[0, 0] = 0
    start = (side - size) // 2
    seen = np.fft.irfft2(spectrum, s=(side, side))[start : start + size, start : start + size]
    brushed: Floats = (seen / np.sqrt(_mean_of_half(marks**2 + streaks**2, side))).astype(np.float32)
    return brushed


def _unit_gain(
    along: NDArray[np.float64], across: NDArray[np.float64], length: float, width: float, side: int
) -> NDArray[np.float64]:
    """A Gaussian filter of `length` × `width` that turns white noise into noise of variance 1."""
    response: NDArray[np.float64] = np.exp(-0.5 * (np.pi * length * along) ** 2 - 0.5 * (np.pi * width * across) ** 2)
    unit: NDArray[np.float64] = response / np.sqrt(_mean_of_half(response**2, side))
    return unit


def _mean_of_half(power: NDArray[np.float64], side: int) -> float:
    """The mean over all frequencies of a spectrum that is given for the half that `rfft2` keeps."""
    twice = np.full(power.shape[1], 2.0)
    twice[0] = 1
    if side % 2 == 0:
        twice[-1] = 1
    return float((power * twice).sum() / side**2)


def cloud(size: int, width: float, random: np.random.Generator) -> Floats:
    """Slow unevenness float32[size, size] of about `width` image sides, standard deviation 1 over many draws."""
    count = max(3, round(1 / width) + 3)
    nodes = random.standard_normal((count, count))
    at = np.linspace(1, count - 2, size)
    weights = np.exp(-0.5 * ((at[:, None] - np.arange(count)) / 0.6) ** 2)
    weights /= np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return (weights @ nodes @ weights.T).astype(np.float32)


def _scratch(surface: Surface, random: np.random.Generator) -> Flags:
    """A thin line, a little bent, lighter or darker than the grain that it runs along or across."""
    x, y = grid(surface.size)
    along_grain = random.random() < 0.35
    heading = surface.grain.direction + (random.normal(0, 0.12) if along_grain else random.uniform(0.35, np.pi - 0.35))
    bend = random.normal(0, 0.06)
    reach = random.uniform(0.22, 0.5) * (1.3 if along_grain else 1.0)
    point = random.uniform(0.3, 0.7, 2) - 0.5 * reach * np.array([np.cos(heading), np.sin(heading)])
    distance = np.full_like(x, np.inf)
    steps = 8
    for _ in range(steps):
        step = reach / steps * np.array([np.cos(heading), np.sin(heading)])
        share = np.clip(((x - point[0]) * step[0] + (y - point[1]) * step[1]) / (step @ step), 0, 1)
        np.minimum(distance, np.hypot(x - point[0] - share * step[0], y - point[1] - share * step[1]), out=distance)
        point, heading = point + step, heading + bend
    half = max(random.uniform(0.003, 0.006), 0.5 / surface.size)
    line = np.clip((half - distance) * surface.size + 0.5, 0, 1)
    surface.relief += _either(random, 0.30, 0.45) * line
    return _seen(line)


def _stain(surface: Surface, random: np.random.Generator) -> Flags:
    """A soft blob of oil or dried water, darker or lighter than the sheet; a second one is of the same kind."""
    share = _blob(surface.size, random.uniform(0.06, 0.12), 0.35, random)
    strength = random.uniform(0.34, 0.50)
    dark = random.random() < 0.6
    if not surface.film.any():
        surface.film_colour = np.array([0.42, 0.36, 0.27] if dark else [1.55, 1.52, 1.48], np.float32)
    surface.film = np.maximum(surface.film, np.float32(strength) * share)
    return _seen(share)


def _pit(surface: Surface, random: np.random.Generator) -> Flags:
    """A small hollow: dark, with a rim that catches the light on the side away from the lamp."""
    x, y = grid(surface.size)
    centre = random.uniform(0.1, 0.9, 2)
    radius = max(random.uniform(0.013, 0.022), 1.8 / surface.size)
    u, v = (x - centre[0]) / radius, (y - centre[1]) / radius
    depth = np.exp(-0.5 * (u**2 + v**2) / 0.6**2)
    surface.relief += random.uniform(0.46, 0.62) * (-0.8 * depth + 0.9 * depth * np.clip(u + v, -1.5, 1.5))
    hollow: Flags = np.hypot(u, v) <= 1.1
    return hollow


def _distortion(surface: Surface, random: np.random.Generator) -> Flags:
    """A place where the grain runs in another direction or is coarser; nowhere lighter or darker."""
    share = _blob(surface.size, random.uniform(0.10, 0.16), 0.4, random)
    grain = surface.grain
    if random.random() < 0.6:
        turned = grain.direction + random.choice([-1, 1]) * random.uniform(0.5, 1.3)
        other = replace(grain, direction=turned)
    else:
        other = replace(grain, period=grain.period * random.uniform(2.2, 3.0))
    marks = brush(other, surface.size, random)
    surface.texture = _as_bright(surface.texture, np.sqrt(1 - share) * surface.texture + np.sqrt(share) * marks, share)
    return _seen(share)


def _fold(surface: Surface, random: np.random.Generator) -> Flags:
    """A soft kink: light on one side of its line and dark on the other, fading towards its ends."""
    x, y = grid(surface.size)
    angle, centre = surface.grain.direction + random.uniform(0.4, np.pi - 0.4), random.uniform(0.3, 0.7, 2)
    along = (x - centre[0]) * np.cos(angle) + (y - centre[1]) * np.sin(angle)
    bow = random.normal(0, 0.25)
    across = (y - centre[1]) * np.cos(angle) - (x - centre[0]) * np.sin(angle) + bow * along**2
    width = random.uniform(0.014, 0.026)
    fading = 1 / (1 + np.exp((np.abs(along) - random.uniform(0.18, 0.36)) / 0.03))
    profile = across / width * np.exp(0.5 - 0.5 * (across / width) ** 2) * fading
    surface.relief += (_either(random, 0.20, 0.28) * profile).astype(np.float32)
    return _seen(np.where(np.abs(across) <= 1.8 * width, fading, 0))


def _smear(surface: Surface, random: np.random.Generator) -> Flags:
    """A rubbed place, where the marks are worn flat; nowhere lighter or darker."""
    share = _blob(surface.size, random.uniform(0.08, 0.14), 0.5, random, random.uniform(1.0, 1.8))
    worn = surface.texture * (1 - np.float32(random.uniform(0.75, 0.9)) * share)
    surface.texture = _as_bright(surface.texture, worn, share)
    return _seen(share)


def _as_bright(before: Floats, after: NDArray[np.floating], share: Floats) -> Floats:
    """Level `after` where `share` is, so that its mean weighted by `share` is that of `before`."""
    excess = (share * (after - before)).sum() / (share**2).sum()
    level: Floats = (after - share * excess).astype(np.float32)
    return level


def _seen(strength: NDArray[np.floating]) -> Flags:
    """Where a fault is strong enough to count."""
    seen: Flags = strength >= _SEEN
    return seen


def _either(random: np.random.Generator, low: float, high: float) -> np.float32:
    """A strength of either sign."""
    return np.float32(random.choice([-1, 1]) * random.uniform(low, high))


def _blob(size: int, radius: float, softness: float, random: np.random.Generator, stretch: float = 1.0) -> Floats:
    """A spot of uneven outline, float32[size, size]: 1 inside, 0 outside, `softness` radii between."""
    x, y = grid(size)
    centre = random.uniform(0.18, 0.82, 2)
    turn = random.uniform(0, np.pi)
    dx, dy = x - centre[0], y - centre[1]
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    u, v = u / np.sqrt(stretch), v * np.sqrt(stretch)
    angle, outline = np.arctan2(v, u), np.ones_like(x)
    for wave in (2, 3, 5):
        outline += random.normal(0, 0.22 / wave) * np.cos(wave * angle + random.uniform(0, 2 * np.pi))
    inside = np.clip((outline - np.hypot(u, v) / radius) / softness + 0.5, 0, 1)
    soft: Floats = (inside * inside * (3 - 2 * inside)).astype(np.float32)
    return soft


FAULTS: dict[str, Callable[[Surface, np.random.Generator], Flags]] = {
    "scratch": _scratch,
    "stain": _stain,
    "pit": _pit,
    "distortion": _distortion,
    "fold": _fold,
    "smear": _smear,
}
"""Each defect class: draws one into a surface and returns where it can be seen, bool[S, S], never empty."""
