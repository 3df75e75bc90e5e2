"""A trained generator of defects: its file in a run, and images on demand.

Notable here:
- An image is a function of weights, seed, class and ψ: each seed has its own z and its own noise maps, whatever else
  is in the batch.
- One file, tensors and plain values only, read with `weights_only=True`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kizu.errors import UserError
from kizu.files import atomic_file
from kizu.models.stylegan2 import Generator, StyleGAN2Config
from kizu.training.data.loading import to_pixels
from kizu.training.data.synthetic import SyntheticBatch
from kizu.training.priors import Prior, make_prior
from kizu.training.run import GENERATOR_FILE

FORMAT = 1
NOISE = 1 << 31
"""From an image's seed to that of its noise maps; far enough that no other image's z comes from it."""


@dataclass
class TrainedGenerator:
    """The averaged generator with what is needed to use it."""

    network: Generator
    classes: list[str]
    """Defect classes by number; of an unconditional one, all that it saw."""
    counts: list[int]
    """Training images of each class."""
    prior: Prior
    kind: str = "stylegan2-ada"
    run: str = ""
    """Identifies this generator among others of its kind."""
    conditional: bool = False

    @property
    def shape(self) -> StyleGAN2Config:
        """Size, channels and width of the network."""
        return self.network.config

    def class_numbers(self, count: int, defect_class: str | None = None) -> list[int]:
        """Return the classes of `count` images: `defect_class`, or as often as in training, evenly interleaved.

        Raises:
            UserError: the generator never saw the class, or cannot be asked for one.
        """
        if defect_class is None:
            return interleaved(self.counts, count) if self.conditional else [0] * count
        if defect_class not in self.classes:
            raise UserError(
                f"The generator never saw the defect class '{defect_class}'.", f"It knows: {', '.join(self.classes)}."
            )
        if not self.conditional:
            raise UserError(
                f"The generator cannot be asked for '{defect_class}': it was trained without classes.",
                "Train with generator.conditional = true and at least two defect classes.",
            )
        return [self.classes.index(defect_class)] * count

    def name(self, number: int) -> str:
        """Return the name of a class, `NG` where the generator does not tell classes apart."""
        return self.classes[number] if self.conditional or len(self.classes) == 1 else "NG"

    @torch.no_grad()
    def images(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> Tensor:
        """Return one image for each seed and class number: uint8 [N, C, H, W]."""
        device = next(self.network.parameters()).device
        classes = torch.tensor(list(numbers), device=device) if self.conditional else None
        made = self.network(
            self.latents(seeds).to(device),
            classes,
            truncation=truncation,
            noise=[torch.Generator().manual_seed(seed + NOISE) for seed in seeds],
        )
        return to_pixels(made).cpu()

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """Return z [N, latent], each from its seed."""
        with torch.random.fork_rng(devices=[]):
            latents = []
            for seed in seeds:
                torch.manual_seed(seed)
                latents.append(self.prior.sample(1, "cpu"))
        return torch.cat(latents)

    def batches(
        self, count: int, *, seed: int = 0, defect_class: str | None = None, truncation: float = 1.0, size: int = 32
    ) -> Iterator[SyntheticBatch]:
        """Yield `count` images with their classes and seeds, seeds counting up from `seed`."""
        numbers = self.class_numbers(count, defect_class)
        for start in range(0, count, size):
            chunk = numbers[start : start + size]
            seeds = list(range(seed + start, seed + start + len(chunk)))
            yield self.sample(seeds, chunk, truncation)

    def sample(self, seeds: Sequence[int], numbers: Sequence[int], truncation: float = 1.0) -> SyntheticBatch:
        """Return one image for each seed and class number, without masks: where its defects are is not known."""
        return SyntheticBatch(self.images(seeds, numbers, truncation), [self.name(n) for n in numbers], list(seeds))

    def save(self, folder: Path) -> Path:
        """Write `generator.pt`, whole or not at all."""
        path = folder / GENERATOR_FILE
        state: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "run": self.run,
            "conditional": self.conditional,
            "classes": self.classes,
            "counts": self.counts,
            "shape": dataclasses.asdict(self.shape),
            "prior": self.prior.state(),
            "network": {name: value.cpu() for name, value in self.network.state_dict().items()},
        }
        with atomic_file(path) as file:
            torch.save(state, file)
        return path

    @classmethod
    def load(cls, folder: Path) -> TrainedGenerator:
        """Read what `save` wrote.

        Raises:
            UserError: there is none, or it is damaged or from a newer Kizu.
        """
        path = folder / GENERATOR_FILE
        if not path.exists():
            raise UserError(
                f"{folder} holds no trained generator.",
                "Give a run whose recipe has a [generator]; continue an unfinished one with kizu train … --resume.",
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise UserError(f"{path} has format {state['format']}, not {FORMAT}.", "Update Kizu.")
            shape = StyleGAN2Config(**state["shape"])
            network = Generator(shape).to(memory_format=torch.channels_last)
            network.load_state_dict(state["network"])
            prior = make_prior_from_state(state["prior"], shape.latent)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path} cannot be read: {error}", "Train the generator again.") from error
        network.eval().requires_grad_(False)
        values = {key: state[key] for key in ("classes", "counts", "kind", "run", "conditional")}
        return cls(network=network, prior=prior, **values)


def make_prior_from_state(state: dict[str, Any], latent: int) -> Prior:
    """Restore the prior that gave this state."""
    return make_prior(state["kind"], latent, images=None, state=state)


def interleaved(counts: Sequence[int], count: int) -> list[int]:
    """Return class numbers in proportion to `counts`: each next one is of the class furthest behind its share."""
    total = sum(counts)
    given: Counter[int] = Counter()
    order = []
    for length in range(1, count + 1):
        behind = max(range(len(counts)), key=lambda k: (counts[k] * length / total - given[k], -k))
        given[behind] += 1
        order.append(behind)
    return order
