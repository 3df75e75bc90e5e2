"""What a training run works on, and the folder that it owns.

Notable here:
- The identity covers everything that decides weights: a checkpoint goes on only under the one that it began with.
- One process at a time trains in a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from kizu.errors import UserError
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection, Recipe


@dataclass(frozen=True)
class Run:
    """A recipe, its data and the folder for what comes of them."""

    recipe: Recipe
    manifest: Manifest
    splits: Splits
    fingerprint: str
    """Of the manifest: every cell, image and mask."""
    folder: Path
    beside: Path
    """The recipe's folder; paths in a recipe are relative to it first, then to the working directory."""

    def identity(self, section: DetectorSection) -> str:
        """Digest of everything that decides the weights of the detector of `section`."""
        decisive = self.recipe.model_dump(include={"image", "generator", "seed"}, mode="json")
        decisive["detector"] = section.model_dump(mode="json")
        if self.recipe.augment is not None:
            decisive["augment"] = self.recipe.augment.model_dump()
        content = json.dumps([decisive, self.fingerprint, self.splits.fingerprint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def calibration(self, *, ng_unseen: bool) -> list[Row]:
        """Labelled rows that fix the threshold.

        Args:
            ng_unseen: no detector has learned from NG. Then the train split's NG are as unseen as any, unless they
                share a board (a group) with parts that a detector trained on.
        """
        rows = [row for row in self.splits.calibration if row.label]
        if ng_unseen:
            rows += [row for row in self.splits.train if row.label == NG and not row.group and not row.synthetic]
        return rows


def open_run(recipe: Recipe, manifest: Manifest, folder: Path, beside: Path, log: RunLog) -> Run:
    """Split the data and take its fingerprint."""
    splits = assign_splits(manifest, recipe.seed, recipe.splits.fractions)
    with log.bar("reading data", len(manifest)) as advance:
        fingerprint = manifest.fingerprint(advance)
    return Run(recipe, manifest, splits, fingerprint, folder, beside)


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Hold the run folder against other processes; the lock falls with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"Another process is training in {folder}.", "Wait for it, stop it, or give --out another folder."
        ) from error
    try:
        yield
    finally:
        lock.release()
