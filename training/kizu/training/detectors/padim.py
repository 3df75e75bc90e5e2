"""Fitting of Gaussians to OK parts' features (networks and papers: `kizu.models.padim`).

Notable here:
- Nothing trains. Two passes of the OK images through the backbone: one for means and covariance, one for the distances'
  own spread.
- The pooled distance's spread is that of images left out of the fit, in five folds: on images that it has seen it would
  be several times too small, and a new OK part would look odd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.errors import UserError
from kizu.models.backbones import Levels
from kizu.models.config import STRICT
from kizu.models.padim import (
    FOLDS,
    PRESETS,
    Padim,
    PadimConfig,
    place_score,
    pooled_distance,
    principal_directions,
)
from kizu.training.data.batches import Batches
from kizu.training.detectors.feature_views import PIECE, ok_images
from kizu.training.detectors.method import BackboneMethod, DetectorContext, OneClassMethod
from kizu.training.loop import Stage
from kizu.training.options import Presets
from kizu.training.pretrained import PretrainedOptions
from kizu.training.progress import RunLog
from kizu.training.training_set import TrainingSet

FLAT = 1e-3
"""Share of the mean deviation under which a pooled feature counts as never varying."""


@dataclass(frozen=True, config=STRICT)
class PadimTraining(PretrainedOptions):
    """Where the backbone's weights come from."""


class PadimMethod(BackboneMethod, OneClassMethod):
    """No stage; the Gaussians are fitted at the end."""

    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (PadimConfig, PadimTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.config = options.make(PadimConfig, **context.size)
        backbone, weights = context.backbones.load(self.config, options.make(PadimTraining))
        self._detector = Padim(self.config, backbone)
        super().__init__(self._detector, weights)
        self.networks = nn.ModuleDict()
        self._seed = int(torch.randint(2**31, ()))

    def stages(self, images: int) -> list[Stage]:
        """None."""
        del images
        return []

    def samples(self, images: Tensor) -> Tensor:
        """Images: there is nothing to show while nothing trains."""
        return images

    def prepare(self, training: TrainingSet, log: RunLog) -> None:
        """Take the backbone to where the images are."""
        del log
        self._detector.to(training.batches.device)

    @torch.no_grad()
    def finish(self, training: TrainingSet) -> None:
        """Fit on the OK images.

        Raises:
            UserError: there are fewer than two.
        """
        batches, detector = training.batches, self._detector.eval()
        ok = ok_images(batches, self._seed)
        if len(ok) < 2:
            raise UserError("The train split has fewer than two OK images to fit a Gaussian to.", "Label more OK.")
        pooled = self._fit_places(batches, ok)
        self._fit_pooled(pooled)
        scores, distances = [], []
        for levels in self._levels(batches, ok):
            found = detector.distances(detector.features(levels))
            scores.append(place_score(found))
            distances.append(found.flatten())
        detector.place_scale = _scale(torch.cat(scores))
        detector.heat_scale = _scale(torch.cat(distances))
        self.notes.append(f"Gaussians of {len(ok)} OK images")

    def _levels(self, batches: Batches, ok: Tensor) -> Iterator[Levels]:
        for piece in torch.split(ok, PIECE):
            yield self._detector.backbone(batches.at(piece).images)

    def _fit_places(self, batches: Batches, ok: Tensor) -> Tensor:
        """Fit the places' means and their covariance; return the pooled features, [M, P]."""
        detector, config = self._detector, self.config
        pooled: list[Tensor] = []
        total: Tensor | None = None
        products: Tensor | None = None
        for levels in self._levels(batches, ok):
            pooled.append(detector.pool(levels))
            f = detector.features(levels).double()
            of_place = f.movedim(1, 0).flatten(1)
            total = f.sum(0) if total is None else total + f.sum(0)
            product = of_place @ of_place.T
            products = product if products is None else products + product
        assert total is not None
        assert products is not None
        n, channels = len(ok), total.shape[0]
        flat = total.flatten(1)
        places = flat.shape[1]
        overall = flat.mean(1, keepdim=True) / n
        mean = (flat + config.alignment * overall) / (n + config.alignment)
        # Σ (f − m)(f − m)ᵀ over images and places.
        crossed = flat @ mean.T
        covariance = (products - crossed - crossed.T + n * mean @ mean.T) / (n * places)
        ridge = config.ridge * covariance.diagonal().mean().clamp(min=1e-12)
        covariance = covariance + ridge * torch.eye(channels, dtype=covariance.dtype, device=covariance.device)
        detector.place_mean = mean.reshape(total.shape).float()
        detector.whitening = torch.linalg.cholesky(torch.linalg.inv(covariance)).float()
        return torch.cat(pooled)

    def _fit_pooled(self, pooled: Tensor) -> None:
        detector, shrinkage = self._detector, self.config.shrinkage
        left_out = []
        fold = torch.arange(len(pooled), device=pooled.device) % FOLDS
        for k in range(min(FOLDS, len(pooled))):
            mean, std, basis, gains = self._gaussian(pooled[fold != k])
            left_out.append(pooled_distance((pooled[fold == k] - mean) / std, basis, gains, shrinkage))
        detector.pooled_scale = _scale(torch.cat(left_out))
        detector.pooled_mean, detector.pooled_std, detector.basis, detector.gains = self._gaussian(pooled)

    def _gaussian(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean, std = pooled.mean(0), pooled.std(0, correction=0)
        std = std.clamp(min=FLAT * std.mean().clamp(min=1e-12))
        return mean, std, *principal_directions((pooled - mean) / std, self.config.rank, self.config.shrinkage)


def _scale(values: Tensor) -> Tensor:
    """Mean and standard deviation, [2]; a deviation of nothing is 1."""
    spread = values.std(correction=0)
    return torch.stack([values.mean(), torch.where(spread > 0, spread, torch.ones_like(spread))])
