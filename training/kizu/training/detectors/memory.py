"""Making of a memory of good parts (networks and paper: `kizu.models.memory`).

Notable here:
- Features come from where the recipe says: by default from a pretrained backbone, and nothing trains.
- A small encoder can learn them in this run instead, from OK and unlabelled images: it marks what was pasted into them
  from elsewhere (CutPaste, Li et al., CVPR 2021), at each patch and not for the image as a whole, as the memory needs
  it. Only its features stay; no patch is scored by what it says of pastes.
- The memory is filled once, after training, from images known to be OK: a greedy k-centre coreset (Roth et al. 2022,
  algorithm 1), which leaves no patch of an OK part further from it than twice what is possible.
- That step draws from seeds of its own: a resumed run gets the same memory, bit by bit.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kizu.errors import UserError
from kizu.models.bundle import PretrainedWeights
from kizu.models.config import STRICT
from kizu.models.memory import (
    PRESETS,
    RESNETS,
    DiscriminatorLevels,
    LocalEncoder,
    MemoryConfig,
    MemoryDetector,
    PretrainedMemoryDetector,
    ResNetLevels,
)
from kizu.models.stylegan2 import Discriminator
from kizu.training import checkpoint
from kizu.training.augment.classic import recorded
from kizu.training.augment.geometry import blit, translation
from kizu.training.data.batches import Batch
from kizu.training.detectors.classifier import load_backbone
from kizu.training.detectors.feature_views import ok_images
from kizu.training.detectors.method import DetectorContext, OneClassMethod
from kizu.training.generators import GAN
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.loop import Losses, Phase, Stage
from kizu.training.optimisers import CosineAdamW
from kizu.training.options import Presets
from kizu.training.penalties import spectral_normalised
from kizu.training.pretrained import Backbones, PretrainedOptions, described
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection, GeneratorSection
from kizu.training.run import GENERATOR_FOLDER
from kizu.training.training_set import TrainingSet

CANDIDATES = 50_000
"""Patches of OK images that the memory is chosen from, at most; of more, so many are sampled at random."""
COMPARED = 128
"""Dimensions in which the choice measures distances (the paper's d*)."""
LEAST_SIDE, LARGEST_SIDE = 0.04, 0.4
"""Sides of what is pasted, as shares of the image's."""
VISIBLE = 0.1
"""Change of a pixel in [−1, 1] that counts as pasted; less is what light and sensor do."""


@dataclass(frozen=True, config=STRICT)
class MemoryTraining(PretrainedOptions):
    """Options of `[detector.options]` besides the network's."""

    weights: str | None = None
    """A local file: `pretrained`: with weights of `backbone`, left out: those that come with Kizu; `resnet18`,
    `resnet34`: with torchvision's weights."""


class MemoryMethod(OneClassMethod):
    """One stage where features are learned, none where they are given; then the memory is filled."""

    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (MemoryConfig, MemoryTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.config = options.make(MemoryConfig, **context.size)
        training = options.make(MemoryTraining)
        self.section = context.section
        self.notes = []
        self.networks = nn.ModuleDict()
        self.uses_unlabelled = self.config.features == "self-supervised"
        # The generator's discriminator has seen the train split's NG, and its features show it.
        self.learns_from_ng = self.config.features == "discriminator"
        # Sampled here, where resumed runs sample the same.
        self._projection_seed, self._coreset_seed = torch.randint(2**31, (2,)).tolist()
        self._spread: Tensor | None = None
        self._weights: list[PretrainedWeights] = []
        self._pretrained: PretrainedMemoryDetector | None = None
        if self.config.features == "pretrained":
            self._build_pretrained(training, context.backbones)
            return
        if training.weights is not None and self.config.features not in RESNETS:
            raise UserError(
                f"detector.options.weights: features '{self.config.features}' have no weights to start from.",
                f"Choose the preset {' or '.join(RESNETS)}, or leave weights out.",
            )
        if self.config.features == "self-supervised":
            encoder = LocalEncoder(self.config)
            self.networks["head"] = nn.Conv2d(sum(encoder.widths), 1, 1)
            self._build(encoder, "an encoder that learns from this run's images")
        elif self.config.features in RESNETS:
            self._build_resnet(training.weights)

    def detector(self) -> nn.Module:
        """The memory with its features; it scores after `finish`."""
        return self._detector

    @property
    def pretrained(self) -> list[PretrainedWeights]:
        """The backbone's, where features are pretrained."""
        return self._weights

    @property
    def _detector(self) -> MemoryDetector | PretrainedMemoryDetector:
        return self._pretrained or cast(MemoryDetector, self.networks["detector"])

    @property
    def _encoder(self) -> nn.Module:
        """The network whose features this run learns."""
        return cast(MemoryDetector, self._detector).patches.backbone

    def check(self, generator: GeneratorSection | None) -> None:
        """Check that there is a discriminator of the detector's image size, where features are its own.

        Raises:
            UserError: names the key and the remedy.
        """
        if self.config.features != "discriminator":
            return
        if generator is None or generator.kind != GAN:
            raise UserError(
                "detector.options.features: this recipe has no generator with a discriminator.",
                f"Add a [generator] of kind {GAN}, or choose other features.",
            )
        sees = self.config.height, self.config.width
        judges = generator.sides or sees
        if judges != sees:
            raise UserError(
                f"generator.size: the discriminator would judge {judges[1]}×{judges[0]} pixels, but "
                f"the detector, which takes its features, sees {sees[1]}×{sees[0]}.",
                "Leave generator.size out: it is the detector's then.",
            )

    def begin(self, run: Path) -> None:
        """Take the discriminator of the run's generator, where features are its.

        Raises:
            UserError: there is none, or its images are not those that the detector sees.
        """
        if self.config.features != "discriminator":
            return
        try:
            levels = DiscriminatorLevels(self.config, trained_discriminator(run / GENERATOR_FOLDER))
        except ValueError as error:
            sees = f"{self.config.width}×{self.config.height} pixels, {self.config.channels} channels"
            raise UserError(
                f"detector.options.features: {error}, but the detector sees {sees}.",
                "Leave generator.size out: it is the detector's then.",
            ) from error
        self._build(levels, "the discriminator of this run's generator")

    def prepare(self, training: TrainingSet, log: RunLog) -> None:  # noqa: ARG002
        """Take a backbone that does not train to where the images are."""
        self._detector.to(training.batches.device)

    def _build_pretrained(self, options: PretrainedOptions, backbones: Backbones) -> None:
        backbone, weights = backbones.load(self.config, options)
        self._pretrained = PretrainedMemoryDetector(self.config, backbone, self._projection_seed)
        self._weights = [weights]
        self.networks["memory"] = self._pretrained.memory
        rows, columns = self.config.places
        self.notes.append(f"features: {described(weights)}, at each of {rows}×{columns} patches")

    def _build_resnet(self, weights: str | None) -> None:
        if weights is None:
            raise UserError(
                f"detector.options.weights is missing: features '{self.config.features}' come from trained weights.",
                "Give a local file with torchvision's weights (Kizu downloads nothing), or choose the preset "
                "self-supervised, which learns its features in this run.",
            )
        levels = ResNetLevels(self.config)
        loaded = load_backbone(levels.network, Path(weights))
        self._build(levels, f"{self.config.features}, {loaded}")

    def _build(self, backbone: LocalEncoder | ResNetLevels | DiscriminatorLevels, source: str) -> None:
        self.networks["detector"] = MemoryDetector(self.config, backbone, self._projection_seed)
        parameters = sum(p.numel() for p in backbone.parameters())
        rows, columns = self.config.places
        kept = f", projected to {self.config.dimensions}" if self.config.dimensions else ""
        self.notes.append(
            f"features: {source}; {parameters} parameters, {sum(backbone.widths)} features{kept} at each of "
            f"{rows}×{columns} patches"
        )

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes over the images where features are learned; otherwise nothing trains."""
        if self.config.features != "self-supervised":
            return []
        steps = max(1, round(self.section.epochs * images / self.section.batch_size))
        trained = nn.ModuleList([self._encoder, self.networks["head"]])
        optimizer = CosineAdamW(
            [{"params": list(trained.parameters()), "weight_decay": 0.0}], self.section.learning_rate or 1e-3, steps
        )
        return [Stage("features", steps, [Phase("paste", trained, optimizer, self._losses)], problem=self._collapse)]

    def samples(self, images: Tensor) -> Tensor:
        """Images, the same with something pasted in, and where the encoder sees it, black to white."""
        altered, _ = pasted(images)
        marked = torch.sigmoid(self.networks["head"](self._detector.patches(altered)).float()) * 2 - 1
        marked = F.interpolate(marked, size=images.shape[2:], mode="nearest")
        return torch.cat([images, altered, marked.expand_as(images)])

    def _losses(self, batch: Batch) -> Losses:
        altered, masks = pasted(batch.images)
        features = self._detector.patches(recorded(altered, AugmentSection()))
        self._spread = features.detach().float().std((0, 2, 3)).mean()
        logits = self.networks["head"](features).float()
        return {"total": balanced_bce(logits, patch_targets(masks, self.config))}

    def _collapse(self) -> str | None:
        return "all patches get the same features" if cast(Tensor, self._spread).item() < 1e-6 else None

    @torch.no_grad()
    def finish(self, training: TrainingSet) -> None:
        """Fill the memory from the images that are known to be OK.

        Raises:
            UserError: there is none.
        """
        batches, detector = training.batches, self._detector.eval()
        ok = ok_images(batches, self._coreset_seed)
        generator = torch.Generator().manual_seed(self._coreset_seed)
        features = self._candidates(training, ok, generator)
        memory = detector.memory
        memory.fit_gains(features)
        embedded = memory.embed(features)
        compared = embedded - embedded.mean(0)
        if embedded.shape[1] > COMPARED:
            sampled = torch.randn(embedded.shape[1], COMPARED, generator=generator) / math.sqrt(COMPARED)
            compared = compared @ sampled.to(embedded.device)
        memory.fill(embedded[farthest_points(compared, self.config.memory)])
        self.notes.append(
            f"{len(memory.bank)} patches remembered, chosen from {len(features)} of "
            f"{len(ok) * self.config.places[0] * self.config.places[1]} on {len(ok)} OK images"
        )

    def _candidates(self, training: TrainingSet, ok: Tensor, generator: torch.Generator) -> Tensor:
        """Features [M, D] of at most `CANDIDATES` patches of these images."""
        batches, detector = training.batches, self._detector
        each = self.config.places[0] * self.config.places[1]
        total = len(ok) * each
        # A patch sampled twice is remembered once: a few less cost less than a permutation of all.
        sampled = (
            torch.arange(total)
            if total <= CANDIDATES
            else torch.unique(torch.randint(total, (CANDIDATES,), generator=generator))
        )
        size = max(1, min(self.section.batch_size, CANDIDATES // each))
        pieces = []
        for start in range(0, len(ok), size):
            members = ok[start : start + size]
            inside = sampled[(sampled >= start * each) & (sampled < (start + len(members)) * each)] - start * each
            if len(inside):
                features = detector.patches(batches.at(members).images).permute(0, 2, 3, 1).flatten(0, 2)
                pieces.append(features[inside.to(features.device)])
        return torch.cat(pieces)


def trained_discriminator(folder: Path) -> Discriminator:
    """The discriminator that trained in `folder`, as it was at the end.

    Raises:
        UserError: there is none.
    """
    remedy = "Add a [generator] of kind stylegan2-ada to the recipe, or choose other features."
    state = checkpoint.load(folder)
    if state is None:
        raise UserError("detector.options.features: this run has no generator, so no discriminator.", remedy)
    weights = {name[2:]: value for name, value in state["networks"].items() if name.startswith("D.")}
    discriminator = Discriminator(TrainedGenerator.load(folder).shape)
    if any("parametrizations" in name for name in weights):
        spectral_normalised(discriminator)
    try:
        discriminator.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} holds no discriminator that fits its generator.", remedy) from error
    discriminator.eval().requires_grad_(False)
    for layer in list(discriminator.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight")
    return discriminator


def farthest_points(points: Tensor, count: int) -> Tensor:
    """Greedy k-centre (Gonzalez 1985): the first point, then ever the one farthest from those chosen, [M, D] → [K].

    Every point is then at most twice as far from its nearest chosen one as the best choice of so many allows. K is
    `count`, or fewer where the rest lie on chosen ones, to float32's resolution. Ties go to the first.
    """
    squares = points.square().sum(1)
    resolution = 1e-6 * squares.max()
    reach = torch.full_like(squares, torch.inf)
    chosen = [0]
    while len(chosen) < min(count, len(points)):
        last = points[chosen[-1]]
        reach = torch.minimum(reach, torch.addmv(squares + last.square().sum(), points, last, alpha=-2.0))
        farthest = int(reach.argmax())
        if reach[farthest] <= resolution:
            break
        chosen.append(farthest)
    return torch.tensor(chosen, device=points.device)


def pasted(images: Tensor) -> tuple[Tensor, Tensor]:
    """Each image [N, C, H, W] with a rectangle of its neighbour in the batch, from anywhere in it, put anywhere.

    Sides are log-uniform, so most pieces are small and many are thin.

    Returns:
        The images, and where they changed visibly: [N, 1, H, W], 0 or 1.
    """
    n, _, height, width = images.shape
    device = images.device
    largest, least = math.log(LARGEST_SIDE), math.log(LEAST_SIDE)
    sides = (least + torch.rand(n, 2, device=device) * (largest - least)).exp()
    spans = []
    for axis, side in enumerate((height, width)):
        extent = (sides[:, axis] * side).round().clamp(min=1)
        start = (torch.rand(n, device=device) * (side - extent + 1)).floor()
        pixel = torch.arange(side, device=device)
        spans.append((pixel >= start[:, None]) & (pixel < (start + extent)[:, None]))
    window = (spans[0][:, :, None] & spans[1][:, None, :])[:, None]
    down, across = (((torch.rand(n, device=device) * 2 - 1) * side).round() for side in (height, width))
    source = blit(images.roll(1, 0), translation(across, down))
    altered = torch.where(window, source, images)
    return altered, ((altered - images).abs().amax(1, keepdim=True) > VISIBLE).float()


def patch_targets(masks: Tensor, config: MemoryConfig) -> Tensor:
    """Mark patches with any masked pixel: [N, 1, H, W] → [N, 1, rows, columns]."""
    return F.max_pool2d(masks, config.stride, ceil_mode=True)


def balanced_bce(logits: Tensor, targets: Tensor) -> Tensor:
    """½·(mean of −log σ(z) over targets 1 + mean of −log(1 − σ(z)) over targets 0); a half without patches is 0."""
    hit = (F.softplus(-logits) * targets).sum() / targets.sum().clamp(min=1)
    clear = (F.softplus(logits) * (1 - targets)).sum() / (1 - targets).sum().clamp(min=1)
    return (hit + clear) / 2
