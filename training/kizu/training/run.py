"""Training run: recipe, data, and the folder that it owns, with the names of everything in it.

Notable here:
- The identity covers everything that decides weights: a checkpoint goes on only under the one that it began with.
- Where there are several detectors, some of the train split's OK are held out of everything that trains; the detectors'
  ranks are fitted on these, so that calibration's OK judge specificity unseen.
- One process at a time trains in a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from kizu.errors import UserError
from kizu.training.auto import resolve
from kizu.training.data.labelled import hold_out_ok
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.masks import without_empty_masks
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection, Recipe

LOCK_FILE = ".lock"
RECIPE_FILE = "recipe.toml"
SPLITS_FILE = "splits.csv"
SCORES_FILE = "scores.csv"
BUNDLE_FOLDER = "bundle"
GENERATOR_FOLDER = "generator"
SYNTHETIC_FOLDER = "synthetic"

# In the generator's folder:
GENERATOR_FILE = "generator.pt"
"""Weights of a trained generator."""
SOURCE_FILE = "drawing.pt"
"""Views, masks and options of a generator that samples from camera images."""
PLAN_FILE = "drawn.json"
"""Generator, seed, count and filter of the images in the synthetic folder."""
METRICS_FILE = "metrics.jsonl"
EXTRACTOR_FILE = "features.pt"
FILTER_FOLDER = "filter"
REPORT_FILE = "report.html"
GRID_FILE = "grid.png"
INTERPOLATION_FILE = "interpolation.png"
PLACED_FILE = "placed.png"


@dataclass(frozen=True)
class Run:
    """A recipe, its data and the folder for what comes of them."""

    recipe: Recipe
    manifest: Manifest
    splits: Splits
    fingerprint: str
    """Digest of the manifest: every cell, image and mask."""
    folder: Path
    recipe_dir: Path
    """Paths in a recipe are relative to this directory first, then to the working directory."""
    notes: tuple[str, ...] = ()
    """Remarks on the data and on what the run made of them, for log and report."""

    @property
    def generator_folder(self) -> Path:
        """Checkpoint, weights and report of the run's generator."""
        return self.folder / GENERATOR_FOLDER

    @property
    def synthetic_folder(self) -> Path:
        """Data set of the run's synthetic NG."""
        return self.folder / SYNTHETIC_FOLDER

    @cached_property
    def ranking(self) -> list[Row]:
        """OK rows of the train split that several detectors' ranks are fitted on; none where there is one detector."""
        return hold_out_ok(self.splits.train, self.recipe.seed) if len(self.recipe.detector) > 1 else []

    @cached_property
    def training(self) -> list[Row]:
        """Rows of the train split that detectors and generator learn from: all but `ranking`."""
        held = {row.path for row in self.ranking}
        return [row for row in self.splits.train if row.path not in held]

    def detector_folder(self, index: int) -> Path:
        """Checkpoint and samples of a detector: the run's own folder where there is only one."""
        return self.folder if len(self.recipe.detector) == 1 else self.folder / f"detector-{index + 1}"

    def identity(self, section: DetectorSection) -> str:
        """Return a digest of everything that decides the weights of the detector of `section`."""
        decisive = self.recipe.model_dump(include={"image", "generator", "seed"}, mode="json")
        decisive["detector"] = section.model_dump(mode="json")
        if self.recipe.augment is not None:
            decisive["augment"] = self.recipe.augment.model_dump()
        if self.ranking:
            decisive["ranking"] = [row.path for row in self.ranking]
        content = json.dumps([decisive, self.fingerprint, self.splits.fingerprint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def certification(self) -> list[Row]:
        """The labelled rows that are reserved for threshold and certificate; none: calibration gives both."""
        return [row for row in self.splits.certification if row.label]

    def calibration(self, *, ng_unseen: bool) -> list[Row]:
        """Return the labelled rows that fix the threshold, or that only show the model where rows are reserved for it.

        Args:
            ng_unseen: no detector has learned from NG. Then the train split's NG are as unseen as any, unless they
                share a board (a group) with parts that a detector trained on.
        """
        rows = [row for row in self.splits.calibration if row.label]
        if ng_unseen:
            rows += [row for row in self.splits.train if row.label == NG and not row.group and not row.synthetic]
        return rows


def open_run(recipe: Recipe, manifest: Manifest, folder: Path, recipe_dir: Path, log: RunLog) -> Run:
    """Split the data, choose the detectors where the recipe leaves that to Kizu, and take the data's fingerprint.

    NG with an empty mask go on without it, which is said.

    Raises:
        UserError: as `assign_splits` and `resolve`, or a file that cannot be read.
    """
    with log.bar("reading data", len(manifest)) as advance:
        fingerprint = manifest.fingerprint(advance)
    rows, empty = without_empty_masks(manifest, manifest.rows)
    located = Manifest(manifest.root, rows)
    splits = assign_splits(located, recipe.seed, recipe.splits.fractions, recipe.splits.certification)
    recipe, reason = resolve(recipe, splits.train)
    notes = tuple(note for note in (empty, reason) if note)
    return Run(recipe, located, splits, fingerprint, folder, recipe_dir, notes)


@contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Lock the run folder against other processes; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
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
