"""What synthetic NG are worth where real ones are scarce: arms × seeds of one recipe.

Notable here:
- An arm is the recipe with some of the train split and one way to make NG. Its generator sees that arm's NG alone;
  calibration and test are the recipe's own, the same for every arm and seed, and no generator ever sees them.
- Thresholds come from calibration; every figure is from the test split, which each arm meets once.
- A generator is trained once for all arms that need the same one. An arm that is done is not run again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
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
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.detectors import create_detector
from kizu.training.generators import check_keys
from kizu.training.generators.stage import FOLDER as GENERATOR_FOLDER
from kizu.training.pipeline import SCORES_FILE, train_run
from kizu.training.progress import RunLog
from kizu.training.recipe import Recipe
from kizu.training.run import Run, owning
from kizu.training.study.arms import Arm, chosen_arms, drawn, lot, recipe_of
from kizu.training.study.figures import figures_of
from kizu.training.study.workers import pool

RESULT_FILE = "arm.json"
SETTINGS_FILE = "settings.json"
FINGERPRINT_FILE = "fingerprint"
COST_FILE = "seconds.json"


@dataclass(frozen=True)
class Settings:
    """How the arms are run."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    arms: tuple[str, ...] = ()
    """By name; empty: those of the table and of the curve."""
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


def base_splits(manifest: Manifest, recipe: Recipe, settings: Settings) -> Splits:
    """The recipe's splits of the camera's images, each with no more of them than the settings allow."""
    splits = assign_splits(manifest, recipe.seed, recipe.splits.fractions)

    def capped(rows: list[Row]) -> list[Row]:
        left = {OK: settings.most_ok, NG: settings.most_ng}
        kept = set()
        for row in sorted(rows, key=lambda row: lot(row.path, 0)):
            limit = left.get(row.label)
            if not row.synthetic and (limit is None or limit > 0):
                kept.add(row.path)
                if limit is not None:
                    left[row.label] = limit - 1
        return [row for row in rows if row.path in kept]

    return Splits(capped(splits.train), capped(splits.calibration), capped(splits.test))


def run_arm(
    arm: Arm, seed: int, recipe: Recipe, beside: Path, dataset: Path, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Train and test one arm, or give its earlier result."""
    own = folder / f"seed{seed}" / _folder_name(arm)
    done = own / RESULT_FILE
    if done.exists():
        return json.loads(done.read_text(encoding="utf-8"))
    torch.set_num_threads(settings.threads)
    manifest = Manifest.read(dataset)
    splits = base_splits(manifest, recipe, settings)
    taken = drawn(splits.train, arm.share, arm.ng_share, seed)
    own_recipe = recipe_of(arm, recipe, seed, splits.train, taken, settings.ok_alone_epochs)
    fingerprint = (folder / FINGERPRINT_FILE).read_text(encoding="utf-8")
    run = Run(own_recipe, manifest, Splits(taken, splits.calibration, splits.test), fingerprint, own, beside)
    interrupted = own.exists()
    own.mkdir(parents=True, exist_ok=True)
    lent = _borrowed(arm, own_recipe, own, folder / f"seed{seed}" / "generators")
    log = RunLog(own, quiet=True)
    began, cpu = time.perf_counter(), time.process_time()
    try:
        bundle = train_run(run, log, device=settings.device, resume=True)
    finally:
        log.close()
    assert bundle is not None, "one process trains alone"
    seconds = {"total": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    if lent is not None:
        interrupted |= not _count_generator(own / GENERATOR_FOLDER, seconds, log.spent, whole=not interrupted)
        if not lent.exists():
            _copy(own / GENERATOR_FOLDER, lent)
    result = {
        "arm": arm.name,
        "seed": seed,
        "against": arm.against,
        "ng_share": arm.ng_share,
        "share": arm.share,
        "n_ok": sum(row.label == OK for row in taken),
        "n_ng": 0 if arm.ok_alone else sum(row.label == NG for row in taken),
        "synthetic_ng": bundle.manifest.dataset.synthetic_ng,
        "seconds": seconds,
        "stages": log.spent,
        "interrupted": interrupted,
        "figures": figures_of(own / SCORES_FILE),
    }
    files.write_text(done, json.dumps(result, allow_nan=False))
    return result


def _shelf_key(arm: Arm, recipe: Recipe) -> str | None:
    """The same for arms of a seed that need the same generator; None without one that is trained."""
    section = recipe.generator
    if section is None or not arm.trains_gan:
        return None
    changes = arm.generator or {}
    key = json.dumps([arm.subset, *(changes.get(name) for name in ("kimg", "conditional", "crop"))])
    return hashlib.sha256(key.encode()).hexdigest()[:12]


def _borrowed(arm: Arm, recipe: Recipe, own: Path, shelf: Path) -> Path | None:
    """Where a generator that other arms of the seed can use belongs; one that stands there is copied into the run.

    `train_run` takes it only if it is the very one that it would train.
    """
    key = _shelf_key(arm, recipe)
    if key is None:
        return None
    lent = shelf / key
    if lent.exists() and not (own / GENERATOR_FOLDER).exists():
        _copy(lent, own / GENERATOR_FOLDER)
    return lent


def _copy(source: Path, destination: Path) -> None:
    """Copy a folder so that it appears whole or not at all."""
    temporary = destination.with_name(destination.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary)
    temporary.rename(destination)


def _count_generator(folder: Path, seconds: dict[str, float], spent: dict[str, float], *, whole: bool) -> bool:
    """Add what training the generator took: to each arm that uses it, whichever arm trained it.

    Args:
        spent: by the stages of this training.
        whole: it was not interrupted.

    Returns:
        Whether all of the generator's training was counted.
    """
    path = folder / COST_FILE
    if path.exists():
        cost = json.loads(path.read_text(encoding="utf-8"))
        seconds["total"] += cost["seconds"]
    else:
        took = sum(took for stage, took in spent.items() if stage.startswith(f"{GENERATOR_FOLDER}/"))
        cost = {"seconds": took, "whole": whole}
        path.write_text(json.dumps(cost), encoding="utf-8")
    seconds["generator"] = cost["seconds"]
    return bool(cost["whole"])


def _folder_name(arm: Arm) -> str:
    digest = hashlib.sha256(arm.name.encode()).hexdigest()[:6]
    return f"{digest}-" + "".join(letter if letter.isalnum() else "-" for letter in arm.name)


def run(
    recipe: Recipe, beside: Path, dataset: Path, settings: Settings, folder: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """All arms of all seeds, `settings.parallel` at a time; results in the order of arms, then seeds.

    Args:
        beside: the recipe's folder.
        folder: for runs and results; arms that are done in it are not run again.
        say: takes lines of progress.

    Raises:
        UserError: an arm, recipe or data that cannot be run, another process in the folder, or arms of another recipe.
    """
    manifest = Manifest.read(dataset)
    splits = base_splits(manifest, recipe, settings)
    arms = _arms_of(recipe, splits, settings)
    with owning(folder):
        say("reading data")
        _own_folder(folder, recipe, settings, manifest.fingerprint())
        results = _found(arms, settings.seeds, folder)
        earlier, total = len(results), len(arms) * len(settings.seeds)
        say(
            f"{len(arms)} arms × {len(settings.seeds)} seeds, {settings.parallel} at a time"
            + (f"; {earlier} are done" if earlier else "")
        )
        began = time.monotonic()
        with pool(settings.parallel) as workers:
            waiting = {
                workers.submit(_run_chain, chain, seed, recipe, beside, dataset, settings, folder)
                for chain, seed in _chains(arms, settings.seeds, recipe)
                if any((arm.name, seed) not in results for arm in chain)
            }
            while waiting:
                finished, waiting = wait(waiting, timeout=2.0, return_when=FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                found = _found(arms, settings.seeds, folder)
                for key in found.keys() - results.keys():
                    results[key] = found[key]
                    left = _time_left(began, len(results) - earlier, total - len(results))
                    say(f"{len(results)}/{total} {_line(found[key])}{left}")
    return [results[arm.name, seed] for arm in arms for seed in settings.seeds]


def facts_of(recipe: Recipe, dataset: Path, settings: Settings, folder: Path) -> dict[str, Any]:
    """What the page tells of the data that a run in `folder` worked on."""
    splits = base_splits(Manifest.read(dataset), recipe, settings)
    return {
        "name": dataset.resolve().name,
        "counts": splits.counts,
        "groups": len({row.group for row in splits.rows if row.group}),
        "fingerprint": (folder / FINGERPRINT_FILE).read_text(encoding="utf-8"),
        "split_fingerprint": splits.fingerprint,
    }


def _arms_of(recipe: Recipe, splits: Splits, settings: Settings) -> list[Arm]:
    """The arms, once it is known that each can run: a slip must not show after hours."""
    ng = [row for row in splits.train if row.label == NG]
    arms = chosen_arms(settings.arms, settings.shares, recipe, located=any(row.boxes or row.mask for row in ng))
    for name, rows in (("train", splits.train), ("calibration", splits.calibration), ("test", splits.test)):
        if lacking := {OK, NG} - {row.label for row in rows}:
            raise UserError(f"The {name} split has no {min(lacking)}.", "Add images, or change [splits] or the seed.")
    for arm in arms:
        taken = drawn(splits.train, arm.share, arm.ng_share, settings.seeds[0])
        has = sum(row.label == NG for row in taken)
        if arm.trains_gan and has < 2:
            raise UserError(f"'{arm.name}' leaves {has} NG to learn from.", "Choose larger shares with --share.")
        own = recipe_of(arm, recipe, settings.seeds[0], splits.train, taken)
        if own.generator is not None:
            check_keys(own.generator)
        for section in own.detector:
            options = {key: value for key, value in section.options.items() if key != "weights"}
            section = section.model_copy(update={"options": options})
            method = create_detector(own.image.geometry, section, own.augment, defects=defect_classes(taken))
            method.check(own.generator)
            if method.sampling is None and not arm.ok_alone:
                raise UserError(
                    f"'{section.kind}' learns from OK parts alone: no NG, real or synthetic, would change it.",
                    'Give the recipe a detector that learns from NG, such as "classifier".',
                )
    return arms


def _found(arms: Sequence[Arm], seeds: Sequence[int], folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Results that lie in the folder."""
    paths = {
        (arm.name, seed): folder / f"seed{seed}" / _folder_name(arm) / RESULT_FILE for arm in arms for seed in seeds
    }
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in paths.items() if path.exists()}


def _chains(arms: Sequence[Arm], seeds: Sequence[int], recipe: Recipe) -> list[tuple[list[Arm], int]]:
    """Arms that share a generator follow each other in one worker; seed by seed, the longest chains first.

    What is done when a run is stopped can then be compared: whole seeds.
    """
    chains = []
    for seed in seeds:
        sharing: dict[str, list[Arm]] = {}
        for arm in arms:
            sharing.setdefault(_shelf_key(arm, recipe) or arm.name, []).append(arm)
        chains += [(chain, seed) for chain in sharing.values()]
    return sorted(chains, key=lambda chain: (seeds.index(chain[1]), -len(chain[0])))


def _run_chain(
    arms: Sequence[Arm], seed: int, recipe: Recipe, beside: Path, dataset: Path, settings: Settings, folder: Path
) -> None:
    for arm in arms:
        run_arm(arm, seed, recipe, beside, dataset, settings, folder)


def _own_folder(folder: Path, recipe: Recipe, settings: Settings, fingerprint: str) -> None:
    """Refuse a folder whose arms were trained in another way."""
    decisive: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "most": [settings.most_ok, settings.most_ng]}
    if settings.ok_alone_epochs is not None:
        decisive["ok_alone_epochs"] = settings.ok_alone_epochs
    text = json.dumps([decisive, fingerprint], indent=1)
    path = folder / SETTINGS_FILE
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(f"{folder} holds arms of another recipe.", "Give --out a new folder, or restore the recipe.")
    path.write_text(text, encoding="utf-8")
    (folder / FINGERPRINT_FILE).write_text(fingerprint, encoding="utf-8")


def _time_left(began: float, done: int, left: int) -> str:
    """As if what is left took as long as what was done."""
    if not left:
        return ""
    minutes = (time.monotonic() - began) / done * left / 60
    return f"; about {minutes / 60:.1f} h left" if minutes > 90 else f"; about {minutes:.0f} min left"


def _line(found: dict[str, Any]) -> str:
    figures = found["figures"]
    at = next(entry for entry in figures["at"] if entry["target_fnr"] == 0.01)
    return (
        f"{found['arm']}, seed {found['seed']}: AUROC {figures['auroc']['value']:.4f}, specificity "
        f"{100 * at['specificity']['rate']:.1f} % at FNR {100 * at['fnr']['rate']:.1f} % (aimed at 1 %), "
        f"{found['seconds']['total']:.0f} s"
    )
