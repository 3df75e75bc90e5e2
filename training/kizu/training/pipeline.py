"""Pipeline of a run: recipe → splits → generator → detectors → operating point → bundle.

Notable here:
- A detector sees the train split, the threshold the calibration split (or the certification split, where the recipe
  reserves one), the report the test split, each once. No epoch is chosen by test results: the last one ships.
- Everything after training runs on the exported graph, not on torch.
- A run folder holds what is needed to repeat or resume it (the recipe, the splits, the checkpoint), and the score of
  every image that calibrated or tested. Scores of a certification split are only in the bundle, without their images,
  for another threshold to be certified on: nobody is to look at them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.markup import escape

from kizu.errors import Faults, UserError
from kizu.models.bundle import Bundle, DatasetReference, new_manifest, write_bundle
from kizu.models.calibration import CalibrationScore, CalibrationScores
from kizu.models.inspector import Inspector
from kizu.training.combination import combined
from kizu.training.data.labelled import defect_classes
from kizu.training.data.manifest import OK, Manifest
from kizu.training.data.masks import check_located, check_mask_sizes
from kizu.training.data.sizes import check_sizes
from kizu.training.data.splits import write_splits
from kizu.training.detectors import create_detector
from kizu.training.detectors.method import DetectorMethod
from kizu.training.evaluation.detection import compute_metrics
from kizu.training.evaluation.evaluate import build_report, score_with_pixels
from kizu.training.evaluation.scoring import Scored, write_scores
from kizu.training.evaluation.summary import summary_table
from kizu.training.execution import Execution
from kizu.training.generators import check_options
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.parallel import Processes
from kizu.training.pretrained import Backbones
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection, find_dataset, read_recipe
from kizu.training.run import BUNDLE_FOLDER, RECIPE_FILE, REPORT_FILE, SCORES_FILE, SPLITS_FILE, Run, open_run, owning
from kizu.training.shipping import graph_to_ship
from kizu.training.synthesis.stage import run_generator
from kizu.training.training_set import TrainingSet, check_synthetic_geometry, labelled_set, ok_set


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
    with owning(folder) if processes.is_main else nullcontext():
        log = RunLog(folder if processes.is_main else None, quiet=quiet or not processes.is_main)
        try:
            run = open_run(recipe, Manifest.read(find_dataset(recipe, recipe_path)), folder, recipe_path.parent, log)
            if processes.is_main:
                (folder / RECIPE_FILE).write_bytes(recipe_path.read_bytes())
            where = processes.device(device)
            return train_run(run, Execution(log, where, processes, resume, settings or LoopSettings()))
        finally:
            log.close()


def train_run(run: Run, execution: Execution) -> Bundle | None:
    """Train a run that is open; the caller locks its folder. Returns and raises as `train`."""
    if execution.processes.is_main:
        run.folder.mkdir(parents=True, exist_ok=True)
        write_splits(run.folder / SPLITS_FILE, run.splits)
    return _Training(run, execution).bundle()


@dataclass(frozen=True)
class _Training:
    """Stages of one run, in their order."""

    run: Run
    execution: Execution
    backbones: Backbones = field(default_factory=Backbones)

    def bundle(self) -> Bundle | None:
        """Train everything and export it; None on other processes than the main one."""
        recipe = self.run.recipe
        members = self._members()
        notes = self._checked_data(members)
        if recipe.generator is not None:
            self._synthesise(members)
        synthetic_ng = [self._fit(index, method) for index, method in enumerate(members)]
        if not self.execution.processes.is_main:
            return None
        return _finish(self.run, members, max(synthetic_ng), notes, self.execution.log)

    def _members(self) -> list[DetectorMethod]:
        """Make the detectors and check the recipe's sections, each by itself and then against the others.

        A slip in one option may be why two sections do not go together, so slips are told first, all of them.
        """
        recipe, slips, mismatches = self.run.recipe, Faults(), Faults()
        geometry, members = recipe.image.geometry, []
        if recipe.generator is not None:
            with slips.noted():
                check_options(recipe.generator, (geometry.height, geometry.width), geometry.channels)
        for index in range(len(recipe.detector)):
            with slips.noted():
                members.append(self._member(index))
        slips.tell()
        for method in members:
            with mismatches.noted():
                method.check(recipe.generator)
        with mismatches.noted():
            self._check_sections(members)
        if recipe.generator is not None and _users(members):
            with mismatches.noted():
                check_synthetic_geometry(self.run.manifest, self.run.training, recipe.generator, recipe.image)
        mismatches.tell()
        return members

    def _check_sections(self, members: list[DetectorMethod]) -> None:
        run, recipe = self.run, self.run.recipe
        if len(recipe.detector) > 1 and not run.ranking:
            ok = sum(row.label == OK for row in run.splits.train)
            raise UserError(
                f"{run.manifest.root} leaves {ok} OK image{'s' * (ok != 1)} to train on, and the scores of several "
                "detectors are made comparable on OK images that none of them trains on.",
                "Add OK images, or name one detector only.",
            )
        if recipe.export.quantise is not None and not any(method.pretrained for method in members):
            raise UserError(
                f'[export]: quantise = "{recipe.export.quantise}" is for pretrained backbones, and '
                f"'{recipe.detector[0].kind}' has none here.",
                "Leave it out, or choose a detector that has: auto, supersimplenet, memory, padim or flow.",
            )
        if recipe.augment is not None and all(method.augment is None for method in members):
            raise UserError(
                f"[augment]: '{recipe.detector[0].kind}' takes its images as they are.",
                "Leave the section out, or choose a detector that alters them: supersimplenet, classifier, "
                "semi-supervised or draem.",
            )

    def _checked_data(self, members: list[DetectorMethod]) -> list[str]:
        """Refuse data that the recipe cannot use, before hours of anything; return notes for log and report."""
        run, log = self.run, self.execution.log
        if run.recipe.generator is not None or any(method.sampling is not None for method in members):
            check_mask_sizes(run.manifest, run.training)
        if any(method.sampling is not None for method in members):
            check_located(run.manifest, run.training, run.recipe.image.geometry)
        read = {row.path for row in run.splits.train} if any(method.uses_unlabelled for method in members) else set()
        rows = [row for row in run.splits.rows if row.label or row.path in read]
        with log.bar("checking sizes", len(rows)) as advance:
            enlarged = check_sizes(run.manifest, rows, run.recipe.image.geometry, advance)
        notes = [*run.notes, *([enlarged] if enlarged else [])]
        for note in notes:
            log.say(escape(note))
        return notes

    def _member(self, index: int) -> DetectorMethod:
        recipe = self.run.recipe
        torch.manual_seed(self._seed(index))
        section = _with_weights_found(recipe.detector[index], self.run.recipe_dir)
        defects = defect_classes(self.run.training)
        return create_detector(
            recipe.image.geometry, section, recipe.augment, defects=defects, backbones=self.backbones
        )

    def _synthesise(self, members: list[DetectorMethod]) -> None:
        run, log = self.run, self.execution.log
        synthetic = run_generator(run, self.execution)
        if synthetic is None:
            return
        log.say(f"{len(synthetic)} synthetic NG: {synthetic.root}\nhow they look: {run.generator_folder / REPORT_FILE}")
        if not _users(members):
            kinds = " and ".join(detector.kind for detector in run.recipe.detector)
            log.say(f"{kinds} learns without NG: the synthetic NG do not change it")

    def _fit(self, index: int, method: DetectorMethod) -> int:
        """Train one detector; return the number of synthetic NG that took part."""
        run, processes, device = self.run, self.execution.processes, self.execution.device
        section, folder = run.recipe.detector[index], run.detector_folder(index)
        log = self.execution.log if folder == run.folder else self.execution.log.child(folder.name)
        for note in method.notes:
            log.say(note)
        processes.barrier()  # until the main process has sampled the synthetic NG
        method.begin(run.folder)
        training = self._training_set(index, method)
        method.networks.to(device)
        if device.type == "cuda":
            method.networks.to(memory_format=torch.channels_last)
        processes.copy_from_main(method.networks)
        method.prepare(training, log)
        torch.manual_seed(self._seed(index) + 1 + processes.rank)
        loop = TrainingLoop(
            method,
            training.batches,
            folder,
            identity=run.identity(section),
            log=log,
            processes=processes,
            settings=self.execution.settings,
        )
        if self.execution.resume and loop.resume():
            log.say(f"resuming at stage {loop.stage_index + 1}, step {loop.step}")
        loop.run()
        said = len(method.notes)
        if processes.is_main:
            method.finish(training)
        for note in method.notes[said:]:
            log.say(note)
        return training.synthetic_ng

    def _seed(self, index: int) -> int:
        """Seed of one detector: several of one kind differ in weights, order of images and held-out images."""
        return self.run.recipe.seed + 1009 * index

    def _training_set(self, index: int, method: DetectorMethod) -> TrainingSet:
        run, section, seed = self.run, self.run.recipe.detector[index], self._seed(index)
        unlabelled = method.uses_unlabelled
        if method.sampling is None:
            return ok_set(run, section, seed, self.execution, unlabelled=unlabelled)
        synthetic = Manifest.read(run.synthetic_folder) if run.recipe.generator is not None else None
        return labelled_set(run, section, method.sampling, synthetic, seed, self.execution, unlabelled=unlabelled)


def _users(members: list[DetectorMethod]) -> list[DetectorMethod]:
    """The detectors that synthetic NG train."""
    return [method for method in members if method.sampling is not None and method.sampling.synthetic_ratio]


def _with_weights_found(section: DetectorSection, recipe_dir: Path) -> DetectorSection:
    """Resolve the path of `weights`: relative to the recipe first, then to the working directory."""
    path = section.options.get("weights")
    if not isinstance(path, str) or not (recipe_dir / path).exists():
        return section
    return section.model_copy(update={"options": {**section.options, "weights": str(recipe_dir / path)}})


def _finish(run: Run, members: list[DetectorMethod], synthetic_ng: int, notes: list[str], log: RunLog) -> Bundle:
    geometry = run.recipe.image.geometry
    rows_to_calibrate = run.calibration(ng_unseen=not any(method.learns_from_ng for method in members))
    detector, of_combination = combined(run, members, log)
    graph = graph_to_ship(run, Inspector(detector, geometry), rows_to_calibrate, log)
    rows = [row for row in run.splits.test if row.label]  # none is synthetic: those are always in train
    with log.bar("testing", len(rows)) as advance:
        scored, pixels = score_with_pixels(graph.session.score, geometry, run.manifest, rows, progress=advance)
    write_scores(run.folder / SCORES_FILE, {"calibration": graph.calibration, "test": scored})
    metrics = compute_metrics(scored, graph.operating_point, pixels=pixels)
    kept = _calibration_scores({"calibration": graph.calibration, "certification": graph.certification})
    manifest = new_manifest(
        graph.model,
        kept,
        recipe=run.recipe.model_dump(mode="json", exclude_none=True),
        geometry=geometry,
        operating_point=graph.operating_point,
        dataset=DatasetReference(
            fingerprint=run.fingerprint,
            split_fingerprint=run.splits.fingerprint,
            counts=run.splits.counts,
            synthetic_ng=synthetic_ng,
        ),
        metrics=metrics.as_dict() | {"heatmap_range": graph.heatmap_range},
        parity=graph.parity,
        quantisation=graph.quantisation,
        pretrained=list(dict.fromkeys(weights for method in members for weights in method.pretrained)),
    )
    notes = [
        "This is the test split: neither training nor the threshold has seen it.",
        *notes,
        *([graph.quantisation.statement()] if graph.quantisation and not graph.quantisation.applied else []),
        *of_combination,
        *_member_notes(run, members),
    ]
    report = build_report(
        manifest, graph.session.score, run.manifest, scored, metrics, evaluated="test split", notes=notes
    )
    bundle = write_bundle(run.folder / BUNDLE_FOLDER, graph.model, kept, manifest, report)
    log.console.print(summary_table(metrics))
    log.say(graph.operating_point.statement())
    log.say(f"bundle: {bundle.path}\nreport: {bundle.report}")
    return bundle


def _member_notes(run: Run, members: list[DetectorMethod]) -> list[str]:
    """What each detector has to say, after its number and kind where there are several."""
    names = [f"Detector {i}, {section.kind}: " for i, section in enumerate(run.recipe.detector, 1)]
    names = names if len(members) > 1 else [""]
    return [name + note for name, method in zip(names, members, strict=True) for note in method.notes]


def _calibration_scores(sets: Mapping[str, Scored | None]) -> CalibrationScores:
    """Keep the scores of each set for `calibration.csv`."""
    return CalibrationScores(
        tuple(
            CalibrationScore(name, row.label, row.group, score)
            for name, scored in sets.items()
            if scored is not None
            for row, score in zip(scored.rows, scored.scores.tolist(), strict=True)
        )
    )
