"""Recipe → splits → detector → operating point → bundle.

Notable here:
- The detector sees the train split, the threshold the calibration split, the report the test split, each once. No
  epoch is chosen by looking at test results: the last one ships.
- Everything after training runs on the exported graph, not on torch.
- A run folder holds what is needed to repeat or resume it: the recipe, the splits, the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.models.bundle import Bundle, DatasetReference, Session, new_manifest, write_bundle
from kizu.models.inspector import Inspector
from kizu.models.operating_point import OperatingPoint, choose_operating_point
from kizu.training.data.batches import Batches
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.splits import Splits, assign_splits, write_splits
from kizu.training.detectors import create_detector
from kizu.training.detectors.classifier import ClassifierMethod
from kizu.training.evaluation.detection import compute_metrics
from kizu.training.evaluation.evaluate import build_report, score_with_pixels
from kizu.training.evaluation.scoring import score_rows
from kizu.training.evaluation.summary import summary_table
from kizu.training.export import VERDICT_MARGIN, ParityCheck, export_onnx, torch_scorer
from kizu.training.generators.stage import FOLDER as GENERATOR_FOLDER
from kizu.training.generators.stage import SYNTHETIC_FOLDER, defect_images, run_generator
from kizu.training.loop import DetectorMethod, LoopSettings, TrainingLoop
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, DetectorSection, GeneratorSection, Recipe, find_dataset, read_recipe
from kizu.training.training_set import TrainingSet, check_synthetic_shows_what_is_inspected, training_set

RECIPE_FILE = "recipe.toml"
SPLITS_FILE = "splits.csv"
BUNDLE_FOLDER = "bundle"


@dataclass(frozen=True)
class Run:
    """What a training run works on."""

    recipe: Recipe
    manifest: Manifest
    splits: Splits
    fingerprint: str
    folder: Path

    @property
    def identity(self) -> str:
        """Digest of everything that decides the weights; a checkpoint continues only under the same one."""
        decisive = self.recipe.model_dump(include={"image", "detector", "generator", "seed"}, mode="json")
        if self.recipe.augment is not None:
            decisive["augment"] = self.recipe.augment.model_dump()
        content = json.dumps([decisive, self.fingerprint, self.splits.fingerprint], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def calibration(self, method: DetectorMethod) -> list[Row]:
        """Labelled rows that fix the threshold.

        A method that learns from OK parts alone has seen no NG, so the train split's NG are as unseen as any, unless
        they share a board (a group) with parts it trained on.
        """
        rows = [row for row in self.splits.calibration if row.label]
        if not method.learns_from_ng:
            rows += [row for row in self.splits.train if row.label == NG and not row.group and not row.synthetic]
        return rows


def train(
    recipe_path: Path,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    quiet: bool = False,
    settings: LoopSettings | None = None,
) -> Bundle | None:
    """Run a recipe to its bundle in `folder/bundle`; on other processes than torchrun's first, return None.

    Raises:
        UserError: a fault in recipe, data or folder, or a diverged run.
        Interrupted: stopped by a signal, with a checkpoint to resume from.
    """
    processes = Processes()
    recipe = read_recipe(recipe_path)
    if not resume and (folder / RECIPE_FILE).exists():
        raise UserError(f"{folder} already holds a run.", "Continue it with --resume, or give --out a new folder.")
    with _owning(folder) if processes.is_main else nullcontext():
        return _train(recipe, recipe_path, folder, processes, device, resume, quiet, settings)


def _train(
    recipe: Recipe,
    recipe_path: Path,
    folder: Path,
    processes: Processes,
    device: str,
    resume: bool,
    quiet: bool,
    settings: LoopSettings | None,
) -> Bundle | None:
    log = RunLog(folder if processes.is_main else None, quiet=quiet or not processes.is_main)
    try:
        run = _open_run(recipe, recipe_path, folder, log)
        if processes.is_main:
            _describe(run, recipe_path)
        # Made first: a slip in [detector] must not show after hours of [generator].
        torch.manual_seed(recipe.seed)
        method = create_detector(recipe.image.geometry, _beside(recipe.detector, recipe_path.parent))
        _set_augmentation(method, recipe)
        if recipe.generator is not None:
            if isinstance(method, ClassifierMethod) and method.training.synthetic_ratio:
                check_synthetic_shows_what_is_inspected(run.manifest, run.splits.train, recipe.generator, recipe.image)
            _synthesise(run, method, recipe.generator, recipe_path.parent, processes, device, resume, log, settings)
        synthetic_ng = _fit(run, method, processes, device, resume, log, settings)
        return _finish(run, method, synthetic_ng, log) if processes.is_main else None
    finally:
        log.close()


@contextmanager
def _owning(folder: Path) -> Iterator[None]:
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


def _open_run(recipe: Recipe, recipe_path: Path, folder: Path, log: RunLog) -> Run:
    manifest = Manifest.read(find_dataset(recipe, recipe_path))
    splits = assign_splits(manifest, recipe.seed, recipe.splits.fractions)
    with log.bar("reading data", len(manifest)) as advance:
        fingerprint = manifest.fingerprint(advance)
    return Run(recipe, manifest, splits, fingerprint, folder)


def _describe(run: Run, recipe_path: Path) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    write_splits(run.folder / SPLITS_FILE, run.splits)
    (run.folder / RECIPE_FILE).write_bytes(recipe_path.read_bytes())


def _synthesise(
    run: Run,
    method: DetectorMethod,
    section: GeneratorSection,
    beside: Path,
    processes: Processes,
    device: str,
    resume: bool,
    log: RunLog,
    settings: LoopSettings | None,
) -> None:
    images = defect_images(run.manifest, run.splits.train, section, run.recipe.image)
    drawn = run_generator(
        section,
        images,
        run.folder,
        name=run.recipe.name,
        seed=run.recipe.seed,
        beside=beside,
        log=log,
        processes=processes,
        device=device,
        resume=resume,
        settings=settings,
    )
    if drawn is not None:
        log.say(
            f"{len(drawn)} synthetic NG: {drawn.root}\nhow they look: {run.folder / GENERATOR_FOLDER / 'report.html'}"
        )
        if not method.learns_from_ng:
            log.say(f"{run.recipe.detector.kind} learns from OK parts alone: the synthetic NG do not change it")


def _beside(section: DetectorSection, folder: Path) -> DetectorSection:
    """The section with the path of `weights` found: relative to the recipe first, then to the working directory."""
    path = section.options.get("weights")
    if not isinstance(path, str) or not (folder / path).exists():
        return section
    return section.model_copy(update={"options": {**section.options, "weights": str(folder / path)}})


def _set_augmentation(method: DetectorMethod, recipe: Recipe) -> None:
    if isinstance(method, ClassifierMethod):
        method.augment = recipe.augment or AugmentSection()
    elif recipe.augment is not None:
        raise UserError(
            f"[augment]: '{recipe.detector.kind}' learns from OK parts as they are.",
            "Leave the section out, or choose the detector 'classifier'.",
        )


def _fit(
    run: Run,
    method: DetectorMethod,
    processes: Processes,
    device: str,
    resume: bool,
    log: RunLog,
    settings: LoopSettings | None,
) -> int:
    """Train; returns how many synthetic NG took part."""
    chosen = processes.device(device)
    labelled = _labelled(run, method, chosen, processes, log) if isinstance(method, ClassifierMethod) else None
    batches = labelled.batches if labelled else _ok_batches(run, chosen, processes, log)
    method.networks.to(chosen)
    if chosen.type == "cuda":
        method.networks.to(memory_format=torch.channels_last)
    processes.copy_from_main(method.networks)
    torch.manual_seed(run.recipe.seed + 1 + processes.rank)
    loop = TrainingLoop(
        method, batches, run.folder, identity=run.identity, log=log, processes=processes, settings=settings
    )
    if resume and loop.resume():
        log.say(f"resuming at stage {loop.stage_index + 1}, step {loop.step}")
    loop.run()
    if labelled is None:
        return 0
    if isinstance(method, ClassifierMethod) and labelled.held_out is not None:
        held_out = labelled.held_out
        method.calibrate(held_out.images, held_out.owners, held_out.labels)
        log.say(method.notes[-1])
    return labelled.synthetic_ng


def _ok_batches(run: Run, device: torch.device, processes: Processes, log: RunLog) -> Batches:
    section = run.recipe.detector
    rows = [row for row in run.splits.train if row.label == OK]
    log.say(f"{section.kind} ({section.preset}) on {len(rows)} images, {device}")
    with log.bar("preparing images", len(rows)) as advance:
        images = training_tensor(run.manifest, rows, run.recipe.image.geometry, advance)
    return Batches(
        images,
        section.batch_size,
        run.recipe.seed,
        device=device,
        rank=processes.rank,
        world_size=processes.world_size,
    )


def _labelled(
    run: Run, method: ClassifierMethod, device: torch.device, processes: Processes, log: RunLog
) -> TrainingSet:
    for note in method.notes:
        log.say(note)
    processes.barrier()  # until the main process has drawn the synthetic NG
    drawn = Manifest.read(run.folder / SYNTHETIC_FOLDER) if run.recipe.generator is not None else None
    return training_set(
        run.manifest,
        run.splits.train,
        drawn,
        run.recipe,
        method.training,
        device=device,
        processes=processes,
        log=log,
    )


def _finish(run: Run, method: DetectorMethod, synthetic_ng: int, log: RunLog) -> Bundle:
    geometry = run.recipe.image.geometry
    log.say("exporting to ONNX")
    inspector = Inspector(method.detector(), geometry)
    model = export_onnx(inspector)
    # Calibrated on the CPU whatever trained it: the reference that every other runtime is held against.
    session = Session(model, "cpu")
    check = ParityCheck(session.score, torch_scorer(inspector))
    operating_point, heatmap_range = _calibrate(run, run.calibration(method), check, log)
    parity = check.result(operating_point)
    rows = [row for row in run.splits.test if row.label]  # none is synthetic: those are always in train
    with log.bar("testing", len(rows)) as advance:
        scored, pixels = score_with_pixels(session.score, geometry, run.manifest, rows, progress=_to(advance))
    metrics = compute_metrics(scored, operating_point, pixels=pixels)
    manifest = new_manifest(
        model,
        recipe=run.recipe.model_dump(mode="json", exclude_none=True),
        geometry=geometry,
        operating_point=operating_point,
        dataset=DatasetReference(
            fingerprint=run.fingerprint,
            split_fingerprint=run.splits.fingerprint,
            counts=run.splits.counts,
            synthetic_ng=synthetic_ng,
        ),
        metrics=metrics.as_dict() | {"heatmap_range": heatmap_range},
        parity=parity,
    )
    note = "This is the test split: neither training nor the threshold has seen it."
    report = build_report(manifest, session.score, run.manifest, scored, metrics, evaluated="test split", notes=[note])
    bundle = write_bundle(run.folder / BUNDLE_FOLDER, model, manifest, report)
    log.console.print(summary_table(metrics))
    log.say(operating_point.statement())
    log.say(f"bundle: {bundle.path}\nreport: {bundle.report}")
    return bundle


def _calibrate(
    run: Run, rows: list[Row], check: ParityCheck, log: RunLog
) -> tuple[OperatingPoint, tuple[float, float]]:
    """The operating point, and the heatmap values that pictures show as cold and as hot."""
    if not rows:
        raise UserError(
            f"{run.manifest.root} leaves no labelled image for calibration.",
            "Add images, raise splits.calibration in the recipe, or fill the manifest's split column.",
        )
    extremes: list[tuple[float, float]] = []

    def note(index: int, image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> None:
        del index, image
        extremes.append((float(np.median(heatmap)), float(heatmap.max())))

    geometry = run.recipe.image.geometry
    with log.bar("calibrating", len(rows)) as advance:
        scored = score_rows(check.score, geometry, run.manifest, rows, progress=_to(advance), on_heatmap=note)
    operating_point = choose_operating_point(
        scored.ng,
        scored.ok,
        target_fnr=run.recipe.target_fnr,
        confidence=run.recipe.confidence,
        target_specificity=run.recipe.target_specificity,
        review_band=run.recipe.review_band,
        tolerance=VERDICT_MARGIN,
        ng_groups=[row.group for row in scored.rows if row.label == NG],
    )
    cold, hot = np.median([low for low, _ in extremes]), np.quantile([high for _, high in extremes], 0.95)
    return operating_point, (float(cold), float(hot))


def _to(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """From "n more" to "n of all"."""
    seen = 0

    def report(done: int, total: int) -> None:
        nonlocal seen
        del total
        advance(done - seen)
        seen = done

    return report
