"""A fully convolutional NG/OK classifier: a map of logits, and their pool as the image's score.

Notable here:
- One logit per place of a coarse map, so that a defect has a place; the image's logit is a pool of the map that lets
  few places decide. It learns from image labels through the pool, and from masks directly.
- "topk": mean of the largest logits (Zhu et al., "Deep multi-instance networks with sparse label assignment", 2017);
  "lse": T·log mean exp(m / T), which lies between mean and maximum (Pinheiro & Collobert 2015, equation 1).
- Batch norm is in eval mode when it scores: a function of one image alone.
- No fully connected layer: any size from 32 px, any aspect.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.backbones import DEFAULT, NEEDED, BackboneConfig, PretrainedBackbone, on_grid
from kizu.models.config import STRICT, WHOLE, Extent
from kizu.models.wavelets import STRIDE, WaveletModuli

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIEWS: tuple[tuple[int, ...], ...] = ((), (3,), (2,), (2, 3))
"""Axes of [N, C, H, W] that each view mirrors."""
OWN_BACKBONES = ("plain", "wavelet", "resnet18", "resnet34")
FINE_BELOW = 160
"""Shorter side in pixels under which a ResNet goes without its first pooling, for a map of stride 8, not 16."""


@dataclass(frozen=True, config=STRICT)
class ClassifierConfig:
    """Shape of a classifier; `height` and `width` in pixels."""

    height: Extent
    width: Extent
    channels: Extent
    backbone: str = "plain"
    """`plain` and `wavelet` (from scratch), torchvision's `resnet18` or `resnet34` up to their third layer, or the name
    of a pretrained network of timm, such as `tf_efficientnet_lite0`."""
    features: int = Field(default=16, ge=1)
    """`plain` and `wavelet`: channels of the first layer that learns; each halving doubles them."""
    stem_stride: Annotated[Literal[1, 2], WHOLE] = 1
    """`plain`: 1, a first layer at full resolution; or 2, a wider one at half of it, four times as fast."""
    halvings: int = Field(default=2, ge=0)
    """`plain` and `wavelet`: residual blocks that downsample by 2."""
    blocks: int = Field(default=2, ge=1)
    """`plain` and `wavelet`: residual blocks at the resolution of the map."""
    pool: Literal["topk", "lse"] = "topk"
    """`topk` or `lse`."""
    top_share: float = Field(default=0.05, ge=0, le=1)
    """`topk`: share of the map's places whose logits are averaged; at least one place is."""
    lse_temperature: float = Field(default=1.0, gt=0)
    """`lse`: T; towards 0 the pool becomes the maximum, towards ∞ the mean."""
    views: Annotated[Literal[1, 2, 4], WHOLE] = 1
    """An image scores as the mean over 1: itself; 2: and its mirror image; 4: and both upside down, at that many times
    the cost. For products that `[augment]` may flip likewise."""

    @model_validator(mode="after")
    def _the_map_has_several_places(self) -> Self:
        if self.backbone in OWN_BACKBONES and self.stride > min(self.height, self.width) // 2:
            raise ValueError(
                f"halvings leaves a map of one place: its stride is {self.stride}, the image's shorter side "
                f"{min(self.height, self.width)}"
            )
        return self

    @property
    def pretrained(self) -> BackboneConfig | None:
        """The timm network; None where the backbone is one of Kizu's or torchvision's."""
        if self.backbone in OWN_BACKBONES:
            return None
        return BackboneConfig(self.height, self.width, self.channels, self.backbone)

    @property
    def stride(self) -> int:
        """`plain` and `wavelet`: pixels of the image per place of the map."""
        stem: int = STRIDE if self.backbone == "wavelet" else self.stem_stride
        return stem << self.halvings


PRESETS: dict[str, dict[str, Any]] = {
    "small": {"backbone": "plain", "features": 16, "blocks": 2},
    "deep": {"backbone": "plain", "features": 16, "stem_stride": 2, "halvings": 3, "blocks": 2},
    "wavelet": {"backbone": "wavelet", "features": 32, "blocks": 1},
    "resnet18": {"backbone": "resnet18"},
    "resnet34": {"backbone": "resnet34"},
    "pretrained": {"backbone": DEFAULT},
}


class PlainBlock(nn.Module):
    """Two 3×3 convolutions with batch norm and a shortcut (He et al. 2016, figure 2), of stride 1 or 2."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] → [N, outputs, ⌈h / stride⌉, ⌈w / stride⌉]."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class PlainBackbone(nn.Module):
    """Image [N, C, H, W] in [−1, 1] → features [N, 2^halvings · features, ⌈H/stride⌉, ⌈W/stride⌉]."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        f, side = config.features, 4 * config.stem_stride - 1
        self.outputs = f * 2**config.halvings
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, f, side, config.stem_stride, side // 2, bias=False),
            nn.BatchNorm2d(f),
            nn.ReLU(inplace=True),
        )
        self.blocks = residual_blocks(config)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply stem and blocks, see the class."""
        result: Tensor = self.blocks(self.stem(x))
        return result


class WaveletBackbone(nn.Module):
    """Image [N, C, H, W] in [−1, 1] → moduli of wavelets → features [N, 2^halvings · features, ⌈H/stride⌉, ⌈W/stride⌉].

    For a few hundred images: what tells a line from grain is given, what makes a line a defect is learnt.
    """

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.outputs = config.features * 2**config.halvings
        self.moduli = WaveletModuli(config.channels)
        self.norm = nn.BatchNorm2d(self.moduli.outputs)
        self.mixture = nn.Sequential(
            nn.Conv2d(self.moduli.outputs, config.features, 1, bias=False),
            nn.BatchNorm2d(config.features),
            nn.ReLU(inplace=True),
        )
        self.blocks = residual_blocks(config)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Apply moduli, mixture and blocks, see the class."""
        result: Tensor = self.blocks(self.mixture(self.norm(self.moduli(x))))
        return result


def residual_blocks(config: ClassifierConfig) -> nn.Sequential:
    """`halvings` blocks of stride 2, then `blocks` of stride 1: [N, features, h, w] → [N, 2^halvings · features, …]."""
    widths = [config.features * 2**i for i in range(config.halvings + 1)]
    halving = [PlainBlock(narrow, wide, 2) for narrow, wide in pairwise(widths)]
    return nn.Sequential(*halving, *(PlainBlock(widths[-1], widths[-1], 1) for _ in range(config.blocks)))


def initialise(network: nn.Module) -> None:
    """Every convolution's weights for ReLU (He et al. 2015)."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class ResNetBackbone(nn.Module):
    """torchvision's ResNet up to `layer3`, with its names: image [N, C, H, W] in [−1, 1] → [N, 256, h', w'].

    Grey is repeated to three channels, and colours are standardised as ImageNet's were. The first pooling is left out
    for images under `FINE_BELOW` pixels; weights fit either way.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        from torchvision import models

        whole = getattr(models, config.backbone)(weights=None)
        self.outputs = 256
        self.conv1, self.bn1 = whole.conv1, whole.bn1
        self.pool = nn.Identity() if min(config.height, config.width) < FINE_BELOW else whole.maxpool
        self.layer1, self.layer2, self.layer3 = whole.layer1, whole.layer2, whole.layer3
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give the last of `levels`."""
        return self.levels(x)[-1]

    def levels(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the three layers: [N, 64, 4h', 4w'], [N, 128, 2h', 2w'], [N, 256, h', w']."""
        x = ((x + 1) / 2 - self.mean) / self.std  # a grey channel broadcasts to three
        first = self.layer1(self.pool(F.relu(self.bn1(self.conv1(x)))))
        second = self.layer2(first)
        return [first, second, self.layer3(second)]


class TimmBackbone(nn.Module):
    """A timm network that trains: image [N, C, H, W] in [−1, 1] → its maps from stride 8 on, on the grid of stride 16.

    Raises:
        UnsuitableBackboneError: as `PretrainedBackbone`.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.network = PretrainedBackbone(config, frozen=False)
        self.strides = tuple(stride for stride in self.network.widths if stride >= NEEDED[0])
        self.outputs = sum(self.network.widths[stride] for stride in self.strides)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, outputs, h, w]."""
        return on_grid(self.network(x), self.strides, self.network.config.grid(16))


def make_backbone(config: ClassifierConfig) -> PlainBackbone | WaveletBackbone | ResNetBackbone | TimmBackbone:
    """Make the backbone that the configuration names."""
    if config.pretrained is not None:
        return TimmBackbone(config.pretrained)
    if config.backbone == "plain":
        return PlainBackbone(config)
    return WaveletBackbone(config) if config.backbone == "wavelet" else ResNetBackbone(config)


def topk_pool(logits: Tensor, share: float) -> Tensor:
    """Mean of each map's largest logits, ⌈share · h·w⌉ of them and at least one: [N, 1, h, w] → [N]."""
    values = logits.flatten(1)
    return values.topk(max(1, math.ceil(share * values.shape[1] - 1e-9)), dim=1).values.mean(1)


def lse_pool(logits: Tensor, temperature: float) -> Tensor:
    """T·log(mean over places of exp(m / T)): [N, 1, h, w] → [N], between each map's mean and its maximum."""
    values = logits.flatten(1)
    highest = values.amax(1, keepdim=True)
    return highest[:, 0] + temperature * ((values - highest) / temperature).exp().mean(1).log()


def mean_over_views(x: Tensor, views: int, detect: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Average of `detect` over images and their mirror images.

    Args:
        x: [N, C, H, W].
        views: how many of `VIEWS`.
        detect: images → score [N] and map [N, 1, h', w'], which is mirrored back before it is averaged.
    """
    scores, maps = detect(x)
    for axes in VIEWS[1:views]:
        score, mirrored = detect(x.flip(axes))
        scores, maps = scores + score, maps + mirrored.flip(axes)
    return scores / views, maps / views


class Classifier(nn.Module):
    """The network, and the detector it makes.

    `forward` maps x [N, C, height, width] in [−1, 1] to score [N], a·pool(map) + b, and heatmap [N, 1, height, width],
    a·map + b interpolated to the image; both are means over the views. `slope` a > 0 and `offset` b are 1 and 0 until
    they are fitted on held-out images; then the score is the calibrated logit of P(NG) at the training images' share
    of NG. Neither changes a ranking.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config)
        self.head = nn.Conv2d(self.backbone.outputs, 1, 1)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def logits(self, x: Tensor) -> Tensor:
        """The map before calibration: [N, C, H, W] → [N, 1, h', w']."""
        result: Tensor = self.head(self.backbone(x))
        return result

    def pooled(self, logits: Tensor) -> Tensor:
        """A map's logit: [N, 1, h', w'] → [N]."""
        if self.config.pool == "lse":
            return lse_pool(logits, self.config.lse_temperature)
        return topk_pool(logits, self.config.top_share)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        score, logits = mean_over_views(x, self.config.views, self._detect)
        heatmap = F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=False)
        return score * self.slope + self.offset, heatmap * self.slope + self.offset

    def _detect(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return self.pooled(logits), logits
