"""Gaussians of what OK parts look like: one for the features at each place, one for the image as a whole.

Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR 2020, with
one covariance for all places, and a Gaussian of pooled features beside it (Rippel et al., "Modeling the distribution of
normal data in pre-trained deep features for anomaly detection", ICPR 2020).

Notable here:
- A slow change over a whole part has no single odd place: only the pooled features show it.
- Places have means of their own, drawn towards the mean over all places where images are few. One covariance is
  estimated well from few images, and a covariance for each place would be a hundred times the graph.
- Both distances are in units of their spread over OK images before they are added, the pooled one as it is on images
  that did not fit it: in hundreds of dimensions, an image is far closer to a Gaussian that has seen it.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from kizu.models.backbones import BackboneConfig, FeatureDetector, Levels, PretrainedBackbone, on_grid
from kizu.models.config import STRICT

STRIDES = (8, 16)
TOP_SHARE = 0.01
"""Share of the places, those that are farthest, whose mean is the places' score."""
FOLDS = 5


@dataclass(frozen=True, config=STRICT)
class PadimConfig(BackboneConfig):
    """Images, backbone and Gaussians."""

    alignment: float = Field(default=20.0, ge=0)
    """Images that the mean over all places weighs as many as, in the mean of each place."""
    ridge: float = Field(default=0.01, gt=0)
    """Share of the mean variance that is added to the variances of a place's features (the paper's ε)."""
    shrinkage: float = Field(default=0.2, gt=0, lt=1)
    """Share of the identity in the correlations of pooled features: images are fewer than they are."""
    rank: int = Field(default=256, ge=1)
    """Directions in which the pooled Gaussian knows correlations, at most."""


PRESETS: dict[str, dict[str, Any]] = {"small": {}}


class Padim(FeatureDetector):
    """The detector, see `FeatureDetector`: its score has mean 0 and is about 2 where both distances are 1 SD above.

    Its heatmap is the distance at each place in SD from their mean over OK images. Raises RuntimeError until fitted.
    """

    place_mean: Tensor
    whitening: Tensor
    place_scale: Tensor
    pooled_mean: Tensor
    pooled_std: Tensor
    basis: Tensor
    gains: Tensor
    pooled_scale: Tensor
    heat_scale: Tensor

    def __init__(self, config: PadimConfig, backbone: PretrainedBackbone):
        super().__init__(backbone)
        self.config = config
        names = ("place_mean", "whitening", "place_scale", "pooled_mean", "pooled_std", "basis", "gains")
        for name in (*names, "pooled_scale", "heat_scale"):
            self.register_buffer(name, torch.zeros(0))

    def features(self, levels: Levels) -> Tensor:
        """Maps of the backbone → features of places, [N, D, h, w]."""
        return on_grid(levels, STRIDES, self.config.grid(8))

    def pool(self, levels: Levels) -> Tensor:
        """Mean, standard deviation and maximum of each channel of every level: [N, 3·ΣD]."""
        return torch.cat(
            [statistic for x in levels.values() for statistic in (x.mean((2, 3)), _std(x), x.amax((2, 3)))], 1
        )

    def distances(self, features: Tensor) -> Tensor:
        """Mahalanobis distance of each place: [N, D, h, w] → [N, h, w] (equation 2, with one covariance)."""
        different = (features - self.place_mean).permute(0, 2, 3, 1)
        # The floor keeps a root's rounding away from 0, where a place is exactly as on average.
        return ((different @ self.whitening).square().sum(3) + 1e-3).sqrt()

    def pooled_distance(self, pooled: Tensor) -> Tensor:
        """Mahalanobis distance of each image: [N, P] → [N]."""
        z = (pooled - self.pooled_mean) / self.pooled_std
        return pooled_distance(z, self.basis, self.gains, self.config.shrinkage)

    def detect(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """See `FeatureDetector.detect`."""
        if not len(self.place_mean):
            raise RuntimeError("the Gaussians are fitted on OK parts after training, before anything scores")
        distances = self.distances(self.features(levels))
        places = _standardised(place_score(distances), self.place_scale)
        image = _standardised(self.pooled_distance(self.pool(levels)), self.pooled_scale)
        heat = _standardised(distances, self.heat_scale)[:, None]
        return places + image, self.on_image(heat)


def place_score(distances: Tensor) -> Tensor:
    """Mean of the `TOP_SHARE` largest distances of each image, one at least: [N, h, w] → [N]."""
    values = distances.flatten(1)
    return values.topk(max(1, round(TOP_SHARE * values.shape[1])), dim=1).values.mean(1)


def pooled_distance(z: Tensor, basis: Tensor, gains: Tensor, shrinkage: float) -> Tensor:
    """√(zᵀ((1 − λ)·U·diag(v)·Uᵀ + λ·I)⁻¹z) by the matrix inversion lemma: [N, P] → [N].

    Args:
        z: standardised, [N, P].
        basis: U, orthonormal columns [P, r].
        gains: (1 − λ)·v / ((1 − λ)·v + λ), [r].
        shrinkage: λ.
    """
    along = (z @ basis).square() @ gains
    return (((z.square().sum(1) - along) / shrinkage).clamp(min=0) + 1e-3).sqrt()


def principal_directions(z: Tensor, rank: int, shrinkage: float) -> tuple[Tensor, Tensor]:
    """(basis, gains) of `pooled_distance` for standardised images [M, P], at most `rank` directions."""
    _, singular, directions = torch.linalg.svd(z / len(z) ** 0.5, full_matrices=False)
    variances = (1 - shrinkage) * singular[:rank].square()
    return directions[:rank].T.contiguous(), variances / (variances + shrinkage)


def _standardised(values: Tensor, scale: Tensor) -> Tensor:
    return (values - scale[0]) / scale[1]


def _std(x: Tensor) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean).square().mean((2, 3)) + 1e-12).sqrt()
