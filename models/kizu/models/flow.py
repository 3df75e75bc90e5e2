"""A normalising flow on pretrained features: the density of what OK parts show, place by place.

Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows", 2021; Rudolph et al.,
"Fully Convolutional Cross-Scale-Flows for Image-based Defect Detection", WACV 2022.

Notable here:
- One flow a level, on features averaged over 3×3 places, as PatchCore's are. Each first whitens them by the covariance
  of OK features: the flow starts as a Gaussian density, whose distance is Mahalanobis', and training adds to that what
  is not Gaussian.
- A coupling block takes two random halves of the channels and changes one by the other and its neighbourhood, so that
  the flow is invertible and its Jacobian triangular (Dinh et al. 2017).
- Blocks with 3×3 and 1×1 convolutions alternate, as in FastFlow.
- A place's surprise is its negative log-likelihood per dimension, its share of the log-determinant included, in units
  of the spread over OK images: so levels can be averaged.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.backbones import BackboneConfig, FeatureDetector, Levels, PretrainedBackbone
from kizu.models.config import STRICT

STRIDES = (8, 16)


@dataclass(frozen=True, config=STRICT)
class FlowConfig(BackboneConfig):
    """Images, backbone and flows."""

    blocks: int = Field(default=8, ge=1)
    """Coupling blocks of each flow."""
    hidden_ratio: float = Field(default=1.0, gt=0)
    """Hidden channels of a block's network per channel that goes in."""
    dimensions: int = Field(default=128, ge=2)
    """Channels of a level at most; wider ones are projected."""
    clamp: float = Field(default=1.9, gt=0)
    """Largest logarithm of a block's scale."""
    peak: float = Field(default=0.05, gt=0, le=1)
    """Share of the places, those that surprise most, whose mean is the score; 1: the mean over all."""


PRESETS: dict[str, dict[str, Any]] = {"small": {}}


class Coupling(nn.Module):
    """An affine coupling block on maps (Dinh et al. 2017, equations 4 and 5).

    `forward` maps x [N, K, h, w] to the same shape, and the logarithm of its scales' product at each place [N, h, w].

    Args:
        channels: K ≥ 2.
        kernel: of the network's convolutions, odd.
    """

    order: Tensor
    back: Tensor

    def __init__(self, config: FlowConfig, channels: int, kernel: int):
        super().__init__()
        self.clamp = config.clamp
        self.kept = channels // 2
        self.changed = channels - self.kept
        hidden = max(1, round(config.hidden_ratio * self.kept))
        self.first = nn.Conv2d(self.kept, hidden, kernel, padding=kernel // 2)
        self.last = nn.Conv2d(hidden, 2 * self.changed, kernel, padding=kernel // 2)
        # At first, the block changes nothing.
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(cast(Tensor, self.last.bias))
        order = torch.randperm(channels)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Change half of the channels, see the class."""
        kept, changed = self._halves(x)
        scale, shift = self._affine(kept)
        changed = changed * scale.exp() + shift
        return torch.cat([kept, changed], 1)[:, self.back], scale.sum(1)

    def inverse(self, z: Tensor) -> Tensor:
        """Undo `forward`: z [N, K, h, w] → x."""
        kept, changed = self._halves(z)
        scale, shift = self._affine(kept)
        return torch.cat([kept, (changed - shift) * (-scale).exp()], 1)[:, self.back]

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shuffled = x[:, self.order]
        return shuffled[:, : self.kept], shuffled[:, self.kept :]

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the scale, within ±`clamp`, and shift."""
        raw = self.last(F.relu(self.first(kept)))
        scale, shift = raw[:, : self.changed], raw[:, self.changed :]
        return self.clamp * torch.tanh(scale / self.clamp), shift


class LevelFlow(nn.Module):
    """The density of one level's features.

    `projection` [K, D], orthogonal, is the identity where K = D. `whitening` [K, D] and `mean` [D] are it and 0 until
    they are fitted; `centre` and `spread`, the surprise's mean and standard deviation over OK images, are 0 and 1.

    Args:
        inputs: D, channels of the level.
    """

    projection: Tensor
    mean: Tensor
    whitening: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: FlowConfig, inputs: int):
        super().__init__()
        self.channels = min(inputs, config.dimensions)
        projection = torch.eye(inputs)
        if self.channels < inputs:
            projection = torch.linalg.qr(torch.randn(inputs, self.channels))[0].T.contiguous()
        self.register_buffer("projection", projection)
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("whitening", projection.clone())
        self.register_buffer("centre", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))
        kernels = [3 if index % 2 == 0 else 1 for index in range(config.blocks)]
        self.blocks = nn.ModuleList([Coupling(config, self.channels, kernel) for kernel in kernels])

    def white(self, maps: Tensor) -> Tensor:
        """Whiten features: [N, D, h, w] → [N, K, h, w]."""
        return F.conv2d(maps - self.mean[:, None, None], self.whitening[:, :, None, None])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whitened features [N, K, h, w] → latents, the same shape, and log |det J| of each place [N, h, w]."""
        logarithm = torch.zeros_like(x[:, 0])
        for block in self.blocks:
            x, more = block(x)
            logarithm = logarithm + more
        return x, logarithm

    def inverse(self, z: Tensor) -> Tensor:
        """Latents → whitened features, [N, K, h, w] both."""
        for block in reversed(self.blocks):
            z = cast(Coupling, block).inverse(z)
        return z

    def scaled(self, surprise: Tensor) -> Tensor:
        """Surprise in units of its spread over OK images."""
        return (surprise - self.centre) / self.spread

    def surprise(self, x: Tensor) -> Tensor:
        """−log p of each place of whitened features, per dimension and without its constant: [N, h, w]."""
        z, logarithm = self(x)
        result: Tensor = (0.5 * z.square().sum(1) - logarithm) / self.channels
        return result


class FlowDetector(FeatureDetector):
    """The detector, see `FeatureDetector`. Its heatmap is the surprise, averaged over levels.

    The score is the mean over the `peak` share of places that surprise most.
    """

    def __init__(self, config: FlowConfig, backbone: PretrainedBackbone):
        super().__init__(backbone)
        self.config = config
        self.flows = nn.ModuleDict({str(stride): LevelFlow(config, backbone.widths[stride]) for stride in STRIDES})

    @property
    def levels(self) -> dict[int, LevelFlow]:
        """Stride → its flow."""
        return {stride: cast(LevelFlow, self.flows[str(stride)]) for stride in STRIDES}

    def features(self, levels: Levels) -> Levels:
        """Maps of the backbone → those with a flow, each averaged over 3×3 of its places."""
        return {stride: F.avg_pool2d(levels[stride], 3, 1, 1, count_include_pad=False) for stride in STRIDES}

    def detect(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """See `FeatureDetector.detect`."""
        grid = self.config.grid(STRIDES[0])
        features, surprises = self.features(levels), []
        for stride, flow in self.levels.items():
            surprise = flow.scaled(flow.surprise(flow.white(features[stride])))[:, None]
            if surprise.shape[2:] != grid:
                surprise = F.interpolate(surprise, size=grid, mode="bilinear", align_corners=False)
            surprises.append(surprise)
        places = torch.cat(surprises, 1).mean(1, keepdim=True)
        count = max(1, round(self.config.peak * grid[0] * grid[1]))
        score = places.flatten(1).topk(count, 1).values.mean(1)
        return score, self.on_image(places)
