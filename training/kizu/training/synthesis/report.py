"""Report of a generator: pictures and a page."""

from __future__ import annotations

import base64
from collections import Counter
from html import escape
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from kizu.training.data.loading import to_pixels
from kizu.training.data.synthetic import SyntheticBatch
from kizu.training.evaluation.generator_report import nearest_pairs, render_generator_report
from kizu.training.evaluation.kid_fid import nearest_training_distance
from kizu.training.generators.sampling import DefectGenerator
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.progress import save_grid
from kizu.training.run import GRID_FILE, INTERPOLATION_FILE, REPORT_FILE
from kizu.training.synthesis.generator_job import GeneratorJob
from kizu.training.synthesis.metrics import read_metrics

SHOWN = 96
"""Images of the page, synthetic and real."""
GRID = 48
COLUMNS = 12
BETWEEN = 8
NEIGHBOURS = 12
OUTLINED = 40
"""Images of a picture that shows each with its mask."""
LEAST_SIDE = 96
"""Pixels of an image's longer side in that picture, at least: smaller ones are enlarged by a whole number."""
OUTLINE = (255, 0, 96)


def write_report(generator: TrainedGenerator, job: GeneratorJob) -> None:
    """Write `grid.png`, `interpolation.png` and `report.html` into the generator's folder."""
    numbers = generator.class_numbers(SHOWN)
    fakes = generator.images(range(SHOWN), numbers)
    strip = interpolation(generator, between=BETWEEN)
    save_grid(fakes[:GRID], job.folder / GRID_FILE, COLUMNS)
    save_grid(strip, job.folder / INTERPOLATION_FILE, BETWEEN)
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
        fake=fakes,
        strip=strip,
        nearest=_neighbours(fakes, job),
        classes=list(zip(generator.classes, generator.counts, strict=True)),
        real_classes=real_classes,
        fake_classes=[generator.name(n) for n in numbers] if generator.conditional else None,
        between=BETWEEN,
        heuristic=str(section.options.get("ada_heuristic", "r_t")),
        target=float(section.options.get("ada_target", 0.6)),
    )
    (job.folder / REPORT_FILE).write_text(html, encoding="utf-8")


def interpolation(generator: TrainedGenerator, *, stations: int = 4, between: int = 8, seed: int = 0) -> Tensor:
    """Walk through w from image to image, without noise: uint8 [stations · between, C, H, W]."""
    network = generator.network
    device = next(network.parameters()).device
    z = generator.latents(range(seed, seed + stations)).to(device)
    numbers = generator.class_numbers(stations)
    classes = torch.tensor(numbers, device=device) if generator.conditional else None
    w = network.mapping(z, classes)
    steps = torch.linspace(0, 1, between + 1, device=device)[:-1, None]
    walk = torch.cat([w[i].lerp(w[(i + 1) % stations], steps) for i in range(stations)])
    with torch.no_grad():
        return to_pixels(network.synthesis(network.styles(walk), "const")).cpu()


def _neighbours(fakes: Tensor, job: GeneratorJob) -> Tensor | None:
    """Pair fakes with their nearest training image, the nearest pairs first; None where nothing was measured."""
    if not job.section.measurements:
        return None
    reference = job.measured_against
    assert reference.train is not None
    found = nearest_training_distance(reference.train, reference.extractor(fakes))
    return nearest_pairs(fakes, job.images.pixels, found, NEIGHBOURS)


def write_untrained_report(generator: DefectGenerator, folder: Path, title: str, facts: dict[str, str]) -> None:
    """Write `grid.png` and `report.html` of a generator that does not train."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = write_grid(generator, folder / GRID_FILE)
    picture = base64.b64encode((folder / GRID_FILE).read_bytes()).decode()
    classes = ", ".join(f"{name} {count}" for name, count in sorted(Counter(shown.classes).items()))
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in {**facts, "classes shown": classes}.items()
    )
    (folder / REPORT_FILE).write_text(
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{escape(title)}: synthetic NG</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 80em; padding: 0 1em }}
th {{ text-align: left; padding-right: 2em; font-weight: 600; vertical-align: top }}
img {{ max-width: 100%; image-rendering: pixelated }}</style>
<h1>{escape(title)}: synthetic NG</h1>
<table>{rows}</table>
<p>Each image stands above itself with its mask outlined. These images only ever train: they calibrate no threshold and
count in no figure.</p>
<img alt="synthetic NG, and their masks" src="data:image/png;base64,{picture}">
</html>
""",
        encoding="utf-8",
    )


def write_grid(generator: DefectGenerator, path: Path) -> SyntheticBatch:
    """Write a picture of `OUTLINED` images, each above itself with its mask outlined; return the images."""
    shown = generator.sample(range(OUTLINED), generator.class_numbers(OUTLINED))
    side = max(shown.images.shape[2:])
    columns = 10 if side <= 128 else 5
    save_grid(outlined(shown, columns, max(1, -(-LEAST_SIDE // side))), path, columns)
    return shown


def outlined(batch: SyntheticBatch, columns: int, times: int) -> Tensor:
    """Enlarge images in rows of `columns`, each row above the same with outlines: uint8 [2 · N, 3, H, W]."""
    images = F.interpolate(batch.images.float(), scale_factor=times, mode="nearest").to(torch.uint8)
    images = images.expand(-1, 3, -1, -1).clone()
    marked = images.clone()
    if batch.masks is not None:
        masks = F.interpolate(batch.masks.float(), scale_factor=times, mode="nearest")[:, 0].numpy() > 0
        for image, mask in zip(marked, masks, strict=True):
            line = torch.from_numpy(ndimage.binary_dilation(mask) & ~mask)
            image[:, line] = torch.tensor(OUTLINE, dtype=torch.uint8)[:, None]
    pairs = zip(torch.split(images, columns), torch.split(marked, columns), strict=True)
    return torch.cat([part for pair in pairs for part in pair])
