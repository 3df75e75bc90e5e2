"""Positions for a piece of an NG image: those in OK views whose surroundings are most like its own.

Notable here:
- What is compared is the ring, the piece's pixels around the defect; the defect itself has no say.
- Light differs from part to part, so the mean difference of each channel is taken out first, up to a bound, and
  returned with the position.
- Each search looks at a random third of the views, so that of few views the best does not always win.
- Two passes: some hundreds of random positions by a few hundred pixels of the ring, then the best of them shifted by a
  pixel or two and compared by more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Positions = NDArray[np.int64]
"""[P, 3]: view, top and left of each; top and left may be negative."""

SCREENED_BY, COMPARED_BY = 256, 2048
"""Pixels of the ring, at most."""
REFINED = 8
"""Positions that the second pass moves about."""
REACH = 2
"""Pixels that it moves them by."""
LEAST_RING = 0.4
"""Share of the ring that must lie in the view."""
LIGHT = 32.0
"""Most that a piece is brightened or darkened, of 255: what differs by more is another material, not another light."""


@dataclass(frozen=True)
class Position:
    """A position for a piece."""

    view: int
    top: int
    left: int
    offset: Floats
    """[C]: to add to the piece, so that it is lit as the view is."""
    difference: float
    """Mean absolute difference of the rings after that, of 255."""


def find_positions(
    piece: Floats,
    ring: Mask,
    views: Tensor,
    rng: np.random.Generator,
    *,
    candidates: int = 1024,
    overhang: tuple[int, int] = (0, 0),
) -> list[Position]:
    """Find positions for a piece, the best first: at most `REFINED`, none where no candidate shows enough of the ring.

    Args:
        piece: [C, h, w] from 0 to 255.
        ring: its pixels to compare, bool [h, w].
        views: uint8 [M, C, H, W] with H ≥ h and W ≥ w.
        candidates: pairs of a view and a position in it that are looked at.
        overhang: pixels that the piece may stick out of a view, down and across.
    """
    height, width = piece.shape[1:]
    down, across = views.shape[2] - height + overhang[0], views.shape[3] - width + overhang[1]
    positions = np.stack(
        [
            rng.choice(rng.permutation(len(views))[: -(-len(views) // 3)], candidates),
            rng.integers(-overhang[0], down + 1, candidates),
            rng.integers(-overhang[1], across + 1, candidates),
        ],
        axis=1,
    )
    screened, _ = ring_difference(piece, _thinned(ring, SCREENED_BY), views, positions)
    best = positions[np.argsort(screened, kind="stable")[:REFINED]]
    steps = np.arange(-REACH, REACH + 1)
    shifts = np.stack([np.zeros(len(steps) ** 2, np.int64), *(s.ravel() for s in np.meshgrid(steps, steps))], axis=1)
    moved = best[:, None] + shifts[None]
    moved[..., 1] = moved[..., 1].clip(-overhang[0], down)
    moved[..., 2] = moved[..., 2].clip(-overhang[1], across)
    differences, offsets = ring_difference(piece, _thinned(ring, COMPARED_BY), views, moved.reshape(-1, 3))
    differences, offsets = differences.reshape(len(best), -1), offsets.reshape(len(best), len(shifts), -1)
    winners = differences.argmin(axis=1)
    found = []
    for i, k in enumerate(winners):
        view, top, left = (int(n) for n in moved[i, k])
        if np.isfinite(differences[i, k]):
            found.append(Position(view, top, left, offsets[i, k], float(differences[i, k])))
    return sorted(found, key=lambda position: position.difference)


def ring_difference(piece: Floats, ring: Mask, views: Tensor, positions: Positions) -> tuple[Floats, Floats]:
    """Return each position's mean absolute difference of the rings [P] and mean difference of each channel [P, C].

    The former is what is left once the latter is taken out.

    No more than `LIGHT` is taken out, and a quarter of it is added to the difference: of two positions, the one whose
    light is right already.

    Infinite where less than `LEAST_RING` of the ring lies in the view.
    """
    y, x = np.nonzero(ring)
    rows, columns = positions[:, 1, None] + y[None], positions[:, 2, None] + x[None]
    inside = (rows >= 0) & (rows < views.shape[2]) & (columns >= 0) & (columns < views.shape[3])
    rows, columns = rows.clip(0, views.shape[2] - 1), columns.clip(0, views.shape[3] - 1)
    at = (torch.from_numpy(part) for part in (positions[:, 0, None], rows, columns))
    view, row, column = at
    seen = views[view, :, row, column].numpy().astype(np.float32)  # [P, K, C]
    weight = (inside / np.maximum(inside.sum(1, keepdims=True), 1)).astype(np.float32)[..., None]
    difference = seen - piece[:, y, x].T[None]
    offset = (difference * weight).sum(axis=1).clip(-LIGHT, LIGHT)
    mean = ((np.abs(difference - offset[:, None]) * weight).sum(axis=1) + np.abs(offset) / 4).mean(axis=1)
    mean[inside.mean(axis=1) < LEAST_RING] = np.inf
    return mean, offset


def laid_out(piece: Floats, top: int, left: int, height: int, width: int) -> tuple[Floats, Mask]:
    """Lay the piece [C, h, w] into a frame [C, height, width], its edges repeated outside; return it and its mask."""
    rows, columns = np.arange(height) - top, np.arange(width) - left
    inside = ((rows >= 0) & (rows < piece.shape[1]))[:, None] & ((columns >= 0) & (columns < piece.shape[2]))[None]
    frame = piece[:, rows.clip(0, piece.shape[1] - 1)[:, None], columns.clip(0, piece.shape[2] - 1)[None]]
    return frame, inside


def _thinned(ring: Mask, most: int) -> Mask:
    """At most so many pixels of the ring, evenly spread."""
    indices = np.flatnonzero(ring)
    thin = np.zeros(ring.size, bool)
    thin[indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).round().astype(np.int64)]] = True
    return thin.reshape(ring.shape)
