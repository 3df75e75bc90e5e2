"""Generators that need no training: each image is one OK or NG view with something done to it.

Notable here:
- An image is a function of run, seed and class: it draws from a stream of random numbers of its own.
- What a run keeps (`drawing.pt`) holds the views themselves, so more can be drawn where the data set is gone.
- A mask says what can be seen: pixels that came out as they were are no defect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kizu.errors import UserError
from kizu.files import atomic_file
from kizu.training.data.crops import SPECK, UNNAMED
from kizu.training.data.synthetic import Batch
from kizu.training.generators.trained import interleaved
from kizu.training.generators.views import Materials

FILE = "drawing.pt"
FORMAT = 1
VISIBLE = 12.0
"""Least change of a pixel, of 255, that counts as a defect's."""
LEAST = SPECK
"""Pixels that a drawn defect has at least."""
ATTEMPTS = 24

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Drawn(NamedTuple):
    """One synthetic image."""

    image: NDArray[np.uint8]
    """[C, h, w]."""
    mask: Mask
    """[h, w]."""


class Generator(Protocol):
    """Whatever draws synthetic NG."""

    @property
    def kind(self) -> str: ...
    @property
    def run(self) -> str: ...

    def class_numbers(self, count: int, wanted: str | None = None) -> list[int]:
        """The classes of `count` images; a longer list begins with a shorter one."""
        ...

    def name(self, number: int) -> str:
        """The class of this number."""
        ...

    def draw(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> Batch:
        """One image for each seed and class number."""
        ...


class Drawer(Protocol):
    """A way to draw: made from its configuration and its materials."""

    def draw(self, rng: np.random.Generator, name: str) -> Drawn:
        """One image of the class `name`."""
        ...


@dataclass(frozen=True)
class DrawingGenerator:
    """A `Drawer` behind the interface of a trained generator; `truncation` does not apply to it."""

    kind: str
    run: str
    config: Any
    materials: Materials
    drawer: Drawer
    classes: tuple[str, ...] = (UNNAMED,)
    counts: tuple[int, ...] = (1,)
    """How often each class comes, in proportion."""

    def class_numbers(self, count: int, wanted: str | None = None) -> list[int]:
        """The classes of `count` images: `wanted`, or in proportion to `counts`, evenly interleaved.

        Raises:
            UserError: no defect of this class is drawn.
        """
        if wanted is None:
            return interleaved(self.counts, count)
        if wanted not in self.classes:
            raise UserError(
                f"The generator never saw the defect class '{wanted}'.", f"It knows: {', '.join(self.classes)}."
            )
        return [self.classes.index(wanted)] * count

    def name(self, number: int) -> str:
        """The class of this number; `NG` where what is drawn is like no class in particular."""
        return self.classes[number]

    def draw(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> Batch:
        """One image with its mask for each seed and class number."""
        del truncation
        drawn = [self._one(seed, number) for seed, number in zip(seeds, numbers, strict=True)]
        return as_batch(drawn, [self.name(n) for n in numbers], seeds)

    def _one(self, seed: int, number: int) -> Drawn:
        return self.drawer.draw(np.random.default_rng((seed, number)), self.name(number))

    def batches(
        self, count: int, *, seed: int = 0, wanted: str | None = None, truncation: float = 1.0, size: int = 32
    ) -> Iterator[Batch]:
        """`count` images, seeds counting up from `seed`."""
        return batches(self, count, seed=seed, wanted=wanted, truncation=truncation, size=size)

    def save(self, folder: Path) -> Path:
        """Write `drawing.pt`, whole or not at all."""
        return save(folder, self.kind, self.run, dataclasses.asdict(self.config), self.materials.state())


def as_batch(drawn: Sequence[Drawn], classes: list[str], seeds: Sequence[int]) -> Batch:
    """What was drawn, as `write_synthetic` takes it."""
    images = torch.from_numpy(np.stack([image for image, _ in drawn]))
    masks = torch.from_numpy(np.stack([mask for _, mask in drawn]).astype(np.uint8) * 255)[:, None]
    return Batch(images, classes, list(seeds), masks)


def batches(
    generator: Generator,
    count: int,
    *,
    seed: int = 0,
    wanted: str | None = None,
    truncation: float = 1.0,
    size: int = 32,
) -> Iterator[Batch]:
    """`count` images of any generator, `size` at a time."""
    numbers = generator.class_numbers(count, wanted)
    for start in range(0, count, size):
        chunk = numbers[start : start + size]
        yield generator.draw(range(seed + start, seed + start + len(chunk)), chunk, truncation)


def save(folder: Path, kind: str, run: str, config: dict[str, Any], content: dict[str, Any]) -> Path:
    """Write `drawing.pt`: tensors and plain values only."""
    path = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, "kind": kind, "run": run, "config": config, "content": content}, file)
    return path


def read(folder: Path) -> dict[str, Any]:
    """What `save` wrote.

    Raises:
        UserError: there is none, or it is damaged or from a newer Kizu.
    """
    path = folder / FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        written = state["format"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {FILE}.", "Continue the run with kizu train … --resume.") from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", "Continue the run with kizu train … --resume.") from error
    if written != FORMAT:
        raise UserError(f"{path} has format {written}, not {FORMAT}.", "Update Kizu.")
    return dict(state)


def visible_change(before: Floats, after: Floats, within: Mask) -> Mask:
    """The pixels of `within` that changed so that it can be seen, with small gaps closed: bool [h, w].

    Args:
        before, after: [C, h, w] from 0 to 255.
    """
    changed = (np.abs(after - before).max(axis=0) >= VISIBLE) & within
    return np.asarray(ndimage.binary_closing(np.pad(changed, 1), np.ones((3, 3), bool))[1:-1, 1:-1] & within)


def until_visible(attempt: Callable[[], Drawn]) -> Drawn:
    """The first attempt whose defect can be seen, or else the one that shows most.

    Raises:
        UserError: nothing of any attempt can be seen.
    """
    best: Drawn | None = None
    for _ in range(ATTEMPTS):
        drawn = attempt()
        if drawn.mask.sum() >= LEAST:
            return drawn
        if best is None or drawn.mask.sum() > best.mask.sum():
            best = drawn
    assert best is not None
    if not best.mask.any():
        raise UserError(
            f"In {ATTEMPTS} attempts nothing was drawn that can be seen: the OK images show next to nothing.",
            "Look at the OK images and at [image] in the recipe, or choose another generator.",
        )
    return best


def to_bytes(image: Floats) -> NDArray[np.uint8]:
    """Rounded and clipped."""
    return np.rint(image).clip(0, 255).astype(np.uint8)


def to_unit(images: Tensor) -> Tensor:
    """uint8 → float32 in [−1, 1]."""
    return images.to(torch.float32) / 127.5 - 1
