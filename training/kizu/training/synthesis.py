"""NG crops → a trained generator → synthetic NG.

Notable here:
- The generator sees the train split's NG alone; calibration and test never lend it an image.
- While it trains, its images are measured against its training images: KID with its interval, the floor that real
  images reach against each other, and how many fakes are copies. Each measurement is a line of `metrics.jsonl`.
- The last weights ship. Picking the best KID would pick, among few images, whoever copies them best.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kizu import files
from kizu.errors import UserError
from kizu.models.stylegan2 import StyleGAN2Config
from kizu.training.augment.ada import AugmentConfig
from kizu.training.data.batches import Batch, Batches
from kizu.training.data.crops import Crops
from kizu.training.data.loading import to_pixels
from kizu.training.evaluation.features import FeatureExtractor, load_extractor, load_inception, train_extractor
from kizu.training.evaluation.kid_fid import SynthesisMetrics, compare_images
from kizu.training.generators import configure, own_options
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.generators.transfer import start_from
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection

METRICS_FILE = "metrics.jsonl"
EXTRACTOR_FILE = "features.pt"
HELD_OUT = 0.1
"""Share of the crops that D never trains on, for the heuristic r_v."""
AFTERWARDS = ("count", "truncation", "measurements", "inception", "placed", "filter", "keep")
"""Keys of `[generator]` that say what is done with a generator, not what its weights are."""
MEASURED = 1000
"""Fakes in a measurement, at most; at least 200, however few training images there are."""


@dataclass(frozen=True)
class DefectImages:
    """What a generator learns from."""

    pixels: Tensor
    """uint8 [M, C, H, W]."""
    labels: Tensor
    """Class numbers, int64 [M]; zeros for an unconditional generator."""
    classes: list[str]
    counts: list[int]
    conditional: bool

    @classmethod
    def of(cls, crops: Crops, conditional: bool) -> DefectImages:
        """Crops with their classes; a crop that shows several defects counts as its first."""
        names = [name.partition("+")[0] for name in crops.classes]
        classes = sorted(set(names))
        conditional = conditional and len(classes) > 1
        numbers = [classes.index(name) if conditional else 0 for name in names]
        found = Counter(names)
        return cls(crops.images, torch.tensor(numbers), classes, [found[name] for name in classes], conditional)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over pixels and class numbers."""
        digest = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.numpy().tobytes())
        digest.update(json.dumps([self.labels.tolist(), self.classes]).encode())
        return digest.hexdigest()


@dataclass
class GeneratorJob:
    """One generator to train.

    Args:
        section: the recipe's `[generator]`.
        images: what it learns from.
        seed: of weights, data order and draws.
        folder: where checkpoint, metrics and generator go.
        name: of the run, for the origin of its images.
        start: folder of the run whose weights to start from.
        inception: file with Inception weights to measure with.
        extractor: what measures the images; left out: Inception, or else one that learns from `images`.
        reference: what the images are measured against, uint8 [R, C, H, W]; left out: the training images.
    """

    section: GeneratorSection
    images: DefectImages
    seed: int
    folder: Path
    name: str
    log: RunLog
    device: str = "auto"
    processes: Processes = field(default_factory=Processes)
    settings: LoopSettings | None = None
    start: Path | None = None
    inception: Path | None = None
    extractor: FeatureExtractor | None = None
    reference: Tensor | None = None

    @property
    def identity(self) -> str:
        """Digest of everything that decides the weights."""
        decisive = self.section.model_dump(mode="json", exclude=set(AFTERWARDS))
        decisive["options"] = own_options(self.section)
        content = json.dumps([decisive, self.images.fingerprint, self.seed], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def run(self) -> str:
        """Name and digest, as a synthetic image's origin tells them."""
        return f"{self.name}@{self.identity[:12]}"

    def train(self, *, resume: bool = False) -> TrainedGenerator:
        """Train to the end, or go on from the folder's checkpoint, and write `generator.pt`.

        Raises:
            UserError: a fault in the recipe, or too few images.
            DivergedError, Interrupted: as `TrainingLoop.run`.
        """
        images = self.images
        shape, config, augmentations = configure(
            self.section,
            (images.pixels.shape[2], images.pixels.shape[3]),
            images.pixels.shape[1],
            len(images.classes) if images.conditional else 0,
        )
        device = self.processes.device(self.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        training, held_out = self._held_out(config, device)
        torch.manual_seed(self.seed)
        method = self._method(shape, config, augmentations, training, held_out, device)
        torch.manual_seed(self.seed + 1 + self.processes.rank)
        loop = TrainingLoop(
            method,
            Batches(
                training.pixels,
                config.batch_size,
                self.seed,
                labels=training.labels,
                device=device,
                rank=self.processes.rank,
                world_size=self.processes.world_size,
            ),
            self.folder,
            identity=self.identity,
            log=self.log,
            processes=self.processes,
            settings=self.settings,
        )
        self.log.say(f"stylegan2-ada ({self.section.preset}) on {len(training.labels)} NG crops, {device}")
        if resume and loop.resume():
            self.log.say(f"resuming the generator at step {loop.step}")
        loop.run()
        return self._finish(method)

    def _held_out(self, config: StyleGAN2ADAConfig, device: torch.device) -> tuple[DefectImages, Batch | None]:
        """The images to train on and, where the heuristic is r_v, those that D never sees."""
        images = self.images
        if len(images.labels) < 2:
            raise UserError("One NG image is not enough to learn from.", "Collect more, or remove [generator].")
        if config.augment != "ada" or config.ada_heuristic != "r_v":
            return images, None
        order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(self.seed))
        count = max(1, round(HELD_OUT * len(order)))
        left = images.labels.bincount()
        chosen = torch.zeros(len(order), dtype=torch.bool)
        for place in order.tolist():
            if chosen.sum() < count and left[images.labels[place]] > 1:  # a class keeps its last image to train on
                chosen[place] = True
                left[images.labels[place]] -= 1
        if not chosen.any():
            raise UserError(
                "There are too few NG images to hold any out for the heuristic r_v.",
                'Collect more, or leave ada_heuristic at "r_t".',
            )
        kept, apart = (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]
        batch = Batch((images.pixels[apart].to(device, torch.float32) / 127.5 - 1), images.labels[apart].to(device))
        return DefectImages(
            images.pixels[kept], images.labels[kept], images.classes, images.counts, images.conditional
        ), batch

    def _method(
        self,
        shape: StyleGAN2Config,
        config: StyleGAN2ADAConfig,
        augmentations: AugmentConfig,
        training: DefectImages,
        held_out: Batch | None,
        device: torch.device,
    ) -> StyleGAN2ADAMethod:
        method = StyleGAN2ADAMethod(
            shape,
            config,
            augmentations,
            self.section.kimg,
            training.labels.to(device),
            images=training.pixels,
            held_out=held_out,
            reduce=self.processes.mean if self.processes.world_size > 1 else None,
            seed=self.seed,
        )
        if self.start is not None:
            report = start_from(method, self.start, partly=self.section.start_partly)
            self.log.say(report)
        method.networks.to(device)
        method.average.to(device)
        self.processes.copy_from_main(method.networks)
        self.processes.copy_from_main(method.average)
        if self.section.measurements and self.processes.is_main:
            method.measurements = self.section.measurements
            method.measure = self._measure(method)
        return method

    def _measure(self, method: StyleGAN2ADAMethod) -> Callable[[int], dict[str, float]]:
        """What writes a line of `metrics.jsonl` and gives the figures to log."""
        extractor = self.measure_with()
        reference = self.images.pixels if self.reference is None else self.reference
        count = min(MEASURED, max(200, len(reference)))

        def measure(step: int) -> dict[str, float]:
            generator = self._trained(method)
            made = torch.cat([batch.images for batch in generator.batches(count, truncation=1.0)])
            found = compare_images(reference, made, extractor, train=self.images.pixels, seed=self.seed)
            kimg = step * method.config.batch_size * method.config.critic_updates / 1000
            adapted = {"p": float(method.ada.p), "r": float(method.ada.r)}
            self._record({"step": step, "kimg": kimg, **adapted, **found.as_dict()})
            return _headline(found)

        return measure

    def measure_with(self) -> FeatureExtractor:
        """What turns images into the features that are compared; learned at the first call where it has to be.

        Raises:
            UserError: the file of Inception weights cannot be used.
        """
        if self.extractor is not None:
            return self.extractor
        if self.inception is not None:
            return load_inception(self.inception)
        path = self.folder / EXTRACTOR_FILE
        if not path.exists():
            self.log.say("learning features to measure with: no Inception weights are given")
            path.parent.mkdir(parents=True, exist_ok=True)
            train_extractor(self.images.pixels, seed=self.seed).save(path)
        return load_extractor(path)

    def _record(self, line: dict[str, Any]) -> None:
        """Append a measurement; one that a resumed run repeats takes the old one's place."""
        path = self.folder / METRICS_FILE
        earlier = [old for old in read_metrics(self.folder) if old["step"] < line["step"]]
        files.write_text(path, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in [*earlier, line]))

    def _trained(self, method: StyleGAN2ADAMethod) -> TrainedGenerator:
        images = self.images
        return TrainedGenerator(
            network=method.average,
            classes=images.classes,
            counts=images.counts,
            prior=method.prior,
            run=self.run,
            conditional=images.conditional,
        )

    def _finish(self, method: StyleGAN2ADAMethod) -> TrainedGenerator:
        generator = self._trained(method)
        if self.processes.is_main:
            generator.save(self.folder)
        self.processes.barrier()
        return generator


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The measurements of a generator's folder, in order; none where nothing was measured."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def interpolation(generator: TrainedGenerator, *, stations: int = 4, between: int = 8, seed: int = 0) -> Tensor:
    """A walk through w from image to image: uint8 [stations · between, C, H, W], without noise, of one class each."""
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


def _headline(found: SynthesisMetrics) -> dict[str, float]:
    figures = {"kid": found.kid.value, "precision": found.precision, "recall": found.recall}
    if found.fid is not None:
        figures["fid"] = found.fid
    if found.nearest is not None:
        figures["near_copies"] = found.nearest.near_copies.value or 0.0
    return figures
