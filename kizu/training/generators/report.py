"""What a person looks at after a generator has trained: two pictures and a page."""

from __future__ import annotations

import torch
from torch import Tensor

from kizu.training.evaluation.generator_report import nearest_pairs, render_generator_report
from kizu.training.evaluation.kid_fid import nearest_training_distance
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.progress import save_grid
from kizu.training.synthesis import GeneratorJob, interpolation, read_metrics

SHOWN = 96
"""Images of the page, drawn and real."""
GRID = 48
COLUMNS = 12
BETWEEN = 8
NEIGHBOURS = 12


def write_report(generator: TrainedGenerator, job: GeneratorJob) -> None:
    """Write `grid.png`, `interpolation.png` and `report.html` into the generator's folder."""
    numbers = generator.class_numbers(SHOWN)
    drawn = generator.images(range(SHOWN), numbers)
    strip = interpolation(generator, between=BETWEEN)
    save_grid(drawn[:GRID], job.folder / "grid.png", COLUMNS)
    save_grid(strip, job.folder / "interpolation.png", BETWEEN)
    images, section = job.images, job.section
    order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(0))[:SHOWN]
    real_classes = [images.classes[n] for n in images.labels[order].tolist()] if images.conditional else None
    html = render_generator_report(
        title=job.name,
        facts={
            "generator": f"{section.kind}, preset {section.preset}",
            "run": generator.run,
            "images": f"{images.pixels.shape[3]}×{images.pixels.shape[2]} px, {images.pixels.shape[1]} channel(s)",
            "learned from": f"{len(images.labels)} NG crops of the train split",
            "budget": f"{section.kimg:g} thousand images shown to the discriminator",
            "augmentation": section.augment,
        },
        metrics=read_metrics(job.folder),
        real=images.pixels[order],
        fake=drawn,
        strip=strip,
        nearest=_neighbours(drawn, job),
        classes=list(zip(generator.classes, generator.counts, strict=True)),
        real_classes=real_classes,
        fake_classes=[generator.name(n) for n in numbers] if generator.conditional else None,
        between=BETWEEN,
        heuristic=str(section.options.get("ada_heuristic", "r_t")),
        target=float(section.options.get("ada_target", 0.6)),
    )
    (job.folder / "report.html").write_text(html, encoding="utf-8")


def _neighbours(drawn: Tensor, job: GeneratorJob) -> Tensor | None:
    """The images nearest to a training image, each beside it; None where nothing was measured."""
    if not job.section.measurements:
        return None
    extractor = job.measure_with()
    found = nearest_training_distance(extractor(job.images.pixels), extractor(drawn))
    return nearest_pairs(drawn, job.images.pixels, found, NEIGHBOURS)
