"""Training of one generator on NG crops.

Notable here:
- The generator sees the train split's NG alone, no image of calibration or test.
- While it trains, its images are measured against its training images: KID with its interval, the floor that real
  images reach against each other, and how many fakes are copies. Each measurement is a line of `metrics.jsonl`.
- The last weights ship. Picking the best KID would pick, among few images, whoever copies them best.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from kizu.errors import UserError
from kizu.models.stylegan2 import StyleGAN2Config
from kizu.training.augment.ada import AugmentConfig
from kizu.training.data.batches import Batch, Batches
from kizu.training.data.crops import Crops
from kizu.training.evaluation.features import FeatureExtractor, load_extractor, load_inception, train_extractor
from kizu.training.evaluation.kid_fid import Reference
from kizu.training.execution import Execution
from kizu.training.generators import configure, own_options
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.generators.transfer import start_from
from kizu.training.loop import TrainingLoop
from kizu.training.recipe import GeneratorSection
from kizu.training.run import EXTRACTOR_FILE
from kizu.training.synthesis.metrics import append_metrics, headline

HELD_OUT = 0.1
"""Share of the crops that D never trains on, for the heuristic r_v."""
NOT_DECISIVE = ("count", "truncation", "measurements", "inception", "placed", "filter", "keep")
"""Keys of `[generator]` that do not decide the weights, only what is done with them."""
LEAST_MEASURED, MOST_MEASURED = 200, 1000
"""Fakes in a measurement: as many as there are training images, within these bounds."""


@dataclass(frozen=True)
class DefectImages:
    """Training images of a generator, with their classes."""

    pixels: Tensor
    """uint8 [M, C, H, W]."""
    labels: Tensor
    """Class numbers, int64 [M]; zeros for an unconditional generator."""
    classes: list[str]
    counts: list[int]
    conditional: bool

    @classmethod
    def of(cls, crops: Crops, conditional: bool) -> DefectImages:
        """Take crops with their classes; a crop that shows several defects counts as its first."""
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
        seed: of weights, data order and samples.
        folder: where checkpoint, metrics and generator go.
        name: of the run, for the origin of its images.
        start: folder of the run whose weights to start from.
        inception: file with Inception weights to measure with.
        execution: log, device and processes; whether to go on from the folder's checkpoint.
        extractor: measures the images; left out: Inception, or else one that learns from `images`.
        reference: images to measure against, uint8 [R, C, H, W]; left out: the training images.
    """

    section: GeneratorSection
    images: DefectImages
    seed: int
    folder: Path
    name: str
    execution: Execution
    start: Path | None = None
    inception: Path | None = None
    extractor: FeatureExtractor | None = None
    reference: Tensor | None = None

    @property
    def identity(self) -> str:
        """Digest of everything that decides the weights."""
        decisive = self.section.model_dump(mode="json", exclude=set(NOT_DECISIVE))
        decisive["options"] = own_options(self.section)
        content = json.dumps([decisive, self.images.fingerprint, self.seed], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def run(self) -> str:
        """Name and digest, as they stand in a synthetic image's origin."""
        return f"{self.name}@{self.identity[:12]}"

    def train(self) -> TrainedGenerator:
        """Train to the end and write `generator.pt`.

        Raises:
            UserError: a fault in the recipe, or too few images.
            DivergedError, Interrupted: as `TrainingLoop.run`.
        """
        images, execution = self.images, self.execution
        shape, config, augmentations = configure(
            self.section,
            (images.pixels.shape[2], images.pixels.shape[3]),
            images.pixels.shape[1],
            len(images.classes) if images.conditional else 0,
            execution.processes.world_size,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        training, held_out = self._held_out(config)
        torch.manual_seed(self.seed)
        method = self._method(shape, config, augmentations, training, held_out)
        torch.manual_seed(self.seed + 1 + execution.processes.rank)
        loop = TrainingLoop(
            method,
            Batches(
                training.pixels,
                config.batch_size,
                self.seed,
                labels=training.labels,
                device=execution.device,
                rank=execution.processes.rank,
                world_size=execution.processes.world_size,
            ),
            self.folder,
            # A batch that follows the number of processes is no property of the recipe, but of this training.
            identity=f"{self.identity}, batches of {config.batch_size}",
            log=execution.log,
            processes=execution.processes,
            settings=execution.settings,
        )
        log = execution.log
        log.say(f"stylegan2-ada ({self.section.preset}) on {len(training.labels)} NG crops, {execution.device}")
        if execution.resume and loop.resume():
            log.say(f"resuming the generator at step {loop.step}")
        loop.run()
        return self._finish(method)

    def _held_out(self, config: StyleGAN2ADAConfig) -> tuple[DefectImages, Batch | None]:
        """Split the images into those to train on and, where the heuristic is r_v, those that D never sees."""
        images = self.images
        if len(images.labels) < 2:
            raise UserError("One NG image is not enough to learn from.", "Collect more, or remove [generator].")
        if config.augment != "ada" or config.ada_heuristic != "r_v":
            return images, None
        order = torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(self.seed))
        count = max(1, round(HELD_OUT * len(order)))
        left = images.labels.bincount()
        chosen = torch.zeros(len(order), dtype=torch.bool)
        for index in order.tolist():
            if chosen.sum() < count and left[images.labels[index]] > 1:  # a class keeps its last image to train on
                chosen[index] = True
                left[images.labels[index]] -= 1
        if not chosen.any():
            raise UserError(
                "There are too few NG images to hold any out for the heuristic r_v.",
                'Collect more, or leave ada_heuristic at "r_t".',
            )
        kept, device = ~chosen, self.execution.device
        pixels = images.pixels[chosen].to(device, torch.float32) / 127.5 - 1
        training = replace(images, pixels=images.pixels[kept], labels=images.labels[kept])
        return training, Batch(pixels, images.labels[chosen].to(device))

    def _method(
        self,
        shape: StyleGAN2Config,
        config: StyleGAN2ADAConfig,
        augmentations: AugmentConfig,
        training: DefectImages,
        held_out: Batch | None,
    ) -> StyleGAN2ADAMethod:
        execution = self.execution
        device, processes = execution.device, execution.processes
        method = StyleGAN2ADAMethod(
            shape,
            config,
            augmentations,
            self.section.kimg,
            training.labels.to(device),
            images=training.pixels,
            held_out=held_out,
            reduce=processes.mean if processes.world_size > 1 else None,
            seed=self.seed,
        )
        if self.start is not None:
            execution.log.say(start_from(method, self.start, partly=self.section.start_partly))
        method.networks.to(device)
        method.average.to(device)
        processes.copy_from_main(method.networks)
        processes.copy_from_main(method.average)
        if self.section.measurements and processes.is_main:
            method.measurements = self.section.measurements
            method.measure = self._measure(method)
        return method

    def _measure(self, method: StyleGAN2ADAMethod) -> Callable[[int], dict[str, float]]:
        """Return a function that appends a measurement to the metrics and gives the figures to log."""
        count = min(MOST_MEASURED, max(LEAST_MEASURED, len(self.measured_against.real)))

        def measure(step: int) -> dict[str, float]:
            generator = self._trained(method)
            fakes = torch.cat([batch.images for batch in generator.batches(count, truncation=1.0)])
            found = self.measured_against.compare(fakes)
            kimg = step * method.config.batch_size * method.config.critic_updates / 1000
            adapted = {"p": float(method.ada.p), "r": float(method.ada.r)}
            append_metrics(self.folder, {"step": step, "kimg": kimg, **adapted, **found.as_dict()})
            return headline(found)

        return measure

    @cached_property
    def measured_against(self) -> Reference:
        """Features of the reference and of the training images, once per run.

        Raises:
            UserError: the file of Inception weights cannot be used.
        """
        pixels = self.images.pixels
        reference = pixels if self.reference is None else self.reference
        return Reference.of(reference, self._feature_extractor(), train=pixels, seed=self.seed)

    def _feature_extractor(self) -> FeatureExtractor:
        """The extractor of the features that are compared, on the device; it learns first where it has to."""
        device = self.execution.device
        if self.extractor is not None:
            return self.extractor
        if self.inception is not None:
            return load_inception(self.inception).to(device)
        path = self.folder / EXTRACTOR_FILE
        if not path.exists():
            self.execution.log.say("learning features to measure with: no Inception weights are given")
            path.parent.mkdir(parents=True, exist_ok=True)
            train_extractor(self.images.pixels, seed=self.seed).save(path)
        return load_extractor(path).to(device)

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
        if self.execution.processes.is_main:
            generator.save(self.folder)
        self.execution.processes.barrier()
        return generator
