"""Trainings of StyleGAN2-ADA on few NG images: KID against budget, by number of images and by augmentation.

Notable here:
- Each arm is one StyleGAN2-ADA on the first n crops of one random order of the train split's NG crops, so that smaller
  sets are parts of larger ones; everything but n and the augmentation is the same.
- All arms are measured against the same reference: every NG crop of the train split, those included that a small arm
  has never seen. The features are learned once, from that reference (or are Inception's, where weights are given).
- KID's interval resamples images of both kinds; the floor is KID between halves of the reference.
- Arms run side by side in processes of their own with the same number of threads; an arm that is done is not run again.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kizu import files
from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.crops import ng_crops
from kizu.training.data.manifest import Manifest
from kizu.training.data.splits import assign_splits
from kizu.training.evaluation.features import FeatureExtractor, load_extractor, load_inception, train_extractor
from kizu.training.evaluation.kid_fid import real_floor
from kizu.training.execution import Execution
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog, save_grid
from kizu.training.recipe import GeneratorSection
from kizu.training.study.workers import pool
from kizu.training.synthesis.generator_job import DefectImages, GeneratorJob
from kizu.training.synthesis.metrics import read_metrics

REFERENCE_FILE = "reference.pt"
EXTRACTOR_FILE = "features.pt"
SETTINGS_FILE = "settings.json"
RESULT_FILE = "arm.json"
SHOWN, COLUMNS = 48, 12


@dataclass(frozen=True)
class LimitedSettings:
    """Settings of all arms, and the lists that they differ in."""

    size: int = 32
    crop: int = 64
    channels: int = 1
    preset: str = "demo"
    kimg: float = 80.0
    batch_size: int = 16
    ada_kimg: float = 100.0
    r1: float = 0.2
    measurements: int = 8
    counts: tuple[int, ...] = (100, 500, 0)
    """Training crops; 0: all."""
    augment: tuple[str, ...] = ("ada", "diffaugment", "none")
    seeds: tuple[int, ...] = (0,)
    threads: int = 1
    parallel: int = 1
    inception: str | None = None


@dataclass(frozen=True)
class LimitedArm:
    """One training."""

    count: int
    augment: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.augment}-{self.count or 'all'}-seed{self.seed}"


def prepare(manifest: Manifest, settings: LimitedSettings, folder: Path) -> dict[str, Any]:
    """Cut the crops, learn the features, and write both for the arms; return facts on the data.

    Raises:
        UserError: no NG with boxes, masks or as whole images; a folder with arms of another setting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(settings, folder)
    splits = assign_splits(manifest)
    geometry = InputGeometry(height=settings.size, width=settings.size, channels=3 if settings.channels == 3 else 1)
    crops = ng_crops(manifest, splits.train, geometry, crop=settings.crop, context=0.1)
    images = DefectImages.of(crops, conditional=False)
    order = torch.randperm(len(crops), generator=torch.Generator().manual_seed(0))
    torch.save({"pixels": images.pixels[order], "classes": images.classes, "counts": images.counts}, _reference(folder))
    if settings.inception is None and not (folder / EXTRACTOR_FILE).exists():
        train_extractor(images.pixels).save(folder / EXTRACTOR_FILE)
    floor = real_floor(extractor_of(settings, folder)(images.pixels), seed=0)
    return {"crops": len(crops), "split_fingerprint": splits.fingerprint, "floor": floor.as_dict()}


def _check_same(settings: LimitedSettings, folder: Path) -> None:
    """Refuse a folder whose arms were trained in another way."""
    path = folder / SETTINGS_FILE
    decisive = {
        k: v for k, v in asdict(settings).items() if k not in ("counts", "augment", "seeds", "threads", "parallel")
    }
    text = json.dumps(decisive, indent=1)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{folder} holds arms of another setting.", "Give --out a new folder, or the options it began with."
        )
    path.write_text(text, encoding="utf-8")


def extractor_of(settings: LimitedSettings, folder: Path) -> FeatureExtractor:
    """Feature extractor that measures every arm."""
    if settings.inception is not None:
        return load_inception(Path(settings.inception))
    return load_extractor(folder / EXTRACTOR_FILE)


def arms_of(settings: LimitedSettings) -> list[LimitedArm]:
    """All arms, the slowest data sets first within a seed."""
    return [
        LimitedArm(n, augment, seed) for seed in settings.seeds for n in settings.counts for augment in settings.augment
    ]


def run_arm(arm: LimitedArm, settings: LimitedSettings, folder: Path) -> dict[str, Any]:
    """Train and measure one arm, or return its earlier result."""
    torch.set_num_threads(settings.threads)
    done = folder / arm.name / RESULT_FILE
    if done.exists():
        earlier: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return earlier
    reference = torch.load(_reference(folder), weights_only=True)
    pixels: Tensor = reference["pixels"]
    chosen = pixels[: arm.count] if arm.count else pixels
    images = DefectImages(chosen, torch.zeros(len(chosen), dtype=torch.int64), ["NG"], [len(chosen)], False)
    section = GeneratorSection(
        kind="stylegan2-ada",
        preset=settings.preset,
        kimg=settings.kimg,
        batch_size=settings.batch_size,
        augment=arm.augment,  # type: ignore[arg-type]
        measurements=settings.measurements,
        options={"ada_kimg": settings.ada_kimg, "r1": settings.r1},
    )
    log = RunLog(folder / arm.name, quiet=True)
    began = time.perf_counter()
    job = GeneratorJob(
        section=section,
        images=images,
        seed=arm.seed,
        folder=folder / arm.name,
        name=arm.name,
        execution=Execution(log, Processes().device("auto"), resume=True),
        extractor=extractor_of(settings, folder),
        reference=pixels,
    )
    generator = job.train()
    log.close()
    result = {
        **asdict(arm),
        "images": len(chosen),
        "seconds": time.perf_counter() - began,
        "curve": read_metrics(folder / arm.name),
    }
    shown = torch.cat([batch.images for batch in generator.batches(SHOWN)])
    save_grid(shown, folder / arm.name / "samples.png", COLUMNS)
    files.write_text(done, json.dumps(result, allow_nan=False))
    return result


def run(
    manifest: Manifest, settings: LimitedSettings, folder: Path, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All arms, `settings.parallel` at a time; facts on the data and a result for each arm."""
    facts = prepare(manifest, settings, folder)
    say(f"{facts['crops']} NG crops; KID of real against real: {facts['floor']['value']:.4f}")
    reference = torch.load(_reference(folder), weights_only=True)["pixels"]
    save_grid(reference[:SHOWN], folder / "real.png", COLUMNS)
    arms = arms_of(settings)
    results: dict[str, dict[str, Any]] = {}
    with pool(settings.parallel) as workers:
        waiting = {workers.submit(run_arm, arm, settings, folder): arm for arm in arms}
        for future in as_completed(waiting):
            arm, result = waiting[future], future.result()
            results[arm.name] = result
            last = result["curve"][-1]
            kid, position = last["kid"], f"{len(results)}/{len(arms)}"
            say(
                f"{position} {arm.name}: KID {kid['value']:.4f} [{kid['lower']:.4f}, {kid['upper']:.4f}] "
                f"after {last['kimg']:.0f} kimg, p {last['p']:.2f}, {result['seconds']:.0f} s"
            )
    return facts, [results[arm.name] for arm in arms]


def command_line(name: str, settings: LimitedSettings) -> str:
    """The command that repeats the run; the data set by its name alone."""
    words = ["python -m benchmarks.limited", shlex.quote(name)]
    for key, value in asdict(settings).items():
        option = f"--{key.replace('_', '-')}"
        if key == "counts":
            words += [f"--count {count}" for count in value]
        elif key == "augment":
            words += [f"{option} {kind}" for kind in value]
        elif key == "seeds":
            words.append(f"{option} {len(value)}")
        elif key not in ("threads", "inception"):
            words.append(f"{option} {value}")
    return " ".join(words + (["--inception FILE"] if settings.inception else []))


def _reference(folder: Path) -> Path:
    return folder / REFERENCE_FILE
