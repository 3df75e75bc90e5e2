"""Kinds of defect that nobody has labelled: each class in turn is left out of training, and looked for in the test.

Notable here:
- The recipe's detectors learn from the other classes alone; the class that is left out is in neither training nor
  calibration. Beside them stands the memory, which learns from OK parts and cannot know any class.
- Both score the same test parts, so the difference of their AUROC has DeLong's interval for correlated curves.
- What is done stays: a class of a seed that has its scores in the folder is not trained again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kizu import files
from kizu.errors import UserError
from kizu.training.auto import resolve
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.splits import Splits
from kizu.training.evaluation.ranking import Difference, auroc_difference
from kizu.training.execution import Execution
from kizu.training.parallel import Processes
from kizu.training.pipeline import train_run
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection, Recipe
from kizu.training.run import SCORES_FILE, Run, owning
from kizu.training.study.run import Study, base_splits
from kizu.training.study.tables import Table, markdown_table

SCORES = "scores.json"
LEAST_NG = 5
"""NG of a class in the test split, under which it is not left out: their AUROC would say nothing."""
REFERENCE = "memory"

Scores = dict[str, float]
"""Path of a test image → its score."""


@dataclass(frozen=True)
class Unseen:
    """One class left out of one training."""

    defect: str
    seed: int
    train_ng: int
    """NG of other classes that it learned from."""
    test_ng: int
    test_ok: int
    auroc: float
    reference: float
    """AUROC of the memory on the same parts."""
    difference: Difference


def run(study: Study, say: Callable[[str], None]) -> list[Unseen]:
    """Train without each class and with each seed, and the memory once a seed; test on the class that was left out.

    Args:
        say: takes lines of progress.

    Raises:
        UserError: fewer than two classes of defect can be left out, or as `train_run`.
    """
    manifest = Manifest.read(study.dataset)
    torch.set_num_threads(study.settings.threads)
    found: list[Unseen] = []
    with owning(study.folder):
        fingerprint = manifest.fingerprint()
        for seed in study.settings.seeds:
            recipe = study.recipe.model_copy(update={"seed": seed})
            splits = base_splits(manifest, recipe, study.settings)
            trial = _Trial(study, manifest, recipe, splits, fingerprint, say)
            found += [trial.without(defect) for defect in left_out_classes(splits)]
    return found


def left_out_classes(splits: Splits) -> list[str]:
    """Classes with NG enough in the test split, without which others are left to learn from.

    Raises:
        UserError: there are none.
    """
    classes = sorted({defect for row in splits.test if row.label == NG for defect in row.defects})
    kept = [
        defect
        for defect in classes
        if sum(_shows(row, defect) for row in splits.test) >= LEAST_NG
        and any(row.label == NG and not _shows(row, defect) for row in splits.train)
    ]
    if not kept:
        raise UserError(
            f"No class of defect can be left out: none has {LEAST_NG} NG in the test split while another is in train.",
            "Fill the manifest's `defect` column, or add NG of several classes.",
        )
    return kept


def without_class(rows: Iterable[Row], defect: str) -> list[Row]:
    """The rows but for NG that show the class."""
    return [row for row in rows if not _shows(row, defect)]


@dataclass(frozen=True)
class _Trial:
    study: Study
    manifest: Manifest
    recipe: Recipe
    splits: Splits
    fingerprint: str
    say: Callable[[str], None]

    def without(self, defect: str) -> Unseen:
        """Train without a class; compare with the memory on OK and NG of that class."""
        train, calibration = (without_class(rows, defect) for rows in (self.splits.train, self.splits.calibration))
        recipe, _ = resolve(self.recipe, train)
        scores = self._scores(f"without-{defect}", recipe, Splits(train, calibration, self.splits.test))
        memory = self.recipe.model_copy(
            update={"detector": (DetectorSection(kind=REFERENCE),), "generator": None, "augment": None}
        )
        reference = self._scores(REFERENCE, memory, self.splits)
        ng, ok = ([row.path for row in self.splits.test if chosen(row)] for chosen in (_of(defect), _is_ok))
        difference = auroc_difference(
            _values(scores, ng), _values(scores, ok), _values(reference, ng), _values(reference, ok)
        )
        train_ng = sum(row.label == NG for row in train)
        result = Unseen(
            defect, self.recipe.seed, train_ng, len(ng), len(ok), difference.first, difference.second, difference
        )
        self.say(f"seed {self.recipe.seed}, without {defect}: {difference}")
        return result

    def _scores(self, name: str, recipe: Recipe, splits: Splits) -> Scores:
        folder = self.study.folder / f"seed{self.recipe.seed}" / name
        path = folder / SCORES
        if path.exists():
            earlier: Scores = json.loads(path.read_text(encoding="utf-8"))
            return earlier
        folder.mkdir(parents=True, exist_ok=True)
        log = RunLog(folder, quiet=True)
        try:
            device = Processes().device(self.study.settings.device)
            trained = Run(recipe, self.manifest, splits, self.fingerprint, folder, self.study.recipe_dir)
            train_run(trained, Execution(log, device, resume=True))
        finally:
            log.close()
        with (folder / SCORES_FILE).open(newline="", encoding="utf-8") as file:
            scores = {line["path"]: float(line["score"]) for line in csv.DictReader(file) if line["set"] == "test"}
        files.write_text(path, json.dumps(scores, allow_nan=False))
        return scores


def as_dicts(found: Sequence[Unseen]) -> list[dict[str, Any]]:
    """JSON-able form."""
    return [asdict(one) for one in found]


def unseen_table(found: Sequence[Unseen]) -> Table:
    """One line a class and seed."""
    rows = [
        [
            one.defect,
            *(str(count) for count in (one.seed, one.train_ng, one.test_ng)),
            *(f"{area:.3f}" for area in (one.auroc, one.reference)),
            f"{one.difference.value:+.3f} [{one.difference.lower:+.3f}, {one.difference.upper:+.3f}]",
        ]
        for one in found
    ]
    return Table(
        "Classes left out of training",
        ["left out", "seed", "NG of other classes", "NG tested", "AUROC", "AUROC of memory", "difference"],
        rows,
    )


def verdict(found: Sequence[Unseen]) -> str:
    """Whether the recipe's detectors lose to the memory on what they have not seen."""
    lost = [one for one in found if one.difference.upper < 0]
    gained = [one for one in found if one.difference.lower > 0]
    mean = float(np.mean([one.difference.value for one in found]))
    return (
        f"Over {len(found)} trainings, unseen kinds of defect are ranked {mean:+.3f} AUROC against the memory: "
        f"better in {len(gained)}, worse in {len(lost)}, no significant difference in "
        f"{len(found) - len(gained) - len(lost)}."
    )


def write_page(found: Sequence[Unseen], facts: Sequence[str], page: Path) -> None:
    """Write the result as Markdown."""
    table = unseen_table(found)
    lines = ["# Unseen kinds of defect", "", *facts, "", verdict(found), "", *markdown_table(table.columns, table.rows)]
    page.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(page, "\n".join([*lines, ""]))


def _shows(row: Row, defect: str) -> bool:
    return row.label == NG and defect in row.defects


def _of(defect: str) -> Callable[[Row], bool]:
    return lambda row: _shows(row, defect)


def _is_ok(row: Row) -> bool:
    return row.label == OK


def _values(scores: Scores, paths: Sequence[str]) -> NDArray[np.float64]:
    return np.array([scores[path] for path in paths])
