"""The generator's part of a run: `generator/` with what it learned or draws from, `synthetic/` with the NG it drew.

Notable here:
- A resumed run trains the generator only if it has to, and does not draw again what it has drawn.
- What could stop a run (no masks to place by, crops that do not fit) is found before hours go into a generator.
- Paths in a recipe are relative to the recipe first, then to the working directory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kizu import files
from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.crops import Crops, ng_crops
from kizu.training.data.manifest import FILE as MANIFEST_FILE
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.synthetic import Batch, write_synthetic
from kizu.training.generators import DRAWN, GAN, check_keys, drawing_config, placing_config
from kizu.training.generators.drawing import FILE as DRAWING_FILE
from kizu.training.generators.drawing import DrawingGenerator, batches, read, save
from kizu.training.generators.placing import DefectPlaces, PlacedGenerator, PlacingConfig, places_of, size_in_view
from kizu.training.generators.report import write_drawing_report, write_grid, write_report
from kizu.training.generators.trained import FILE as TRAINED_FILE
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.generators.views import Materials, NgViews, OkViews, ng_views, ok_views
from kizu.training.loop import LoopSettings
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection, ImageSection
from kizu.training.run import Run
from kizu.training.synthesis import DefectImages, GeneratorJob

FOLDER = "generator"
SYNTHETIC_FOLDER = "synthetic"
DRAWN_FILE = "drawn.json"
"""What `synthetic/` was drawn from."""
KEPT = 0.5
"""Share that a filter keeps, where the recipe does not say."""

AnyGenerator = TrainedGenerator | PlacedGenerator | DrawingGenerator


def defect_crops(manifest: Manifest, rows: Sequence[Row], section: GeneratorSection, image: ImageSection) -> Crops:
    """The crops of the rows' NG that a recipe's generator learns from.

    Raises:
        UserError: as `ng_crops`.
    """
    size = section.sides or (image.geometry.height, image.geometry.width)
    geometry = InputGeometry(
        height=size[0], width=size[1], channels=image.channels, tile=image.tile, stride=image.geometry.stride
    )
    return ng_crops(manifest, rows, geometry, crop=section.crop, context=section.context)


def run_generator(
    run: Run,
    *,
    log: RunLog,
    processes: Processes,
    device: str = "auto",
    resume: bool = False,
    settings: LoopSettings | None = None,
) -> Manifest | None:
    """Make the recipe's generator and draw its synthetic NG; None on other processes than the main one.

    Raises:
        UserError: a fault in recipe or data, or a diverged run.
        Interrupted: stopped by a signal, with a checkpoint to resume from.
    """
    section = run.recipe.generator
    assert section is not None
    check_keys(section)
    stage = _Stage(run, section, log, processes, device, resume, settings)
    return stage.drawn() if section.kind != GAN else stage.learned()


def open_generator(folder: Path) -> AnyGenerator:
    """The generator of a run: what `kizu synthesize` draws from.

    Args:
        folder: the run's, or its `generator/`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    if not (folder / DRAWING_FILE).exists():
        return TrainedGenerator.load(folder)
    state = read(folder)
    kind, run, content = state["kind"], state["run"], state["content"]
    if kind == GAN:
        crops = TrainedGenerator.load(folder)
        return PlacedGenerator.from_content(crops, content, PlacingConfig(**state["config"]), run)
    return _drawing(kind, run, DRAWN[kind].config(**state["config"]), Materials.from_state(content))


def _drawing(kind: str, run: str, config: object, materials: Materials) -> DrawingGenerator:
    drawer = DRAWN[kind].drawer(config, materials)
    if materials.ng is None:
        return DrawingGenerator(kind, run, config, materials, drawer)
    counts = materials.ng.counts
    return DrawingGenerator(kind, run, config, materials, drawer, tuple(counts), tuple(counts.values()))


@dataclass
class _Stage:
    run: Run
    section: GeneratorSection
    log: RunLog
    processes: Processes
    device: str
    resume: bool
    settings: LoopSettings | None

    @property
    def folder(self) -> Path:
        return self.run.folder / FOLDER

    def drawn(self) -> Manifest | None:
        """By a kind that does not train."""
        section, kind = self.section, DRAWN[self.section.kind]
        config = drawing_config(section)
        if not self.processes.is_main:
            return None
        if (manifest := self._already(self._name())) is not None:
            return manifest
        ng = self._ng() if kind.needs_ng else None
        if kind.located_ng_if is not None and kind.located_ng_if(config):
            ng = self._located(self._ng())
        materials = Materials(self._ok().images if kind.needs_ok else None, ng)
        generator = _drawing(section.kind, self._name(), config, materials)
        generator.save(self.folder)
        self.log.say(f"{section.kind}: drawing {section.count} synthetic NG")
        write_drawing_report(generator, self.folder, self.run.recipe.name, self._facts(materials))
        return self._write(generator)

    def learned(self) -> Manifest | None:
        """By a trained generator; its crops as they are, or placed."""
        run, section = self.run, self.section
        crops = defect_crops(run.manifest, run.splits.train, section, run.recipe.image)
        place = self._placing(crops) if section.placed else None
        own = self.log.beneath(FOLDER)
        job = self._job(DefectImages.of(crops, section.conditional), own)
        try:
            trained = _finished(job) if self.resume else None
            if trained is None:
                trained = job.train(resume=self.resume)
                if self.processes.is_main:
                    write_report(trained, job)
        finally:
            own.close()
        if not self.processes.is_main:
            return None
        if place is None:
            (self.folder / DRAWING_FILE).unlink(missing_ok=True)
            return self._already(trained.run) or self._write(trained)
        views, size, places = place
        name = self._name(trained.run)
        generator = PlacedGenerator(trained, views.images, size, places, placing_config(section), name)
        if (manifest := self._already(name)) is not None:
            return manifest
        save(self.folder, GAN, name, dataclasses.asdict(generator.config), generator.content())
        write_grid(generator, self.folder / "placed.png")
        self.log.say(f"defects placed in {len(views)} OK views: {self.folder / 'placed.png'}")
        return self._write(generator)

    def _job(self, images: DefectImages, log: RunLog) -> GeneratorJob:
        run, section = self.run, self.section
        return GeneratorJob(
            section=section,
            images=images,
            seed=run.recipe.seed,
            folder=self.folder,
            name=run.recipe.name,
            log=log,
            device=self.device,
            processes=self.processes,
            settings=self.settings,
            start=_find(section.start_from, run.beside, "start_from"),
            inception=_find(section.inception, run.beside, "inception"),
        )

    def _placing(self, crops: Crops) -> tuple[OkViews, tuple[int, int], dict[str, DefectPlaces]]:
        section, image = self.section, self.run.recipe.image
        placing_config(section)
        views = self._ok()
        size = section.sides or (image.geometry.height, image.geometry.width)
        crop = section.crop or image.tile or max(size)
        window = size[0] * crop / max(size), size[1] * crop / max(size)
        shown = size_in_view(window, views.scale, (image.geometry.height, image.geometry.width))
        return views, shown, places_of(crops, shown)

    def _ok(self) -> OkViews:
        run = self.run
        with self.log.bar("preparing OK views", len(run.splits.train)) as advance:
            return ok_views(
                run.manifest,
                run.splits.train,
                run.recipe.image.geometry,
                seed=run.recipe.seed,
                progress=advance,
            )

    def _ng(self) -> NgViews:
        return ng_views(self.run.manifest, self.run.splits.train, self.run.recipe.image.geometry)

    def _located(self, ng: NgViews) -> NgViews:
        if not ng.located.any():
            raise UserError(
                f"{self.run.manifest.root}: none of the train split's NG has boxes or a mask, so there is no defect "
                f"that '{self.section.kind}' could take out of them.",
                'Give boxes or masks in the manifest, or set patches = "ok" in [generator.options].',
            )
        return ng.only(ng.located)

    def _name(self, trained: str = "") -> str:
        """The recipe's name with a digest of everything that decides what is drawn."""
        run = self.run
        decisive = self.section.model_dump(mode="json", include={"kind", "options", "placed"})
        data = [run.recipe.image.model_dump(mode="json"), run.recipe.seed, run.fingerprint, run.splits.fingerprint]
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

    def _already(self, name: str) -> Manifest | None:
        """`synthetic/`, if it is just what would be drawn."""
        dest, plan = self.run.folder / SYNTHETIC_FOLDER, self.folder / DRAWN_FILE
        if not (dest / MANIFEST_FILE).exists() or not plan.exists():
            return None
        if json.loads(plan.read_text(encoding="utf-8")) != self._plan(name):
            return None
        return Manifest.read(dest)

    def _write(self, generator: AnyGenerator) -> Manifest:
        section, seed = self.section, self.run.recipe.seed
        dest, plan = self.run.folder / SYNTHETIC_FOLDER, self.folder / DRAWN_FILE
        plan.unlink(missing_ok=True)
        if dest.exists():
            shutil.rmtree(dest)
        made: Iterable[Batch] = batches(generator, section.count, seed=seed, truncation=section.truncation)
        if section.filter != "none":
            made = self._filtered(generator)
        with self.log.bar("drawing NG", section.count) as advance:
            manifest = write_synthetic(
                dest, made, kind=generator.kind, run=generator.run, total=section.count, progress=advance
            )
        files.write_text(plan, json.dumps(self._plan(generator.run)))
        return manifest

    def _filtered(self, generator: AnyGenerator) -> Iterable[Batch]:
        # Not at the top: detectors, one of which filters, know this module.
        from kizu.training.generators import filtering

        section, seed = self.section, self.run.recipe.seed
        keep = KEPT if section.keep is None else section.keep
        device = self.processes.device(self.device)
        rated: AnyGenerator = generator
        if section.filter == "discriminator":
            rated = generator.crops if isinstance(generator, PlacedGenerator) else generator
            assert isinstance(rated, TrainedGenerator)
            rating = filtering.discriminator_rating(rated, section, self.folder)
        else:
            geometry = self.run.recipe.image.geometry
            rating = filtering.classifier_rating(
                self._ok().images, self._ng(), geometry, self.folder / "filter", seed=seed, device=device, log=self.log
            )
        total = filtering.candidates(section.count, keep)
        self.log.say(f"keeping {section.count} of {total} synthetic NG, as the {section.filter} rates them")
        return filtering.filtered(
            generator, rated, rating, count=section.count, keep=keep, seed=seed, truncation=section.truncation
        )


def _finished(job: GeneratorJob) -> TrainedGenerator | None:
    """The folder's generator, if it is the one that this job would train."""
    if not (job.folder / TRAINED_FILE).exists():
        return None
    generator = TrainedGenerator.load(job.folder)
    generator.network.to(job.processes.device(job.device))
    return generator if generator.run == job.run else None


def _find(path: str | None, beside: Path, key: str) -> Path | None:
    if path is None:
        return None
    for candidate in (beside / path, Path(path)):
        if candidate.exists():
            return candidate
    raise UserError(
        f"generator.{key}: there is no {path}, neither beside the recipe nor at {Path(path).resolve()}.",
        "Correct the path in the recipe, or leave the key out.",
    )
