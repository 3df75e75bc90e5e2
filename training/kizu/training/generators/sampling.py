"""Samples of synthetic NG: the interfaces of whatever gives them, and what ways to synthesise share.

Notable here:
- A mask marks what can be seen: pixels that came out unchanged are no defect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kizu.errors import UserError
from kizu.training.data.crops import SPECK
from kizu.training.data.synthetic import SyntheticBatch

VISIBLE = 12.0
"""Least change of a pixel, of 255, that counts as a defect's."""
LEAST = SPECK
"""Pixels that a defect has at least."""
ATTEMPTS = 24

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Sample(NamedTuple):
    """One synthetic image and its mask."""

    image: NDArray[np.uint8]
    """[C, h, w]."""
    mask: Mask
    """[h, w]."""


class DefectGenerator(Protocol):
    """A source of synthetic NG, trained or not."""

    @property
    def kind(self) -> str:
        """Name of the way to synthesise, as in a recipe."""
        ...

    @property
    def run(self) -> str:
        """Name and digest, as they stand in a synthetic image's origin."""
        ...

    def class_numbers(self, count: int, defect_class: str | None = None) -> list[int]:
        """Return the classes of `count` images; a longer list begins with a shorter one."""
        ...

    def name(self, number: int) -> str:
        """Return the name of a class."""
        ...

    def sample(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> SyntheticBatch:
        """Return one image for each seed and class number."""
        ...


class Sampler(Protocol):
    """A way to alter camera images, made from its configuration and its materials."""

    def sample(self, rng: np.random.Generator, name: str) -> Sample:
        """Return one image of the class `name`."""
        ...


def as_batch(samples: Sequence[Sample], classes: list[str], seeds: Sequence[int]) -> SyntheticBatch:
    """Stack samples into the batch that `write_synthetic` takes."""
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    masks = torch.from_numpy(np.stack([mask for _, mask in samples]).astype(np.uint8) * 255)[:, None]
    return SyntheticBatch(images, classes, list(seeds), masks)


def batches(
    generator: DefectGenerator,
    count: int,
    *,
    seed: int = 0,
    defect_class: str | None = None,
    truncation: float = 1.0,
    size: int = 32,
) -> Iterator[SyntheticBatch]:
    """Yield `count` images of any generator, `size` at a time, seeds counting up from `seed`."""
    numbers = generator.class_numbers(count, defect_class)
    for start in range(0, count, size):
        chunk = numbers[start : start + size]
        yield generator.sample(range(seed + start, seed + start + len(chunk)), chunk, truncation)


def visible_change(before: Floats, after: Floats, within: Mask) -> Mask:
    """Mark the pixels of `within` that changed visibly, with small gaps closed: bool [h, w].

    Args:
        before, after: [C, h, w] from 0 to 255.
    """
    changed = (np.abs(after - before).max(axis=0) >= VISIBLE) & within
    return np.asarray(ndimage.binary_closing(np.pad(changed, 1), np.ones((3, 3), bool))[1:-1, 1:-1] & within)


def until_visible(attempt: Callable[[], Sample]) -> Sample:
    """Return the first attempt whose defect can be seen, or else the one that shows most.

    Raises:
        UserError: nothing of any attempt can be seen.
    """
    best: Sample | None = None
    for _ in range(ATTEMPTS):
        sample = attempt()
        if sample.mask.sum() >= LEAST:
            return sample
        if best is None or sample.mask.sum() > best.mask.sum():
            best = sample
    assert best is not None
    if not best.mask.any():
        raise UserError(
            f"In {ATTEMPTS} attempts nothing was drawn that can be seen: the OK images show next to nothing.",
            "Look at the OK images and at [image] in the recipe, or choose another generator.",
        )
    return best


def to_bytes(image: Floats) -> NDArray[np.uint8]:
    """Round and clip to uint8."""
    return np.rint(image).clip(0, 255).astype(np.uint8)


def to_unit(images: Tensor) -> Tensor:
    """Scale uint8 to float32 in [−1, 1]."""
    return images.to(torch.float32) / 127.5 - 1
