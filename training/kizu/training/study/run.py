"""Running a scarce study: what synthetic NG are worth where real ones are scarce, as arms × seeds of one recipe.

Notable here:
- An arm is the recipe with some of the train split and one way to make NG. Its generator sees that arm's NG alone;
  calibration and test are the recipe's own, the same for every arm and seed, and no generator ever sees them.
- Thresholds come from calibration; every figure is from the test split, which each arm meets once.
- A generator is trained once for all arms that need the same one. An arm that is done is not run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kizu import files
from kizu.errors import UserError
from kizu.training.data.labelled import defect_classes
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.masks import without_empty_masks
from kizu.training.data.sizes import check_sizes
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.detectors import create_detector
from kizu.training.execution import Execution
from kizu.training.generators import check_keys
from kizu.training.parallel import Processes
from kizu.training.pipeline import train_run
from kizu.training.progress import RunLog
from kizu.training.recipe import Recipe
from kizu.training.run import SCORES_FILE, Run, owning
from kizu.training.study.arms import Arm, Choice, chosen_arms
from kizu.training.study.figures import AIM, figures_of
from kizu.training.study.generator_cache import add_generator_cost, generator_key, reuse_generator, store_generator
from kizu.training.study.recipes import recipe_of, sample_rows, sampling_key
from kizu.training.study.results import ArmResult
from kizu.training.study.workers import pool

RESULT_FILE = "arm.json"
SETTINGS_FILE = "settings.json"
FINGERPRINT_FILE = "fingerprint"
FOLDER_FORMAT = 2
"""Of a study's folder; arms in a folder of another format are not found."""

Results = dict[tuple[Arm, int], ArmResult]
"""By arm and seed."""


@dataclass(frozen=True)
class StudySettings:
    """Arms of a study, and how they are run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[Choice, ...] = ()
    """Empty: those of the table and of the curve."""
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)
    """Of the NG, for the curve."""
    most_ok: int | None = None
    """Images of each split taken at most; None: all."""
    most_ng: int | None = None
    ok_alone_epochs: int | None = None
    """Of detectors on OK alone; None: for as many updates as the others."""
    threads: int = 1
    parallel: int = 1
    device: str = "auto"


@dataclass(frozen=True)
class Study:
    """A recipe, its data, and the folder for runs and results; arms that are done in it are not run again."""

    recipe: Recipe
    recipe_dir: Path
    dataset: Path
    settings: StudySettings
    folder: Path

    def arm_dir(self, arm: Arm, seed: int) -> Path:
        """Folder of an arm's run."""
        return self.folder / f"seed{seed}" / arm.key

    def results(self, arms: Sequence[Arm]) -> Results:
        """Results that lie in the folder."""
        keys = [(arm, seed) for arm in arms for seed in self.settings.seeds]
        return {key: found for key in keys if (found := self.result(*key)) is not None}

    def result(self, arm: Arm, seed: int) -> ArmResult | None:
        """Result of one training; None where it is not done."""
        path = self.arm_dir(arm, seed) / RESULT_FILE
        return ArmResult.read(arm, json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def run(study: Study, say: Callable[[str], None]) -> list[ArmResult]:
    """Train and test all arms with all seeds, `settings.parallel` at a time; results in the order of arms, then seeds.

    Args:
        say: takes lines of progress.

    Raises:
        UserError: an arm, recipe or data that cannot be run, another process in the folder, or arms of another study.
    """
    settings = study.settings
    manifest = Manifest.read(study.dataset)
    splits = base_splits(manifest, study.recipe, settings)
    arms = _arms_of(study, splits)
    check_sizes(manifest, [row for row in splits.rows if row.label], study.recipe.image.geometry)
    with owning(study.folder):
        say("reading data")
        _claim_folder(study, manifest.fingerprint())
        results = study.results(arms)
        earlier, total = len(results), len(arms) * len(settings.seeds)
        say(
            f"{len(arms)} arms × {len(settings.seeds)} seeds, {settings.parallel} at a time"
            + (f"; {earlier} are done" if earlier else "")
        )
        began = time.monotonic()
        with pool(settings.parallel) as workers:
            waiting = {
                workers.submit(_run_chain, chain, seed, study)
                for chain, seed in _chains(arms, study)
                if any((arm, seed) not in results for arm in chain)
            }
            while waiting:
                finished, waiting = wait(waiting, timeout=2.0, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                found = study.results(arms)
                for key in found.keys() - results.keys():
                    results[key] = found[key]
                    left = _time_left(began, len(results) - earlier, total - len(results))
                    say(f"{len(results)}/{total} {_line(found[key])}{left}")
    return [results[arm, seed] for arm in arms for seed in settings.seeds]


def run_arm(arm: Arm, seed: int, study: Study) -> ArmResult:
    """Train and test one arm, or return its earlier result."""
    if (earlier := study.result(arm, seed)) is not None:
        return earlier
    settings, run_dir = study.settings, study.arm_dir(arm, seed)
    torch.set_num_threads(settings.threads)
    manifest = Manifest.read(study.dataset)
    splits = base_splits(manifest, study.recipe, settings)
    seen = sample_rows(splits.train, arm.base, seed)
    recipe = recipe_of(arm, study.recipe, seed, splits.train, seen, settings.ok_alone_epochs)
    fingerprint = (study.folder / FINGERPRINT_FILE).read_text(encoding="utf-8")
    arm_run = Run(
        recipe, manifest, Splits(seen, splits.calibration, splits.test), fingerprint, run_dir, study.recipe_dir
    )
    interrupted = run_dir.exists()
    run_dir.mkdir(parents=True, exist_ok=True)
    cache = study.folder / f"seed{seed}" / "generators"
    key = generator_key(arm)
    if key is not None:
        reuse_generator(cache / key, run_dir)
    log = RunLog(run_dir, quiet=True)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        bundle = train_run(arm_run, Execution(log, Processes().device(settings.device), resume=True))
    finally:
        log.close()
    assert bundle is not None, "one process trains alone"
    seconds = {"total": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    if key is not None:
        interrupted |= not add_generator_cost(run_dir, seconds, log.spent, complete=not interrupted)
        store_generator(run_dir, cache / key)
    result = ArmResult(
        arm=arm,
        seed=seed,
        n_ok=sum(row.label == OK for row in seen),
        n_ng=0 if arm.one_class else sum(row.label == NG for row in seen),
        synthetic_ng=bundle.manifest.dataset.synthetic_ng,
        seconds=seconds,
        stages=log.spent,
        interrupted=interrupted,
        figures=figures_of(run_dir / SCORES_FILE),
    )
    files.write_text(run_dir / RESULT_FILE, json.dumps(result.as_dict(), allow_nan=False))
    return result


def base_splits(manifest: Manifest, recipe: Recipe, settings: StudySettings) -> Splits:
    """The recipe's splits of the camera's images, each with no more of them than the settings allow.

    The certification split is left out: a design that was chosen by looking at it could not be certified on it.
    """
    located = Manifest(manifest.root, without_empty_masks(manifest, manifest.rows)[0])
    splits = assign_splits(located, recipe.seed, recipe.splits.fractions, recipe.splits.certification)

    def capped(rows: list[Row]) -> list[Row]:
        left = {OK: settings.most_ok, NG: settings.most_ng}
        kept = set()
        for row in sorted(rows, key=lambda row: sampling_key(row.path, 0)):
            limit = left.get(row.label)
            if not row.synthetic and (limit is None or limit > 0):
                kept.add(row.path)
                if limit is not None:
                    left[row.label] = limit - 1
        return [row for row in rows if row.path in kept]

    return Splits(capped(splits.train), capped(splits.calibration), capped(splits.test))


def facts_of(study: Study) -> dict[str, Any]:
    """Facts on the data that a study worked on, for its page."""
    splits = base_splits(Manifest.read(study.dataset), study.recipe, study.settings)
    return {
        "name": study.dataset.resolve().name,
        "counts": splits.counts,
        "groups": len({row.group for row in splits.rows if row.group}),
        "fingerprint": (study.folder / FINGERPRINT_FILE).read_text(encoding="utf-8"),
        "split_fingerprint": splits.fingerprint,
    }


def _arms_of(study: Study, splits: Splits) -> list[Arm]:
    """The arms, once it is known that each can run: an error must not show after hours."""
    settings = study.settings
    ng = [row for row in splits.train if row.label == NG]
    located = any(row.boxes or row.mask for row in ng)
    arms = chosen_arms(settings.arms, settings.shares, study.recipe, located=located)
    for name, rows in (("train", splits.train), ("calibration", splits.calibration), ("test", splits.test)):
        if lacking := {OK, NG} - {row.label for row in rows}:
            raise UserError(f"The {name} split has no {min(lacking)}.", "Add images, or change [splits] or the seed.")
    for arm in arms:
        seen = sample_rows(splits.train, arm.base, settings.seeds[0])
        has = sum(row.label == NG for row in seen)
        if arm.trains_gan and has < 2:
            raise UserError(f"'{arm.label}' leaves {has} NG to learn from.", "Choose larger shares with --share.")
        _check_recipe(arm, recipe_of(arm, study.recipe, settings.seeds[0], splits.train, seen), seen)
    return arms


def _check_recipe(arm: Arm, recipe: Recipe, seen: Sequence[Row]) -> None:
    """Refuse sections and options that cannot train, and a detector that no NG would change."""
    if recipe.generator is not None:
        check_keys(recipe.generator)
    for section in recipe.detector:
        options = {key: value for key, value in section.options.items() if key != "weights"}
        section = section.model_copy(update={"options": options})
        method = create_detector(recipe.image.geometry, section, recipe.augment, defects=defect_classes(seen))
        method.check(recipe.generator)
        if method.sampling is None and not arm.one_class:
            raise UserError(
                f"'{section.kind}' learns from OK parts alone: no NG, real or synthetic, would change it.",
                'Give the recipe a detector that learns from NG, such as "classifier".',
            )


def _claim_folder(study: Study, fingerprint: str) -> None:
    """Write what decides the trainings; refuse a folder whose arms were trained in another way."""
    folder, settings = study.folder, study.settings
    recipe = study.recipe.model_dump(mode="json")
    decisive: dict[str, Any] = {"recipe": recipe, "most": [settings.most_ok, settings.most_ng]}
    if settings.ok_alone_epochs is not None:
        decisive["ok_alone_epochs"] = settings.ok_alone_epochs
    path = folder / SETTINGS_FILE
    text = json.dumps({"format": FOLDER_FORMAT, "settings": decisive, "fingerprint": fingerprint}, indent=1)
    if path.exists() and (earlier := path.read_text(encoding="utf-8")) != text:
        found = json.loads(earlier)
        if not isinstance(found, dict) or found.get("format") != FOLDER_FORMAT:
            raise UserError(
                f"{folder} holds a study by another version of Kizu, which this version cannot go on with.",
                "Give --out a new folder; result.json and the page of the earlier study stay readable.",
            )
        raise UserError(f"{folder} holds arms of another recipe.", "Give --out a new folder, or restore the recipe.")
    files.write_text(path, text)
    files.write_text(folder / FINGERPRINT_FILE, fingerprint)


def _chains(arms: Sequence[Arm], study: Study) -> list[tuple[list[Arm], int]]:
    """Arms that share a generator follow each other in one worker; seed by seed, the longest chains first.

    What is done when a run is stopped can then be compared: whole seeds.
    """
    sharing: dict[str, list[Arm]] = {}
    for arm in arms:
        sharing.setdefault(generator_key(arm) or arm.key, []).append(arm)
    longest_first = sorted(sharing.values(), key=len, reverse=True)
    return [(chain, seed) for seed in study.settings.seeds for chain in longest_first]


def _run_chain(arms: Sequence[Arm], seed: int, study: Study) -> None:
    for arm in arms:
        run_arm(arm, seed, study)


def _time_left(began: float, done: int, left: int) -> str:
    """Estimate as if the rest took as long as what was done."""
    if not left:
        return ""
    minutes = (time.monotonic() - began) / done * left / 60
    return f"; about {minutes / 60:.1f} h left" if minutes > 90 else f"; about {minutes:.0f} min left"


def _line(result: ArmResult) -> str:
    at = result.at(AIM)
    return (
        f"{result.arm.label}, seed {result.seed}: AUROC {result.value('auroc'):.4f}, specificity "
        f"{100 * at['specificity']['rate']:.1f} % at FNR {100 * at['fnr']['rate']:.1f} % (aimed at 1 %), "
        f"{result.seconds['total']:.0f} s"
    )
