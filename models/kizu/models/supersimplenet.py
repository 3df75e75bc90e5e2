"""A small network on pretrained features that learns from OK parts alone, or from NG in any mixture with them.

Rolih, Fučka & Skočaj, "SuperSimpleNet: Unifying unsupervised and supervised learning for fast and reliable surface
defect detection", ICPR 2024.

Notable here:
- Two heads: a map of logits that says where, and a score that looks at the features and that map together.
- Features are standardised per channel on OK images, so that one size of noise suits every backbone and product.
- The score head works at half the map's resolution (mean of features, maximum of the map), which the paper's does not:
  a quarter of the work where nearly all of it is, at no loss that was seen.
- A kind of defect that was never labelled can leave the score head cold where the map is right, so the map's peak
  counts as well, and alone where noise was all that the head has learned from.
- The adaptor starts as the identity: at first, the heads see the features as they are.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.backbones import BackboneConfig, FeatureDetector, Levels, PretrainedBackbone, on_grid
from kizu.models.classifier import topk_pool
from kizu.models.config import STRICT

STRIDES = (8, 16)
PEAK_SHARE = 0.005
"""Share of the places, those with the highest logits, whose mean is the map's peak."""


@dataclass(frozen=True, config=STRICT)
class SuperSimpleNetConfig(BackboneConfig):
    """Images, backbone and heads."""

    map_width: int = Field(default=128, ge=1)
    """Channels of the map head."""
    score_width: int = Field(default=64, ge=1)
    """Channels of the score head."""
    score: Literal["both", "head", "map"] = "both"
    """`both`: the score head's logit and the map's peak, added, or the peak alone where no NG trained the head; `head`:
    the former alone, as published; `map`: the latter alone."""


PRESETS: dict[str, dict[str, Any]] = {"small": {}}


class Heads(nn.Module):
    """What trains: adaptor, map head and score head, with the features' statistics and the score's scale.

    Args:
        inputs: channels of the features.
    """

    mean: Tensor
    std: Tensor
    parts: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, config: SuperSimpleNetConfig, inputs: int):
        super().__init__()
        self.adaptor = nn.Conv2d(inputs, inputs, 1)
        with torch.no_grad():
            self.adaptor.weight.copy_(torch.eye(inputs)[:, :, None, None])
            assert self.adaptor.bias is not None
            self.adaptor.bias.zero_()
        self.map_head = nn.Sequential(
            nn.Conv2d(inputs, config.map_width, 1, bias=False),
            nn.BatchNorm2d(config.map_width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(config.map_width, 1, 1),
        )
        self.score_head = nn.Sequential(
            nn.Conv2d(inputs + 1, config.score_width, 5, padding=2, bias=False),
            nn.BatchNorm2d(config.score_width),
            nn.ReLU(),
        )
        self.score = nn.Linear(2 * config.score_width + 2, 1)
        self.register_buffer("mean", torch.zeros(inputs, 1, 1))
        self.register_buffer("std", torch.ones(inputs, 1, 1))
        parts = {"both": (1.0, 1.0), "head": (1.0, 0.0), "map": (0.0, 1.0)}[config.score]
        self.register_buffer("parts", torch.tensor(parts))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def adapt(self, features: Tensor) -> Tensor:
        """Standardise and adapt features: [N, D, h, w] → the same."""
        result: Tensor = self.adaptor((features - self.mean) / self.std)
        return result

    def forward(self, adapted: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted features → score [N] and map [N, 1, h, w], both logits before calibration."""
        places: Tensor = self.map_head(adapted)
        # An odd row or column at the end counts as well.
        coarse = F.avg_pool2d(adapted, 2, ceil_mode=True), F.max_pool2d(places, 2, ceil_mode=True)
        hidden = self.score_head(torch.cat(coarse, 1))
        pooled = [f(m) for m in (hidden, places) for f in (_mean, _maximum)]
        return self.score(torch.cat(pooled, 1))[:, 0], places


class SuperSimpleNet(FeatureDetector):
    """The detector, see `FeatureDetector`. Its score is a logit of NG, its heatmap the map's logits.

    `heads.slope` > 0 and `heads.offset` are 1 and 0 until they are fitted on held-out images.
    """

    def __init__(self, config: SuperSimpleNetConfig, backbone: PretrainedBackbone):
        super().__init__(backbone)
        self.config = config
        self.heads = Heads(config, sum(backbone.widths[stride] for stride in STRIDES))

    @property
    def slope(self) -> Tensor:
        """Factor of the score, shape []."""
        return self.heads.slope

    @property
    def offset(self) -> Tensor:
        """What is added to it, shape []."""
        return self.heads.offset

    def features(self, levels: Levels) -> Tensor:
        """Maps of the backbone → [N, D, h, w] on the grid of stride 8."""
        return on_grid(levels, STRIDES, self.config.grid(8))

    def detect(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """See `FeatureDetector.detect`."""
        score, places = self.heads(self.heads.adapt(self.features(levels)))
        head, peak = self.heads.parts
        score = head * score + peak * topk_pool(places, PEAK_SHARE)
        return score * self.heads.slope + self.heads.offset, self.on_image(places)


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def _maximum(x: Tensor) -> Tensor:
    return x.amax((2, 3))
