"""Defects of synthetic NG crops, placed in real OK views with their masks.

Notable here:
- A crop goes where the view looks most like the crop's surroundings; what then still differs, about where real defects
  lie in their crops, is the defect.
- A pixel differs if no pixel within one step of it has its value: edges that meet imperfectly are no defect.
- Only the defect is taken over, with a soft or a Poisson-blended border: the rest of the image is a camera's.
- Where tile and crop are alike in size, the crop may stick out of the tile: defects are not always in the middle.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass as config_dataclass
from scipy import ndimage
from torch import Tensor

from kizu.errors import UserError
from kizu.models.config import STRICT
from kizu.training.data.crops import SPECK, Crops
from kizu.training.data.synthetic import SyntheticBatch
from kizu.training.generators.blending import feather, poisson_blend
from kizu.training.generators.positions import Position, find_positions, laid_out
from kizu.training.generators.sampling import (
    VISIBLE,
    Floats,
    Mask,
    Sample,
    as_batch,
    batches,
    to_bytes,
    visible_change,
)
from kizu.training.generators.trained import TrainedGenerator

SMALLEST = 8
"""Least side of a crop in pixels of the view."""
OFTEN, SELDOM = 0.1, 0.05
"""Centre: pixels that show a defect in at least a tenth as many crops as the most frequent pixel. Ring: pixels that
show one in at most one of twenty crops."""
LEAST_RING = 0.25
"""Share of the crop that the ring is, at least; where defects lie anywhere, all of the crop is compared instead."""
LARGEST = 0.5
"""Share of the crop that a defect covers at most."""
LEAST_INSIDE = 0.8
"""Share of a defect that stays inside the view."""
RETRIES = 12
"""Further crops that are sampled where one shows no defect anywhere; an image still is a function of its seed."""
ANYWHERE = 64
"""Positions that are tried, whatever their surroundings, for a crop that shows no defect where it fits best."""
MINOR = 0.2
"""Parts of a defect smaller than this share of the largest are left out."""


@config_dataclass(frozen=True, config=STRICT)
class PlacingConfig:
    """Fields of `[generator.options]` where `generator.placed` is true."""

    blend: Literal["feather", "poisson"] = "feather"
    """`feather`, or `poisson`."""
    candidates: int = Field(default=1024, ge=1)
    """Pairs of an OK view and a place in it that are compared for each image."""
    soft: float = Field(default=2.0, ge=0)
    """Pixels over which a feathered border fades."""
    overhang: float = Field(default=0.25, ge=0, lt=0.5)
    """How far a crop about as large as the view may stick out of it, as a share of its side."""
    sensitivity: float = Field(default=6.0, ge=0)
    """k: what differs by more than median + k · MAD of the ring's differences is the defect."""


OPTIONS = tuple(field.name for field in dataclasses.fields(PlacingConfig))


@dataclass(frozen=True)
class DefectStatistics:
    """Position and size of real defects of one class in their crops."""

    frequency: Tensor
    """Share of crops that show a defect at each pixel, float32 [h, w]."""
    size: tuple[float, float]
    """Median height and width in pixels."""

    @property
    def centre(self) -> Mask:
        """Region in which a defect is looked for."""
        frequency = self.frequency.numpy()
        return np.asarray(ndimage.binary_dilation(frequency >= max(OFTEN * frequency.max(), 1e-6)))

    @property
    def ring(self) -> Mask:
        """Region in which a crop shows its surroundings."""
        ring = self.frequency.numpy() <= SELDOM
        return np.asarray(ring if ring.mean() >= LEAST_RING else np.ones_like(ring))

    @property
    def ellipse(self) -> Mask:
        """Outline of a defect of the typical size at the typical position."""
        frequency = self.frequency.numpy()
        y, x = ndimage.center_of_mass(frequency)
        rows, columns = np.mgrid[: frequency.shape[0], : frequency.shape[1]]
        return np.asarray(((rows - y) * 2 / self.size[0]) ** 2 + ((columns - x) * 2 / self.size[1]) ** 2 <= 1)


def defect_statistics(masks: Tensor) -> DefectStatistics:
    """Compute the statistics from masks of real crops, uint8 [K, 1, h, w], none of them empty."""
    solid = masks[:, 0] >= masks.flatten(1).amax(1).clamp(max=128)[:, None, None]
    sides = [[float(part.any(axis).sum()) for axis in (1, 0)] for part in solid]
    down, across = np.median(np.array(sides), axis=0)
    return DefectStatistics(solid.float().mean(0), (float(max(down, 2)), float(max(across, 2))))


@dataclass(frozen=True)
class PlacedGenerator:
    """Generator that places the defects of a trained generator of crops in OK views."""

    crops: TrainedGenerator
    views: Tensor
    """uint8 [M, C, H, W]."""
    size: tuple[int, int]
    """Height and width of a crop in pixels of a view."""
    statistics: dict[str, DefectStatistics]
    """By class; under the empty name, of all."""
    config: PlacingConfig
    run: str
    """Identifies it; not the name of the generator of crops."""

    @property
    def kind(self) -> str:
        """Kind of the generator of crops."""
        return self.crops.kind

    def class_numbers(self, count: int, defect_class: str | None = None) -> list[int]:
        """See `TrainedGenerator`."""
        return self.crops.class_numbers(count, defect_class)

    def name(self, number: int) -> str:
        """See `TrainedGenerator`."""
        return self.crops.name(number)

    def batches(
        self, count: int, *, seed: int = 0, defect_class: str | None = None, truncation: float = 1.0, size: int = 32
    ) -> Iterator[SyntheticBatch]:
        """Yield `count` views with a defect each, seeds counting up from `seed`."""
        return batches(self, count, seed=seed, defect_class=defect_class, truncation=truncation, size=size)

    def sample(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> SyntheticBatch:
        """Return one view with a defect, and its mask, for each seed and class number."""
        streams = [np.random.default_rng((seed, number, 1)) for seed, number in zip(seeds, numbers, strict=True)]
        placed: dict[int, Sample] = {}
        latent = list(seeds)
        for retries_left in range(RETRIES, -1, -1):
            left = [index for index in range(len(latent)) if index not in placed]
            if not left:
                break
            crops = self.crops.images([latent[i] for i in left], [numbers[i] for i in left], truncation)
            for i, piece in zip(left, to_size(crops, self.size).numpy(), strict=True):
                statistics = self.statistics.get(self.name(numbers[i]), self.statistics[""])
                found = place_crop(piece, statistics, self.views, streams[i], self.config, force=not retries_left)
                if found is not None:
                    placed[i] = found
                latent[i] = int(streams[i].integers(2**31))
        return as_batch([placed[i] for i in range(len(latent))], [self.name(n) for n in numbers], seeds)

    def content(self) -> dict[str, Any]:
        """Return all but the generator of crops, as tensors and plain values, for `from_content`."""
        places = {name: {"frequency": s.frequency, "size": list(s.size)} for name, s in self.statistics.items()}
        return {"views": self.views, "size": list(self.size), "places": places}

    @classmethod
    def from_content(
        cls, crops: TrainedGenerator, content: dict[str, Any], config: PlacingConfig, run: str
    ) -> PlacedGenerator:
        """Restore what `content` returned."""
        statistics = {
            name: DefectStatistics(s["frequency"], (float(s["size"][0]), float(s["size"][1])))
            for name, s in content["places"].items()
        }
        height, width = content["size"]
        return cls(crops, content["views"], (int(height), int(width)), statistics, config, run)


def statistics_by_class(crops: Crops, size: tuple[int, int]) -> dict[str, DefectStatistics]:
    """Compute the statistics of each class in crops of `size`; the empty name stands for all classes.

    Raises:
        UserError: no crop's defect is located.
    """
    located = crops.located
    if crops.masks is None or not located.any():
        raise UserError(
            "generator.placed: none of the train split's NG has boxes or a mask, so where a defect ends and its "
            "surroundings begin cannot be learned.",
            "Give boxes or masks in the manifest, or leave generator.placed out.",
        )
    masks = to_size(crops.masks, size).round().to(torch.uint8)
    located &= (masks != 0).flatten(1).any(1)
    names = [name.partition("+")[0] for name in crops.classes]
    found = {"": defect_statistics(masks[located])}
    for name in sorted(set(names)):
        own = torch.tensor([other == name for other in names]) & located
        if own.any():
            found[name] = defect_statistics(masks[own])
    return found


def size_in_view(window: tuple[float, float], scale: tuple[float, float], view: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) in pixels of a view of a crop whose window is (height, width) source pixels.

    Raises:
        UserError: it is larger than the view, or too small to see anything of it.
    """
    height, width = (max(1, round(side * factor)) for side, factor in zip(window, scale, strict=True))
    shown = f"generator.placed: crops of {window[1]:.0f}×{window[0]:.0f} source pixels are {width}×{height} pixels in "
    shown += f"the {view[1]}×{view[0]} that the detector sees, "
    if height > view[0] or width > view[1]:
        raise UserError(f"{shown}and do not fit.", "Lower generator.crop.")
    if min(height, width) < SMALLEST:
        raise UserError(
            f"{shown}too few to show a defect.", "Raise generator.crop or image.size, or inspect in tiles (image.tile)."
        )
    return height, width


def place_crop(
    piece: Floats,
    statistics: DefectStatistics,
    views: Tensor,
    rng: np.random.Generator,
    config: PlacingConfig,
    *,
    force: bool = True,
) -> Sample | None:
    """Put the crop's defect, [C, h, w] from 0 to 255, into one of the views, uint8 [M, C, H, W].

    Where no position shows a defect: None; with `force`, what can be seen of it within an ellipse of the typical size,
    if need be at a position that does not match.

    Raises:
        UserError: with `force`, where nothing can be seen anywhere: an image without a defect must not be called NG.
    """
    sides = views.shape[2:]
    near = [piece.shape[1 + side] > 0.75 * sides[side] for side in (0, 1)]
    overhang = tuple(round(config.overhang * piece.shape[1 + side]) * near[side] for side in (0, 1))
    ring, centre = statistics.ring, statistics.centre
    positions = find_positions(
        piece, ring, views, rng, candidates=config.candidates, overhang=(overhang[0], overhang[1])
    )
    tried = []
    for position in positions or [Position(0, 0, 0, np.zeros(len(piece), np.float32), np.inf)]:
        view = views[position.view].numpy().astype(np.float32)
        source, there = laid_out(piece + position.offset[:, None, None], position.top, position.left, *sides)
        about, around, typical = (
            laid_out(mask[None].astype(np.float32), position.top, position.left, *sides)[0][0].astype(bool) & there
            for mask in (centre, ring, statistics.ellipse)
        )
        mask = differing(view, source, around, about, there, config.sensitivity)
        if SPECK <= mask.sum() <= LARGEST * centre.size and _mostly_inside(mask, position, piece.shape[1:]):
            return _put(view, source, mask, config)
        tried.append((int(visible_change(view, source, typical).sum()), view, source, typical))
    if not force:
        return None
    shown, view, source, typical = max(tried, key=lambda attempt: attempt[0])
    if shown < min(SPECK, statistics.ellipse.sum()):
        shown, view, source, typical = max(_anywhere(piece, statistics, views, rng), key=lambda attempt: attempt[0])
    if not shown:
        raise UserError(
            "generator.placed: the generator draws crops that cannot be told from OK images.",
            "Train it longer (generator.kimg), and look at generator/grid.png.",
        )
    return _put(view, source, visible_change(view, source, typical), config)


def _anywhere(
    piece: Floats, statistics: DefectStatistics, views: Tensor, rng: np.random.Generator
) -> list[tuple[int, Floats, Floats, Mask]]:
    """Try random positions: (visibly differing pixels in the ellipse, view, piece laid out, ellipse) of each."""
    height, width = views.shape[2:]
    found = []
    for _ in range(ANYWHERE):
        view = views[int(rng.integers(len(views)))].numpy().astype(np.float32)
        top, left = (
            int(rng.integers(side - own + 1)) for side, own in zip((height, width), piece.shape[1:], strict=True)
        )
        source, there = laid_out(piece, top, left, height, width)
        typical = (
            laid_out(statistics.ellipse[None].astype(np.float32), top, left, height, width)[0][0].astype(bool) & there
        )
        found.append((int(visible_change(view, source, typical).sum()), view, source, typical))
    return found


def differing(view: Floats, source: Floats, ring: Mask, centre: Mask, there: Mask, sensitivity: float) -> Mask:
    """Return the connected parts of what differs that touch the centre, without holes and slightly grown: bool [H, W].

    A difference counts above median + k · MAD of the ring's, and above what can be seen.
    """
    window = (1, 3, 3)
    above = source - ndimage.maximum_filter(view, window, mode="nearest")
    below = ndimage.minimum_filter(view, window, mode="nearest") - source
    difference = ndimage.gaussian_filter(np.maximum(np.maximum(above, below), 0).max(axis=0) * there, 0.7)
    level = 1.5 * VISIBLE
    if ring.any():
        median = float(np.median(difference[ring]))
        level = max(level, median + sensitivity * float(np.median(np.abs(difference[ring] - median))))
    labels, count = ndimage.label((difference > level) & there, np.ones((3, 3), bool))
    if not count:
        return np.zeros_like(there)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    touching = np.unique(labels[centre & (labels > 0)])
    cut = np.isin(touching, labels[there & ~ndimage.binary_erosion(there)])  # parts that the crop's own border cuts off
    touching = touching[~cut] if (~cut).any() else touching
    kept = touching[sizes[touching] >= MINOR * max(sizes[touching], default=0)]
    parts = np.pad(np.isin(labels, kept), 3)
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(parts, np.ones((3, 3), bool)))
    return np.asarray(ndimage.binary_dilation(closed)[3:-3, 3:-3] & there)


def to_size(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize [N, C, h, w] to float32 [N, C, *size], without aliasing."""
    x = images.to(torch.float32)
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)


def _mostly_inside(mask: Mask, position: Position, size: tuple[int, ...]) -> bool:
    """Check that a defect does not look cut off: little of it lies along an edge of the view that cuts the crop."""
    cut = np.zeros_like(mask)
    cut[0] |= position.top < 0
    cut[-1] |= position.top + size[0] > mask.shape[0]
    cut[:, 0] |= position.left < 0
    cut[:, -1] |= position.left + size[1] > mask.shape[1]
    return bool((mask & cut).sum() <= (1 - LEAST_INSIDE) * np.sqrt(mask.sum()))


def _put(view: Floats, source: Floats, mask: Mask, config: PlacingConfig) -> Sample:
    if config.blend == "poisson":
        grown = ndimage.binary_dilation(mask, iterations=2)
        return Sample(to_bytes(poisson_blend(view, source, grown)), mask)
    alpha = feather(mask, config.soft)
    return Sample(to_bytes(view + alpha * (source - view)), mask)
