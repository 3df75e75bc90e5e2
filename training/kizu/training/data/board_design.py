"""Layouts of rendered boards: traces, pads, vias and legend of one product, as layers to be photographed.

Coordinates are in image sides: the camera sees [0, 1]², and the layout goes on a little beyond, for the jitter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]

MARGIN = 0.08
"""How far a layout reaches beyond the image, in image sides."""
TRACK = 0.068
PITCH = 0.145
VIEWS = 4


@dataclass(frozen=True)
class Segment:
    """A straight piece of a trace."""

    start: Point
    end: Point
    width: float
    net: int


@dataclass
class Design:
    """One view of a product: its layers as grey images (255: there) with `scale` pixels per image side."""

    scale: int
    copper: Image.Image = field(init=False)
    nets: Image.Image = field(init=False)
    """Which net a copper pixel belongs to, from 1; 0 is none."""
    opening: Image.Image = field(init=False)
    """Where the solder mask leaves metal bare."""
    hole: Image.Image = field(init=False)
    legend: Image.Image = field(init=False)
    segments: list[Segment] = field(default_factory=list)

    def __post_init__(self) -> None:
        side = round(self.scale * (1 + 2 * MARGIN))
        for name in ("copper", "nets", "opening", "hole", "legend"):
            setattr(self, name, Image.new("L", (side, side)))
        self._net = 0

    def trace(self, points: Sequence[Point], width: float = TRACK) -> int:
        """A trace along `points` with round ends and corners; returns its net."""
        self._net += 1
        for layer, value in ((self.copper, 255), (self.nets, self._net)):
            draw = ImageDraw.Draw(layer)
            pixels = [self._pixel(point) for point in points]
            draw.line(pixels, fill=value, width=round(width * self.scale))
            for x, y in pixels:
                radius = width * self.scale / 2 - 0.5
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=value)
        self.segments += [Segment(start, end, width, self._net) for start, end in pairwise(points)]
        return self._net

    def bus(self, points: Sequence[Point], count: int, pitch: float = PITCH) -> list[list[Point]]:
        """`count` parallel traces around `points`; returns their paths."""
        paths = [_parallel(points, (number - (count - 1) / 2) * pitch) for number in range(count)]
        for path in paths:
            self.trace(path)
        return paths

    def pad(self, centre: Point, width: float, height: float) -> None:
        """A bare rectangular pad, of the net that already lies there, or of its own."""
        x, y = centre
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        self._metal("rounded_rectangle", corners, radius=0.018 * self.scale)

    def via(self, centre: Point, radius: float = 0.062) -> None:
        """A plated hole with its ring."""
        x, y = centre
        self._metal("ellipse", (x - radius, y - radius, x + radius, y + radius))
        drill = radius * 0.5
        corners = (x - drill, y - drill, x + drill, y + drill)
        ImageDraw.Draw(self.hole).ellipse(self._pixels(corners), fill=255)

    def pour(self, corners: Sequence[Point], clearances: Sequence[tuple[Point, float]]) -> None:
        """A copper area with round clearances."""
        self._net += 1
        for layer, value in ((self.copper, 255), (self.nets, self._net)):
            draw = ImageDraw.Draw(layer)
            draw.polygon([self._pixel(corner) for corner in corners], fill=value)
            for (x, y), radius in clearances:
                draw.ellipse(self._pixels((x - radius, y - radius, x + radius, y + radius)), fill=0)

    def print_line(self, points: Sequence[Point], width: float = 0.022) -> None:
        """A line of the printed legend."""
        draw = ImageDraw.Draw(self.legend)
        draw.line([self._pixel(point) for point in points], fill=255, width=max(1, round(width * self.scale)))

    def print_dot(self, centre: Point, radius: float = 0.03) -> None:
        """A dot of the printed legend."""
        x, y = centre
        ImageDraw.Draw(self.legend).ellipse(self._pixels((x - radius, y - radius, x + radius, y + radius)), fill=255)

    def turned(self, transposition: Image.Transpose | None, mirrored: bool) -> None:
        """Turn all layers and segments, so that views of one kind do not all look alike."""
        for step in [Image.Transpose.FLIP_LEFT_RIGHT] * mirrored + [transposition] * (transposition is not None):
            for name in ("copper", "nets", "opening", "hole", "legend"):
                setattr(self, name, getattr(self, name).transpose(step))
            self.segments = [
                Segment(_turn(segment.start, step), _turn(segment.end, step), segment.width, segment.net)
                for segment in self.segments
            ]

    def _metal(self, shape: str, corners: tuple[float, float, float, float], **options: float) -> None:
        pixels = self._pixels(corners)
        middle = ((pixels[0] + pixels[2]) / 2, (pixels[1] + pixels[3]) / 2)
        there = self.nets.getpixel((round(middle[0]), round(middle[1])))
        net = int(there) if isinstance(there, int | float) else 0
        if not net:
            self._net += 1
            net = self._net
        for layer, value in ((self.copper, 255), (self.nets, net), (self.opening, 255)):
            getattr(ImageDraw.Draw(layer), shape)(pixels, fill=value, **options)

    def _pixel(self, point: Point) -> Point:
        return ((point[0] + MARGIN) * self.scale, (point[1] + MARGIN) * self.scale)

    def _pixels(self, corners: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        return (*self._pixel(corners[:2]), *self._pixel(corners[2:]))


def _turn(point: Point, step: Image.Transpose | None) -> Point:
    x, y = point
    if step == Image.Transpose.FLIP_LEFT_RIGHT:
        return (1 - x, y)
    if step == Image.Transpose.ROTATE_180:
        return (1 - x, 1 - y)
    return (y, x)


def _parallel(points: Sequence[Point], distance: float) -> list[Point]:
    """The path beside `points`, mitred at its bends."""
    path: NDArray[np.float64] = np.asarray(points, dtype=np.float64)
    along = np.diff(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    normals = np.stack([-along[:, 1], along[:, 0]], axis=1)
    shifts = [normals[0]]
    for before, after in pairwise(normals):
        shifts.append((before + after) / (1 + before @ after))
    shifts.append(normals[-1])
    return [(float(x), float(y)) for x, y in path + distance * np.asarray(shifts)]


def draw_product(seed: int, scale: int) -> list[Design]:
    """The views of the product of this seed: a bus, a chip's pads, passive parts, a ground area with vias."""
    designs = []
    for number, view in enumerate((_bus_view, _chip_view, _passives_view, _ground_view)):
        random = np.random.default_rng([seed, number])
        design = Design(scale)
        view(design, random)
        turns = (None, Image.Transpose.ROTATE_180, Image.Transpose.TRANSPOSE)
        design.turned(turns[random.integers(3)], bool(random.integers(2)))
        designs.append(design)
    return designs


def _bus_view(design: Design, random: np.random.Generator) -> None:
    bend = random.uniform(0.25, 0.4)
    low, high = random.uniform(0.36, 0.42), random.uniform(0.58, 0.64)
    paths = design.bus([(-0.1, low), (bend, low), (bend + high - low, high), (1.1, high)], 4)
    right, left = paths[0][-1][1] - 0.19, paths[-1][0][1] + 0.19
    design.trace([(1.1, right), (0.78, right)])
    design.via((0.78, right), 0.07)
    design.trace([(-0.1, left), (0.2, left)])
    design.via((0.2, left), 0.07)
    design.via((0.46, left + 0.03), 0.055)


def _chip_view(design: Design, random: np.random.Generator) -> None:
    first, step = random.uniform(0.06, 0.1), 0.2
    exits = first + step * np.arange(5) + random.uniform(0.06, 0.1)
    for number, y in enumerate(first + step * np.arange(5)):
        target = float(exits[number])
        x = random.uniform(0.5, 0.52) + (4 - number) * 0.03
        ends_in_via = number in (1, 3)
        end = 0.84 if ends_in_via else 1.1
        design.trace([(0.2, float(y)), (x, float(y)), (x + target - float(y), target), (end, target)])
        design.pad((0.17, float(y)), 0.28, 0.105)
        if ends_in_via:
            design.via((0.84, target), 0.06)
    design.print_line([(-0.04, -0.1), (-0.04, 1.1)])
    design.print_dot((0.4, first - 0.02 if first > 0.08 else 0.01), 0.025)


def _passives_view(design: Design, random: np.random.Generator) -> None:
    for x, y in ((0.27, random.uniform(0.4, 0.5)), (0.72, random.uniform(0.48, 0.58))):
        gap, width = 0.13, 0.21
        design.trace(
            [(x, y + gap), (x, 1.1)] if x > 0.5 else [(x, y + gap), (x, 0.82), (x + 0.1, 0.92), (1.1, 0.92)][:3]
        )
        design.trace([(x, y - gap), (x, 0.12), (x + 0.1, 0.02), (x + 0.22, -0.1)])
        for side in (-1, 1):
            design.pad((x, y + side * gap), width, 0.15)
        for side in (-1, 1):
            design.print_line([(x + side * 0.155, y - 0.19), (x + side * 0.155, y + 0.19)])
    design.via((0.47, 0.92), 0.062)
    design.trace([(0.37, 0.92), (0.47, 0.92)])
    design.trace([(-0.1, 0.72), (0.0, 0.72), (0.08, 0.8), (0.08, 1.1)])
    design.trace([(0.495, -0.1), (0.495, 0.7)])
    design.trace([(0.95, -0.1), (0.95, 1.1)])


def _ground_view(design: Design, random: np.random.Generator) -> None:
    edge = random.uniform(0.42, 0.48)
    cut = random.uniform(0.3, 0.4)
    vias = [(edge + 0.2, cut + 0.12), (edge + 0.42, cut + 0.34), (edge + 0.17, cut + 0.45)]
    design.pour(
        [(edge + 0.25, -0.1), (1.1, -0.1), (1.1, 1.1), (edge, 1.1), (edge, cut), (edge + 0.25, cut - 0.25)],
        [(vias[0], 0.115), (vias[1], 0.115)],
    )
    for centre in vias:
        design.via(centre, 0.068)
    design.via((0.9, 0.13), 0.068)
    x = edge - 0.12
    design.bus([(x - 0.145, 1.1), (x - 0.145, cut - 0.02), (x + 0.145, cut - 0.31), (x + 0.145, -0.1)], 2, 0.145)
    design.trace([(-0.1, 0.2), (0.07, 0.2)])
    design.via((0.07, 0.2), 0.062)
    design.print_line([(0.02, 0.62), (0.02, 0.8), (0.1, 0.8)])
