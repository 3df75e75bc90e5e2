"""Pretrained backbones: a timm network whose feature maps several detectors share.

Notable here:
- Networks come from timm by name; weights are loaded elsewhere (`kizu.training.pretrained`), nothing here reads a file.
- Pixels are normalised as the weights want it, which for EfficientNet-Lite is (x − 127) / 128, not ImageNet's.
- Images that are small for the network are enlarged inside the graph: a 64 px tile would have 4×4 places at stride 16.
- A detector takes the maps, not the image, so that one graph computes them once for all its members.
- It stays in eval mode and without gradients whatever trains around it, unless it is made to be trained; its batch norm
  keeps the statistics of the weights even then, which a few hundred images could not better.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass as plain_dataclass
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT, Extent
from kizu.models.letterbox import shown_places

DEFAULT = "tf_efficientnet_lite0"
"""The network whose weights come with Kizu's training extra."""
STRIDES = (4, 8, 16, 32)
NEEDED = (8, 16)
"""Strides that a network must have."""
LEAST_PLACES = 4
"""Places along the shorter side at stride 16 under which a map says little of where something is."""

Levels = dict[int, Tensor]
"""Stride in pixels of the (enlarged) image → feature map [N, D, h, w]."""


@dataclass(frozen=True, config=STRICT)
class BackboneConfig:
    """Images and network; `height` and `width` in pixels."""

    height: Extent
    width: Extent
    channels: Extent
    backbone: str = DEFAULT
    """Name of a timm network with maps of stride 8 and 16. Another than the default needs `weights`."""
    least_side: int = Field(default=128, ge=32, le=1024)
    """Images whose shorter side has fewer pixels are enlarged to so many inside the graph."""

    @property
    def of_backbone(self) -> BackboneConfig:
        """Only what the backbone depends on, so that several detectors share one."""
        return BackboneConfig(self.height, self.width, self.channels, self.backbone, self.least_side)

    @property
    def enlarged(self) -> tuple[int, int]:
        """Height and width that the network sees."""
        factor = max(1.0, self.least_side / min(self.height, self.width))
        return round(self.height * factor), round(self.width * factor)

    def grid(self, stride: int) -> tuple[int, int]:
        """Rows and columns of the maps of a stride."""
        height, width = self.enlarged
        return math.ceil(height / stride), math.ceil(width / stride)


@plain_dataclass(frozen=True)
class Normalisation:
    """What is taken from pixels from 0 to 255, and what the rest is divided by, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


SPECIAL_NORMALISATIONS = {DEFAULT: Normalisation((127.0,) * 3, (128.0,) * 3)}
"""Where the weights' own differs from what timm states, if only by half a grey level."""


class UnsuitableBackboneError(ValueError):
    """A network that timm does not know, or without maps of the strides that are needed."""


class PretrainedBackbone(nn.Module):
    """The feature maps of a timm network, its classifier left out.

    `forward` maps x [N, C, height, width] in [−1, 1], C = 1 or 3, to its `Levels`, of those among `STRIDES` that the
    network has. It is always in eval mode. Places of the maps that are nothing but a letterboxed image's rest are 0, in
    every image alike, so that none of them can look odd.

    Args:
        frozen: none of its parameters takes part in training.

    Raises:
        UnsuitableBackboneError: no such network, or it lacks strides 8 and 16 (of transformers, most do).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, config: BackboneConfig, *, frozen: bool = True):
        super().__init__()
        self.config = config
        self.frozen = frozen
        try:
            self.network = timm.create_model(config.backbone, pretrained=False, features_only=True)
        except (RuntimeError, ValueError, AssertionError, AttributeError, TypeError) as error:
            raise UnsuitableBackboneError(f"timm makes no feature maps of '{config.backbone}': {error}") from error
        info: Any = self.network.feature_info
        # Of several levels of one stride, the last has seen most.
        found = {stride: index for index, stride in enumerate(info.reduction()) if stride in STRIDES}
        if missing := [stride for stride in NEEDED if stride not in found]:
            raise UnsuitableBackboneError(
                f"'{config.backbone}' has maps of strides {sorted(set(info.reduction()))}, and none of {missing}"
            )
        self.widths: dict[int, int] = {stride: info.channels()[index] for stride, index in found.items()}
        """Stride → channels."""
        self._taps = found
        normalisation = normalisation_of(config.backbone, cast(Any, self.network).default_cfg)
        self.register_buffer("mean", torch.tensor(normalisation.mean)[:, None, None], persistent=False)
        self.register_buffer("scale", 1 / torch.tensor(normalisation.std)[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PretrainedBackbone:  # noqa: ARG002 - it never trains
        """Stay in eval mode: batch norm keeps the statistics of the weights."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> PretrainedBackbone:
        """Stay without gradients, where it is frozen."""
        return super().requires_grad_(requires_grad and not self.frozen)

    def forward(self, x: Tensor) -> Levels:
        """Give the maps, see the class."""
        size = self.config.enlarged
        image = x
        if size != (self.config.height, self.config.width):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = ((x + 1) * 127.5 - self.mean) * self.scale  # a grey channel broadcasts to three
        if self.network.training:  # the loop sets modes module by module
            self.network.eval()
        maps = self.network(x)
        found = {stride: maps[index] for stride, index in self._taps.items()}
        return {stride: of_all * shown_places(image, *of_all.shape[2:]) for stride, of_all in found.items()}


def normalisation_of(name: str, configuration: dict[str, Any]) -> Normalisation:
    """Give what timm's configuration of a network states, or what its weights are known to want."""
    if name in SPECIAL_NORMALISATIONS:
        return SPECIAL_NORMALISATIONS[name]
    mean, std = (tuple(255 * float(value) for value in configuration[key]) for key in ("mean", "std"))
    return Normalisation((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


class FeatureDetector(nn.Module, ABC):
    """A detector on a backbone's maps: subclasses give `detect`.

    `forward` maps x [N, C, height, width] in [−1, 1] to (score [N], heatmap [N, 1, height, width]).
    """

    def __init__(self, backbone: PretrainedBackbone):
        super().__init__()
        self.backbone = backbone

    @abstractmethod
    def detect(self, levels: Levels) -> tuple[Tensor, Tensor]:
        """Maps of the backbone → (score [N], heatmap [N, 1, height, width]); higher is more NG."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        return self.detect(self.backbone(x))

    def inspect(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score images and embed them: `forward`, and what `pooled` makes of the same maps."""
        levels = self.backbone(x)
        return *self.detect(levels), pooled(levels)

    def on_image(self, places: Tensor) -> Tensor:
        """Interpolate values of a grid [N, 1, h, w] to the image's size."""
        size = (self.backbone.config.height, self.backbone.config.width)
        return F.interpolate(places, size=size, mode="bilinear", align_corners=False)


def pooled(levels: Levels) -> Tensor:
    """Means over places of the maps of strides 8 and 16, one after the other: [N, D₈ + D₁₆]."""
    return torch.cat([levels[stride].mean((2, 3)) for stride in NEEDED], 1)


def on_grid(levels: Levels, strides: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """Average each map over 3×3 of its own places, bring all to one grid and stack them: [N, ΣD, rows, columns].

    Finer maps are averaged down, coarser ones interpolated (Roth et al. 2022, section 3.1).
    """
    maps = []
    for stride in strides:
        averaged = F.avg_pool2d(levels[stride], 3, 1, 1, count_include_pad=False)
        if averaged.shape[2] > grid[0] or averaged.shape[3] > grid[1]:
            averaged = F.interpolate(averaged, size=grid, mode="area")
        elif averaged.shape[2:] != grid:
            averaged = F.interpolate(averaged, size=grid, mode="bilinear", align_corners=False)
        maps.append(averaged)
    return torch.cat(maps, 1)
