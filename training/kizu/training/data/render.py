"""Rendered boards: a data set to try Kizu with, where every pixel of every defect is known.

Notable here:
- One product, and one view of it unless more are asked for, so that what is normal can be learnt from little.
- Boards (the groups) differ in hue, exposure and how legend and solder mask sit; images in position, light and noise.
- Copper defects are drawn into the copper before it is photographed, so they look as they would on a board; masks
  are where that changed something that can be seen.
- Drawn larger and reduced, for smooth edges. Every image depends on the seed and its own number alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from kizu.errors import UserError
from kizu.training.data.board_design import MARGIN, PITCH, VIEWS, Design, Point, Segment, draw_product
from kizu.training.data.importers.staging import Journal
from kizu.training.data.manifest import OK, Box, Manifest, Row
from kizu.training.data.rendered_set import bounds, write_rendered

Floats = NDArray[np.float32]

JITTER = 0.014
"""Largest shift of the board under the camera, in image sides."""
MISREGISTRATION = 0.008
"""Largest shift of a board's legend and solder mask against its copper."""
_MASK_THRESHOLD = 0.3
_ATTEMPTS = 200

_SUBSTRATE = np.array([0.055, 0.27, 0.155], np.float32)
_COVERED_COPPER = np.array([0.16, 0.53, 0.28], np.float32)
_LAMINATE = np.array([0.42, 0.37, 0.22], np.float32)
_FINISH = np.array([0.86, 0.71, 0.40], np.float32)
_HOLE = np.array([0.03, 0.035, 0.03], np.float32)
_LEGEND = np.array([0.90, 0.91, 0.87], np.float32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class _Look:
    """Properties that all images of one board share."""

    tint: Floats
    gain: float
    legend_shift: tuple[int, int]
    opening_shift: tuple[int, int]
    mottle: Floats


@dataclass
class _Shot:
    """The layers under the camera in one image, `scale` pixels a side; defects are drawn into them."""

    copper: Image.Image
    opening: Image.Image
    hole: Image.Image
    legend: Image.Image
    nets: Image.Image
    surface: Image.Image
    """What lies on top: scratches and dirt."""
    surface_colour: Floats
    segments: list[Segment]
    scale: int


def render_boards(
    destination: Path,
    *,
    boards: int = 24,
    count_ok: int = 600,
    count_ng: int = 140,
    size: int = 64,
    channels: int = 3,
    views: int = 1,
    seed: int = 0,
    journal: Journal | None = None,
) -> Manifest:
    """Render `count_ok` OK and `count_ng` NG images, uint8[size, size, channels], of `boards` boards of one product.

    `views` are the places on the board that the camera looks at, 1 to 4. NG images carry one or two defects of one
    class, with mask and boxes; classes take turns. The group is the board.

    Raises:
        UserError: sizes or counts that make no data set, or a destination in use.
    """
    if size < 32 or channels not in (1, 3) or count_ok < 1 or count_ng < 0 or boards < 1 or not 1 <= views <= VIEWS:
        raise UserError(
            f"cannot render {count_ok} OK and {count_ng} NG images of {boards} boards at {size}×{size}×{channels}",
            f"Use at least one OK image and board, 32 pixels or more, 1 or 3 channels, and 1 to {VIEWS} views.",
        )
    return write_rendered(
        destination,
        _Stage(seed, size, channels, boards, views).photograph,
        group="board",
        groups=boards,
        count_ok=count_ok,
        classes=[DEFECTS[number % len(DEFECTS)] for number in range(count_ng)],
        journal=journal,
    )


class _Stage:
    """The product under its camera."""

    def __init__(self, seed: int, size: int, channels: int, boards: int, views: int):
        self.seed, self.size, self.channels, self.boards, self.views = seed, size, channels, boards, views
        self.reduction = 4 if size <= 128 else 2
        self.scale = size * self.reduction
        self.designs = draw_product(seed, self.scale)
        self.looks = [self._look(np.random.default_rng([seed, 1, board])) for board in range(boards)]
        across = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        self.x, self.y = np.meshgrid(across, across)
        threads = np.sin(across * size * 2.1)[:, None] * np.sin(across * size * 2.1)[None, :]
        self.weave = (0.02 * threads).astype(np.float32)

    def _look(self, random: np.random.Generator) -> _Look:
        reach = MISREGISTRATION * self.scale
        shifts = random.uniform(-reach, reach, (2, 2)).round().astype(int)
        coarse = Image.fromarray(random.normal(0, 0.015, (6, 6)).astype(np.float32))
        mottle = coarse.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return _Look(
            tint=random.normal(1, 0.025, 3).astype(np.float32),
            gain=float(random.normal(1, 0.035)),
            legend_shift=(int(shifts[0, 0]), int(shifts[0, 1])),
            opening_shift=(int(shifts[1, 0]), int(shifts[1, 1])),
            mottle=np.asarray(mottle, dtype=np.float32),
        )

    def photograph(self, number: int, row: Row) -> tuple[NDArray[np.uint8], NDArray[np.uint8], tuple[Box, ...]]:
        """Image uint8[H, W] or uint8[H, W, 3], mask uint8[H, W] (255: defect) and boxes."""
        look = self.looks[number % self.boards]
        design = self.designs[number // self.boards % self.views]
        random = np.random.default_rng([self.seed, 2, number])
        shot = self._frame(design, look, random)
        mask = np.zeros((self.size, self.size), np.bool_)
        boxes: list[Box] = []
        wanted = 0 if row.label == OK else 1 + int(random.random() < 0.3)
        for _ in range(_ATTEMPTS):
            if len(boxes) == wanted:
                break
            trial = replace(shot, copper=shot.copper.copy(), surface=shot.surface.copy())
            if not _RENDERERS[row.defect](trial, random):
                continue
            changed = self._visible_change(shot, trial)
            if changed.sum() >= max(3, 4 * (self.size / 64) ** 2):
                shot = trial
                mask |= changed
                boxes.append(bounds(changed, row.defect))
        if wanted and not boxes:
            raise RuntimeError(f"no place for a defect of class {row.defect} in image {number}")
        # Light and noise have their own draw: an NG image differs from its OK twin by the defect alone.
        light = np.random.default_rng([self.seed, 3, number])
        return self._develop(shot, look, light), mask.astype(np.uint8) * 255, tuple(boxes)

    def _frame(self, design: Design, look: _Look, random: np.random.Generator) -> _Shot:
        reach = JITTER * self.scale
        dx, dy = (int(value) for value in random.uniform(-reach, reach, 2).round())

        def crop(layer: Image.Image, shift: tuple[int, int] = (0, 0)) -> Image.Image:
            corner = round(MARGIN * self.scale)
            x, y = corner + dx + shift[0], corner + dy + shift[1]
            return layer.crop((x, y, x + self.scale, y + self.scale))

        def seen(point: Point) -> Point:
            return (point[0] * self.scale - dx, point[1] * self.scale - dy)

        return _Shot(
            copper=crop(design.copper),
            opening=crop(design.opening, look.opening_shift),
            hole=crop(design.hole),
            legend=crop(design.legend, look.legend_shift),
            nets=crop(design.nets),
            surface=Image.new("L", (self.scale, self.scale)),
            surface_colour=_LEGEND,
            segments=[
                Segment(seen(piece.start), seen(piece.end), piece.width * self.scale, piece.net)
                for piece in design.segments
            ],
            scale=self.scale,
        )

    def _reduced(self, layer: Image.Image) -> Floats:
        return np.asarray(layer.reduce(self.reduction), dtype=np.float32) / np.float32(255)

    def _visible_change(self, before: _Shot, after: _Shot) -> NDArray[np.bool_]:
        copper = np.abs(self._reduced(after.copper) - self._reduced(before.copper))
        hidden = np.maximum(self._reduced(after.legend), self._reduced(after.hole))
        surface = self._reduced(after.surface) - self._reduced(before.surface)
        visible: NDArray[np.bool_] = np.maximum(copper * (1 - hidden), surface) >= _MASK_THRESHOLD
        return visible

    def _develop(self, shot: _Shot, look: _Look, random: np.random.Generator) -> NDArray[np.uint8]:
        copper, opening, hole = (self._reduced(layer) for layer in (shot.copper, shot.opening, shot.hole))
        legend, surface = self._reduced(shot.legend), self._reduced(shot.surface)

        texture = (1 + look.mottle + self.weave)[..., None]
        board = _mix(_SUBSTRATE * texture, _COVERED_COPPER, copper)
        grain = 1 + random.normal(0, 0.05, (self.size, self.size, 1)).astype(np.float32)
        bare = _mix(np.broadcast_to(_LAMINATE, board.shape), _FINISH * grain, copper)
        board = _mix(board, bare, opening)
        # Copper stands out of the board: its edges catch the light on one side and lie in shadow on the other.
        slope_y, slope_x = np.gradient(copper + 0.6 * opening * copper)
        board += (0.16 * (slope_x + 0.7 * slope_y))[..., None]
        board = _mix(board, _HOLE, hole)
        board = _mix(board, _LEGEND * 0.97, legend * 0.93)
        board = _mix(board, shot.surface_colour, surface)

        slant = random.normal(0, 0.05, 2)
        light = 1 + slant[0] * self.x + slant[1] * self.y - 0.18 * (self.x**2 + self.y**2)
        board *= (light * look.gain * random.normal(1, 0.015)).astype(np.float32)[..., None] * look.tint
        pixels = np.clip(board * 255, 0, 255).astype(np.uint8)
        blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.45 * self.size / 64))
        seen = np.asarray(blurred, dtype=np.float32)
        if self.channels == 1:
            seen = (seen @ _LUMA)[..., None]
        noise = random.normal(0, 1, seen.shape).astype(np.float32) * (1.0 + 0.014 * seen)
        final: NDArray[np.uint8] = np.clip(seen + noise + 0.5, 0, 255).astype(np.uint8)
        return final[..., 0] if self.channels == 1 else final


def _mix(under: Floats, over: Floats, share: Floats) -> Floats:
    alpha = share[..., None]
    return under * (1 - alpha) + over * alpha


def _spot(shot: _Shot, random: np.random.Generator) -> tuple[Point, Point, Point, Segment] | None:
    """A random place on a trace, well inside the image: the point, the direction along and across, the segment."""
    piece = shot.segments[random.integers(len(shot.segments))]
    start, end = np.asarray(piece.start), np.asarray(piece.end)
    length = float(np.linalg.norm(end - start))
    if length < piece.width:
        return None
    x, y = start + (end - start) * random.uniform(0.1, 0.9)
    if not (0.08 * shot.scale < x < 0.92 * shot.scale and 0.08 * shot.scale < y < 0.92 * shot.scale):
        return None
    along = (end - start) / length
    # Under a pad there is no trace to be damaged.
    if shot.opening.getpixel((int(x), int(y))):
        return None
    return (float(x), float(y)), (float(along[0]), float(along[1])), (-float(along[1]), float(along[0])), piece


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, fill: int) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _open(shot: _Shot, random: np.random.Generator) -> bool:
    if (spot := _spot(shot, random)) is None:
        return False
    (x, y), (ax, ay), (nx, ny), piece = spot
    half, reach = random.uniform(0.3, 0.9) * piece.width, 0.65 * piece.width
    corners = []
    for side, edge in ((-1, -1), (0, -1), (1, -1), (1, 1), (0, 1), (-1, 1)):
        along = edge * half * random.uniform(0.75, 1.25)
        corners.append((x + ax * along + nx * side * reach, y + ay * along + ny * side * reach))
    ImageDraw.Draw(shot.copper).polygon(corners, fill=0)
    return True


def _mousebite(shot: _Shot, random: np.random.Generator) -> bool:
    if (spot := _spot(shot, random)) is None:
        return False
    (x, y), (ax, ay), (nx, ny), piece = spot
    side = random.choice([-1, 1]) * piece.width / 2
    draw = ImageDraw.Draw(shot.copper)
    for step in range(int(random.integers(1, 4))):
        radius = random.uniform(0.38, 0.6) * piece.width
        along = step * 0.55 * piece.width
        _disc(draw, x + nx * side + ax * along, y + ny * side + ay * along, radius, 0)
    return True


def _spur(shot: _Shot, random: np.random.Generator) -> bool:
    if (spot := _spot(shot, random)) is None:
        return False
    (x, y), (ax, ay), (nx, ny), piece = spot
    side = float(random.choice([-1, 1]))
    reach = piece.width / 2 + random.uniform(0.35, 0.75) * (PITCH * shot.scale - piece.width)
    base, lean = random.uniform(0.4, 0.75) * piece.width, random.uniform(-0.4, 0.4) * piece.width
    tip = (x + nx * side * reach + ax * lean, y + ny * side * reach + ay * lean)
    draw = ImageDraw.Draw(shot.copper)
    draw.polygon([(x - ax * base, y - ay * base), tip, (x + ax * base, y + ay * base)], fill=255)
    _disc(draw, *tip, 0.17 * piece.width, 255)
    return True


def _short(shot: _Shot, random: np.random.Generator) -> bool:
    if (spot := _spot(shot, random)) is None:
        return False
    (x, y), _, (nx, ny), piece = spot
    side = float(random.choice([-1, 1]))
    angle = random.uniform(-0.35, 0.35)
    dx = side * (nx * np.cos(angle) - ny * np.sin(angle))
    dy = side * (nx * np.sin(angle) + ny * np.cos(angle))
    left_trace = False
    for step in range(int(0.3 * shot.scale)):
        px, py = x + dx * step, y + dy * step
        if not (0 <= px < shot.scale and 0 <= py < shot.scale):
            return False
        net = shot.nets.getpixel((int(px), int(py)))
        left_trace = left_trace or net == 0
        if left_trace and net not in (0, piece.net):
            draw = ImageDraw.Draw(shot.copper)
            width = random.uniform(0.4, 0.95) * piece.width
            draw.line([(x, y), (px + dx * 2, py + dy * 2)], fill=255, width=max(2, round(width)))
            _disc(draw, px, py, width * 0.65, 255)
            return True
    return False


def _pinhole(shot: _Shot, random: np.random.Generator) -> bool:
    radius = random.uniform(0.02, 0.034) * shot.scale
    centres = random.uniform(0.08, 0.92, (256, 1, 2)) * shot.scale
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    rings = np.array([0.0, radius / 2, radius + 1])[:, None, None]
    around = (centres + (rings * np.stack([np.cos(angles), np.sin(angles)], axis=1)).reshape(-1, 2)).astype(int)
    # A hole is drilled through copper and board alike: there, missing copper is nothing to see.
    copper = (np.asarray(shot.copper) == 255) & (np.asarray(shot.hole) == 0)
    enclosed = copper[around[..., 1], around[..., 0]].all(axis=1)
    if not enclosed.any():
        return False
    x, y = centres[enclosed.argmax(), 0]
    _disc(ImageDraw.Draw(shot.copper), float(x), float(y), radius, 0)
    return True


def _scratch(shot: _Shot, random: np.random.Generator) -> bool:
    start = random.uniform(0.1, 0.9, 2) * shot.scale
    heading, bend = random.uniform(0, 2 * np.pi), random.normal(0, 0.25)
    step = random.uniform(0.06, 0.14) * shot.scale
    points = [start]
    for _ in range(6):
        points.append(points[-1] + step * np.array([np.cos(heading), np.sin(heading)]))
        heading += bend + random.normal(0, 0.08)
    strength = int(255 * random.uniform(0.45, 0.9))
    width = max(1, round(random.uniform(0.014, 0.03) * shot.scale))
    path = [(float(x), float(y)) for x, y in points]
    ImageDraw.Draw(shot.surface).line(path, fill=strength, width=width, joint="curve")
    shot.surface_colour = np.array([0.66, 0.72, 0.62], np.float32)
    return True


def _contamination(shot: _Shot, random: np.random.Generator) -> bool:
    centre = random.uniform(0.15, 0.85, 2) * shot.scale
    strength = int(255 * random.uniform(0.45, 0.9))
    draw = ImageDraw.Draw(shot.surface)
    for _ in range(int(random.integers(3, 8))):
        x, y = centre + random.normal(0, 0.035, 2) * shot.scale
        width, height = random.uniform(0.025, 0.07, 2) * shot.scale
        draw.ellipse((x - width, y - height, x + width, y + height), fill=strength)
    shot.surface = shot.surface.filter(ImageFilter.GaussianBlur(0.008 * shot.scale))
    dark, pale = np.array([0.16, 0.11, 0.06], np.float32), np.array([0.62, 0.55, 0.42], np.float32)
    shot.surface_colour = dark if random.random() < 0.6 else pale
    return True


_RENDERERS: dict[str, Callable[[_Shot, np.random.Generator], bool]] = {
    "open": _open,
    "short": _short,
    "mousebite": _mousebite,
    "spur": _spur,
    "pinhole": _pinhole,
    "scratch": _scratch,
    "contamination": _contamination,
}
DEFECTS = tuple(_RENDERERS)
"""The defect classes, in the order in which NG images take turns."""
