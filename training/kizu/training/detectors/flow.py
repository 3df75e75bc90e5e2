"""Training of a normalising flow on the OK parts' features (papers: `kizu.models.flow`).

Notable here:
- The features are whitened in closed form, so that the flow starts from the best Gaussian density.
- The backbone is frozen and its features are computed once. Sets whose features exceed `MEMORY` go through it at every
  step instead: slower, the same otherwise.
- After the last step, each level's surprise is put into units of its spread over a sample of OK images.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.backbones import Levels
from kizu.models.config import STRICT
from kizu.models.flow import PRESETS, FlowConfig, FlowDetector
from kizu.training.data.batches import Batch, Batches
from kizu.training.detectors.feature_views import PIECE, feature_pieces, ok_images
from kizu.training.detectors.method import BackboneMethod, DetectorContext, OneClassMethod
from kizu.training.loop import Losses, Phase, Stage
from kizu.training.optimisers import CosineAdamW, decayed
from kizu.training.options import Presets
from kizu.training.pretrained import PretrainedOptions
from kizu.training.progress import RunLog
from kizu.training.training_set import TrainingSet

MEMORY = 3 << 30
"""Bytes of precomputed features, at most."""
LEARNING_RATE = 2e-3
SHRINKAGE = 1e-2
"""Share of the identity in the correlation that whitens."""
SCALED_ON = 512
"""Images that each level's spread is taken from, at most."""


@dataclass(frozen=True, config=STRICT)
class FlowTraining(PretrainedOptions):
    """Training options of `[detector.options]`."""

    steps: int = Field(default=300, ge=1)
    """Updates at least; more where `epochs` passes take more."""


def whitening_of(pieces: Iterable[Tensor], projection: Tensor, shrinkage: float = SHRINKAGE) -> tuple[Tensor, Tensor]:
    """Mean and whitening matrix of features.

    With standardised and projected features u, u' = R^(−1/2) u, R the correlation of u shrunk towards the identity:
    symmetric, so that of all whitenings it changes the channels least (ZCA; Kessy et al. 2018).

    Args:
        pieces: features [n, D, h, w], some images at a time.
        projection: orthogonal rows, [K, D].

    Returns:
        Mean [D] and matrix [K, D], float64, on the CPU.
    """
    count = 0
    total = products = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        of_place = piece.movedim(1, 0).flatten(1).double()
        count += of_place.shape[1]
        total = total + of_place.sum(1).cpu()
        products = products + (of_place @ of_place.T).cpu()
    mean = total / count
    covariance = products / count - torch.outer(mean, mean)
    std = covariance.diagonal().clamp(min=0).sqrt()
    # A channel that never varies on OK images says nothing; as it is, it would be divided by zero.
    std = std.clamp(min=1e-3 * std.square().mean().sqrt().clamp(min=1e-12))
    standardised = projection.cpu().double() / std
    correlation = standardised @ covariance @ standardised.T
    shrunk = (1 - shrinkage) * correlation + shrinkage * torch.eye(len(correlation), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(shrunk)
    return mean, vectors @ torch.diag(values.rsqrt()) @ vectors.T @ standardised


class FlowMethod(BackboneMethod, OneClassMethod):
    """One stage, one phase: the likelihood of precomputed features."""

    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (FlowConfig, FlowTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.config = options.make(FlowConfig, **context.size)
        self.training = options.make(FlowTraining)
        self.section = context.section
        backbone, weights = context.backbones.load(self.config, self.training)
        self._detector = FlowDetector(self.config, backbone)
        super().__init__(self._detector, weights)
        self.networks = nn.ModuleDict({"flows": self._detector.flows})
        # float16 [M, D, h, w] of each stride; None: not precomputed.
        self._features: dict[int, Tensor] | None = None

    def prepare(self, training: TrainingSet, log: RunLog) -> None:
        """Whiten the features of OK images, and compute those of the set.

        Raises:
            UserError: there is no OK image.
        """
        batches = training.batches
        self._detector.backbone.to(batches.device)
        ok = ok_images(batches)
        self._features = self._precomputed(batches, log) if self._bytes(len(batches)) <= MEMORY else None
        for stride, flow in self._detector.levels.items():
            mean, whitening = whitening_of(self._pieces(batches, stride, ok), flow.projection)
            flow.mean.copy_(mean)
            flow.whitening.copy_(whitening)

    @torch.no_grad()
    def finish(self, training: TrainingSet) -> None:
        """Put each level's surprise into units of its spread over OK images."""
        ok = ok_images(training.batches)
        chosen = ok[torch.linspace(0, len(ok) - 1, min(len(ok), SCALED_ON)).long()]
        for stride, flow in self._detector.levels.items():
            pieces = self._pieces(training.batches, stride, chosen)
            surprise = torch.cat([flow.surprise(flow.white(piece)).flatten() for piece in pieces])
            flow.centre.copy_(surprise.mean())
            flow.spread.copy_(surprise.std().clamp(min=1e-6))
        self._features = None

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes, but at least `steps` updates."""
        steps = max(self.training.steps, round(self.section.epochs * images / self.section.batch_size))
        optimizer = CosineAdamW(decayed(self._detector.flows, 1e-5), self.section.learning_rate or LEARNING_RATE, steps)
        return [Stage("flow", steps, [Phase("fit", self._detector.flows, optimizer, self._losses, clip=1.0)])]

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Images, and their surprise from none to four deviations above the mean of these images: black to white."""
        places = self._detector(images)[1].float()
        above = (places - places.mean()) / places.std().clamp(min=1e-6)
        return torch.cat([images, (above / 2 - 1).clamp(-1, 1).expand_as(images)])

    def _losses(self, batch: Batch) -> Losses:
        """Mean −log p per dimension of each level, and their sum."""
        if self._features is None:
            with torch.no_grad():
                maps = self._maps(batch.images)
        else:
            maps = {stride: of_set[batch.indices].float() for stride, of_set in self._features.items()}
        levels = self._detector.levels.items()
        losses = {f"stride_{stride}": flow.surprise(flow.white(maps[stride])).mean() for stride, flow in levels}
        return {"total": torch.stack(list(losses.values())).sum(), **losses}

    def _maps(self, images: Tensor) -> Levels:
        return self._detector.features(self._detector.backbone(images))

    def _bytes(self, images: int) -> int:
        """Size of the precomputed features."""
        places = {stride: rows * columns for stride, (rows, columns) in self._grids().items()}
        return 2 * images * sum(self._detector.backbone.widths[stride] * n for stride, n in places.items())

    def _grids(self) -> dict[int, tuple[int, int]]:
        return {stride: self.config.grid(stride) for stride in self._detector.levels}

    def _precomputed(self, batches: Batches, log: RunLog) -> dict[int, Tensor]:
        found: dict[int, list[Tensor]] = {stride: [] for stride in self._detector.levels}
        with log.bar("computing features", len(batches)) as advance, torch.no_grad():
            for piece in torch.split(torch.arange(len(batches)), PIECE):
                maps = self._maps(batches.at(piece).images)
                for stride, of_stride in found.items():
                    of_stride.append(maps[stride].to(torch.float16))
                advance(len(piece))
        return {stride: torch.cat(maps) for stride, maps in found.items()}

    def _pieces(self, batches: Batches, stride: int, indices: Tensor) -> Iterable[Tensor]:
        """Features of these images, some at a time: [n, D, h, w] each."""
        if self._features is None:
            return feature_pieces(batches, lambda images: self._maps(images)[stride], indices)
        of_set = self._features[stride]
        return (of_set[piece.to(of_set.device)].float() for piece in torch.split(indices, PIECE))
