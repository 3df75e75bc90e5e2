"""Synthesis stage of a run: `generator/` with what it learned, `synthetic/` with its NG.

Notable here:
- A resumed run trains the generator only if it has to, and does not sample again what it has sampled.
- What could stop a run (no masks to place by, crops that do not fit) is found before hours go into a generator.
- Paths in a recipe are relative to the recipe first, then to the working directory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kizu import files
from kizu.errors import UserError
from kizu.training.data.crops import Crops, ng_crops
from kizu.training.data.manifest import FILE as MANIFEST_FILE
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.synthetic import SyntheticBatch, write_synthetic
from kizu.training.execution import Execution
from kizu.training.generators import GAN, UNTRAINED, check_keys, placing_config, untrained_config
from kizu.training.generators.placing import DefectStatistics, PlacedGenerator, size_in_view, statistics_by_class
from kizu.training.generators.sampling import batches
from kizu.training.generators.stored import AnyGenerator, make_untrained, save_placed, save_untrained
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.generators.views import Materials, NgViews, OkViews, ng_views, ok_views
from kizu.training.recipe import GeneratorSection, ImageSection
from kizu.training.run import FILTER_FOLDER, GENERATOR_FILE, GENERATOR_FOLDER, PLACED_FILE, PLAN_FILE, SOURCE_FILE, Run
from kizu.training.synthesis import filtering
from kizu.training.synthesis.generator_job import DefectImages, GeneratorJob
from kizu.training.synthesis.report import write_grid, write_report, write_untrained_report

KEPT = 0.5
"""Share that a filter keeps, where the recipe does not say."""


def defect_crops(manifest: Manifest, rows: Sequence[Row], section: GeneratorSection, image: ImageSection) -> Crops:
    """Cut the crops of the rows' NG that a recipe's generator learns from.

    Raises:
        UserError: as `ng_crops`.
    """
    size = section.sides or (image.geometry.height, image.geometry.width)
    geometry = image.geometry.model_copy(update={"height": size[0], "width": size[1]})
    return ng_crops(manifest, rows, geometry, crop=section.crop, context=section.context)


def run_generator(run: Run, execution: Execution) -> Manifest | None:
    """Make the recipe's generator and sample its synthetic NG; None on other processes than the main one.

    Raises:
        UserError: a fault in recipe or data, or a diverged run.
        Interrupted: stopped by a signal, with a checkpoint to resume from.
    """
    section = run.recipe.generator
    assert section is not None
    check_keys(section)
    stage = _Stage(run, section, execution)
    return stage.trained() if section.kind == GAN else stage.untrained()


@dataclass(frozen=True)
class _Placement:
    """OK views for the defects of crops, and the crops' size and statistics."""

    views: OkViews
    size: tuple[int, int]
    """Height and width of a crop in pixels of a view."""
    statistics: dict[str, DefectStatistics]


@dataclass(frozen=True)
class _Stage:
    run: Run
    section: GeneratorSection
    execution: Execution

    @property
    def folder(self) -> Path:
        return self.run.generator_folder

    def untrained(self) -> Manifest | None:
        """Sample by a kind that does not train."""
        section, kind = self.section, UNTRAINED[self.section.kind]
        config = untrained_config(section)
        if not self.execution.processes.is_main:
            return None
        if (manifest := self._sampled_before(self._name())) is not None:
            return manifest
        ng = self._ng() if kind.needs_ng else None
        if kind.located_ng_if is not None and kind.located_ng_if(config):
            ng = self._located(self._ng())
        materials = Materials(self._ok().images if kind.needs_ok else None, ng)
        generator = make_untrained(section.kind, self._name(), config, materials)
        save_untrained(generator, self.folder)
        self.execution.log.say(f"{section.kind}: drawing {section.count} synthetic NG")
        write_untrained_report(generator, self.folder, self.run.recipe.name, self._facts(materials))
        return self._write(generator)

    def trained(self) -> Manifest | None:
        """Sample by a trained generator: its crops as they are, or placed."""
        run, section = self.run, self.section
        crops = defect_crops(run.manifest, run.training, section, run.recipe.image)
        placement = self._placement(crops) if section.placed else None
        generator = self._train(DefectImages.of(crops, section.conditional))
        if not self.execution.processes.is_main:
            return None
        if placement is not None:
            return self._place(generator, placement)
        (self.folder / SOURCE_FILE).unlink(missing_ok=True)
        return self._sampled_before(generator.run) or self._write(generator)

    def _train(self, images: DefectImages) -> TrainedGenerator:
        """Train the generator and report on it; a resumed run takes what it has finished."""
        log = self.execution.log.child(GENERATOR_FOLDER)
        try:
            job = self._job(images, replace(self.execution, log=log))
            if self.execution.resume and (finished := _finished(job)) is not None:
                return finished
            generator = job.train()
            if self.execution.processes.is_main:
                write_report(generator, job)
            return generator
        finally:
            log.close()

    def _job(self, images: DefectImages, execution: Execution) -> GeneratorJob:
        run, section = self.run, self.section
        return GeneratorJob(
            section=section,
            images=images,
            seed=run.recipe.seed,
            folder=self.folder,
            name=run.recipe.name,
            execution=execution,
            start=_find(section.start_from, run.recipe_dir, "start_from"),
            inception=_find(section.inception, run.recipe_dir, "inception"),
        )

    def _placement(self, crops: Crops) -> _Placement:
        section, image = self.section, self.run.recipe.image
        placing_config(section)  # refuses options now that would stop the run after training
        views = self._ok()
        size = section.sides or (image.geometry.height, image.geometry.width)
        crop = section.crop or image.tile or max(size)
        window = size[0] * crop / max(size), size[1] * crop / max(size)
        shown = size_in_view(window, views.scale, (image.geometry.height, image.geometry.width))
        return _Placement(views, shown, statistics_by_class(crops, shown))

    def _place(self, crops: TrainedGenerator, placement: _Placement) -> Manifest:
        """Sample the defects of crops into OK views."""
        views, name = placement.views, self._name(crops.run)
        config = placing_config(self.section)
        generator = PlacedGenerator(crops, views.images, placement.size, placement.statistics, config, name)
        if (manifest := self._sampled_before(name)) is not None:
            return manifest
        save_placed(generator, self.folder)
        picture = self.folder / PLACED_FILE
        write_grid(generator, picture)
        self.execution.log.say(f"defects placed in {len(views)} OK views: {picture}")
        return self._write(generator)

    def _ok(self) -> OkViews:
        run = self.run
        with self.execution.log.bar("preparing OK views", len(run.training)) as advance:
            return ok_views(
                run.manifest,
                run.training,
                run.recipe.image.geometry,
                seed=run.recipe.seed,
                progress=advance,
            )

    def _ng(self) -> NgViews:
        return ng_views(self.run.manifest, self.run.training, self.run.recipe.image.geometry)

    def _located(self, ng: NgViews) -> NgViews:
        if not ng.located.any():
            raise UserError(
                f"{self.run.manifest.root}: none of the train split's NG has boxes or a mask, so there is no defect "
                f"that '{self.section.kind}' could take out of them.",
                'Give boxes or masks in the manifest, or set patches = "ok" in [generator.options].',
            )
        return ng.only(ng.located)

    def _name(self, trained: str = "") -> str:
        """Return the recipe's name with a digest of everything that decides what is sampled."""
        run = self.run
        decisive = self.section.model_dump(mode="json", include={"kind", "options", "placed"})
        data = [run.recipe.image.model_dump(mode="json"), run.recipe.seed, run.fingerprint, run.splits.fingerprint]
        data += [row.path for row in run.ranking]
        content = json.dumps([decisive, data, trained], sort_keys=True)
        return f"{run.recipe.name}@{hashlib.sha256(content.encode()).hexdigest()[:12]}"

    def _facts(self, materials: Materials) -> dict[str, str]:
        options = ", ".join(f"{name} = {value}" for name, value in self.section.options.items())
        facts = {"generator": self.section.kind, "options": options or "as they come", "run": self._name()}
        if materials.ok is not None:
            facts["OK views"] = f"{len(materials.ok)} of the train split"
        if materials.ng is not None:
            facts["NG views"] = ", ".join(f"{name} {count}" for name, count in materials.ng.counts.items())
        return facts

    def _plan(self, name: str) -> dict[str, object]:
        section = self.section
        return {
            "run": name,
            "seed": self.run.recipe.seed,
            **section.model_dump(mode="json", include={"count", "truncation", "filter", "keep"}),
        }

    def _sampled_before(self, name: str) -> Manifest | None:
        """Return `synthetic/` if it holds just what would be sampled."""
        dest, plan = self.run.synthetic_folder, self.folder / PLAN_FILE
        if not (dest / MANIFEST_FILE).exists() or not plan.exists():
            return None
        if json.loads(plan.read_text(encoding="utf-8")) != self._plan(name):
            return None
        return Manifest.read(dest)

    def _write(self, generator: AnyGenerator) -> Manifest:
        section, seed = self.section, self.run.recipe.seed
        dest, plan = self.run.synthetic_folder, self.folder / PLAN_FILE
        plan.unlink(missing_ok=True)
        if dest.exists():
            shutil.rmtree(dest)
        samples: Iterable[SyntheticBatch] = batches(generator, section.count, seed=seed, truncation=section.truncation)
        if section.filter != "none":
            samples = self._filtered(generator)
        with self.execution.log.bar("drawing NG", section.count) as advance:
            manifest = write_synthetic(
                dest, samples, kind=generator.kind, run=generator.run, total=section.count, progress=advance
            )
        files.write_text(plan, json.dumps(self._plan(generator.run)))
        return manifest

    def _filtered(self, generator: AnyGenerator) -> Iterable[SyntheticBatch]:
        section, seed = self.section, self.run.recipe.seed
        keep = KEPT if section.keep is None else section.keep
        rated: AnyGenerator = generator
        if section.filter == "discriminator":
            rated = generator.crops if isinstance(generator, PlacedGenerator) else generator
            assert isinstance(rated, TrainedGenerator)
            rating = filtering.discriminator_rating(rated, section, self.folder)
        else:
            geometry, folder = self.run.recipe.image.geometry, self.folder / FILTER_FOLDER
            rating = filtering.classifier_rating(
                self._ok().images, self._ng(), geometry, folder, self.execution, seed=seed
            )
        total = filtering.candidates(section.count, keep)
        self.execution.log.say(f"keeping {section.count} of {total} synthetic NG, as the {section.filter} rates them")
        return filtering.filtered(
            generator, rated, rating, count=section.count, keep=keep, seed=seed, truncation=section.truncation
        )


def _finished(job: GeneratorJob) -> TrainedGenerator | None:
    """Return the folder's generator if it is the one that this job would train."""
    if not (job.folder / GENERATOR_FILE).exists():
        return None
    generator = TrainedGenerator.load(job.folder)
    generator.network.to(job.execution.device)
    return generator if generator.run == job.run else None


def _find(path: str | None, recipe_dir: Path, key: str) -> Path | None:
    if path is None:
        return None
    for candidate in (recipe_dir / path, Path(path)):
        if candidate.exists():
            return candidate
    raise UserError(
        f"generator.{key}: there is no {path}, neither beside the recipe nor at {Path(path).resolve()}.",
        "Correct the path in the recipe, or leave the key out.",
    )
