"""Generators as a run's folder keeps them: saved, and opened again to sample more.

Notable here:
- The file of a generator that samples from camera images holds the views themselves, so that it can sample more where
  the data set is gone.
- Files hold tensors and plain values only, and are read with `weights_only=True`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from kizu.errors import UserError
from kizu.files import atomic_file
from kizu.training.generators import GAN, UNTRAINED
from kizu.training.generators.placing import PlacedGenerator, PlacingConfig
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.generators.untrained import UntrainedGenerator
from kizu.training.generators.views import Materials
from kizu.training.run import GENERATOR_FOLDER, SOURCE_FILE

FORMAT = 1

AnyGenerator = TrainedGenerator | PlacedGenerator | UntrainedGenerator


def open_generator(folder: Path) -> AnyGenerator:
    """Open the generator of a run, which `kizu synthesize` samples from.

    Args:
        folder: the run's, or its `generator/`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = folder / GENERATOR_FOLDER if (folder / GENERATOR_FOLDER).is_dir() else folder
    if not (folder / SOURCE_FILE).exists():
        return TrainedGenerator.load(folder)
    state = read_source(folder)
    kind, run, content = state["kind"], state["run"], state["content"]
    if kind == GAN:
        crops = TrainedGenerator.load(folder)
        return PlacedGenerator.from_content(crops, content, PlacingConfig(**state["config"]), run)
    return make_untrained(kind, run, UNTRAINED[kind].config(**state["config"]), Materials.from_state(content))


def make_untrained(kind: str, run: str, config: object, materials: Materials) -> UntrainedGenerator:
    """Make a generator of a kind that does not train; its classes are those of the NG in its materials."""
    sampler = UNTRAINED[kind].sampler(config, materials)
    if materials.ng is None:
        return UntrainedGenerator(kind, run, config, materials, sampler)
    counts = materials.ng.counts
    return UntrainedGenerator(kind, run, config, materials, sampler, tuple(counts), tuple(counts.values()))


def save_untrained(generator: UntrainedGenerator, folder: Path) -> Path:
    """Write a generator that does not train, whole or not at all."""
    config = dataclasses.asdict(generator.config)
    return _save(folder, generator.kind, generator.run, config, generator.materials.state())


def save_placed(generator: PlacedGenerator, folder: Path) -> Path:
    """Write all of a generator but that of its crops, which has its own file."""
    config = dataclasses.asdict(generator.config)
    return _save(folder, generator.kind, generator.run, config, generator.content())


def read_source(folder: Path) -> dict[str, Any]:
    """Read the state that `save_untrained` or `save_placed` wrote.

    Raises:
        UserError: there is none, or it is damaged or from a newer Kizu.
    """
    path = folder / SOURCE_FILE
    remedy = "Continue the run with kizu train … --resume."
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        written = state["format"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no {SOURCE_FILE}.", remedy) from error
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", remedy) from error
    if written != FORMAT:
        raise UserError(f"{path} has format {written}, not {FORMAT}.", "Update Kizu.")
    return dict(state)


def _save(folder: Path, kind: str, run: str, config: dict[str, Any], content: dict[str, Any]) -> Path:
    path = folder / SOURCE_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, "kind": kind, "run": run, "config": config, "content": content}, file)
    return path
