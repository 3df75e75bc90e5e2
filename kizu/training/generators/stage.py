"""The generator's part of a run: `generator/` with what it learned, `synthetic/` with the NG it drew.

Notable here:
- A resumed run trains the generator only if it has to, and does not draw again what it has drawn.
- Paths in a recipe are relative to the recipe first, then to the working directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.crops import ng_crops
from kizu.training.data.manifest import FILE as MANIFEST_FILE
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.synthetic import write_synthetic
from kizu.training.generators.report import write_report
from kizu.training.generators.trained import FILE as TRAINED_FILE
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.loop import LoopSettings
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection, ImageSection
from kizu.training.synthesis import DefectImages, GeneratorJob

FOLDER = "generator"
SYNTHETIC_FOLDER = "synthetic"


def defect_images(
    manifest: Manifest, rows: Sequence[Row], section: GeneratorSection, image: ImageSection
) -> DefectImages:
    """The crops of the rows' NG that a recipe's generator learns from.

    Raises:
        UserError: as `ng_crops`.
    """
    size = section.sides or (image.geometry.height, image.geometry.width)
    geometry = InputGeometry(
        height=size[0], width=size[1], channels=image.channels, tile=image.tile, stride=image.geometry.stride
    )
    crops = ng_crops(manifest, rows, geometry, crop=section.crop, context=section.context)
    return DefectImages.of(crops, section.conditional)


def run_generator(
    section: GeneratorSection,
    images: DefectImages,
    folder: Path,
    *,
    name: str,
    seed: int,
    beside: Path,
    log: RunLog,
    processes: Processes,
    device: str = "auto",
    resume: bool = False,
    settings: LoopSettings | None = None,
) -> Manifest | None:
    """Train a generator and draw `section.count` of NG; None on other processes than the main one.

    Args:
        folder: the run's.
        name: the recipe's.
        beside: the recipe's folder; paths in it are relative to that first, then to the working directory.

    Raises:
        UserError: a fault in recipe or data, or a diverged run.
        Interrupted: stopped by a signal, with a checkpoint to resume from.
    """
    own = log.beneath(FOLDER)
    job = GeneratorJob(
        section=section,
        images=images,
        seed=seed,
        folder=folder / FOLDER,
        name=name,
        log=own,
        device=device,
        processes=processes,
        settings=settings,
        start=_find(section.start_from, beside, "start_from"),
        inception=_find(section.inception, beside, "inception"),
    )
    try:
        generator = _finished(job) if resume else None
        if generator is None:
            generator = job.train(resume=resume)
            if processes.is_main:
                write_report(generator, job)
        return _draw(generator, section, folder, seed, log) if processes.is_main else None
    finally:
        own.close()


def _draw(generator: TrainedGenerator, section: GeneratorSection, folder: Path, seed: int, log: RunLog) -> Manifest:
    dest = folder / SYNTHETIC_FOLDER
    if (dest / MANIFEST_FILE).exists():
        drawn = Manifest.read(dest)
        if len(drawn) == section.count and all(f":{generator.run}:" in row.origin for row in drawn.rows):
            return drawn
        shutil.rmtree(dest)
    with log.bar("drawing NG", section.count) as advance:
        return write_synthetic(
            dest,
            generator.batches(section.count, seed=seed, truncation=section.truncation),
            kind=generator.kind,
            run=generator.run,
            total=section.count,
            progress=advance,
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
