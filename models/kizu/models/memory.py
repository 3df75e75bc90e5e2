"""A memory of good parts: the features of each patch of an image, compared with the nearest that OK parts showed.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (PatchCore), CVPR 2022.

Notable here:
- Nearest neighbours are a matrix product inside the graph, a piece of the memory at a time; the distance to the one
  that is found is then taken from the difference itself, so that what OK parts show exactly loses no digits.
- Levels of a network, each averaged over 3×3 of its own patches (equation 3), on one grid: strides 8 and 16 of a
  pretrained backbone, or three levels of another network on the grid of the middle one.
- A level weighs by how much its features vary over OK parts, not by the network's scale.
- An image's score is its largest distance (equation 6), and on demand what equation 7 makes of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast, get_args

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.backbones import BackboneConfig, FeatureDetector, PretrainedBackbone, on_grid
from kizu.models.backbones import Levels as BackboneLevels
from kizu.models.classifier import FINE_BELOW, ClassifierConfig, PlainBlock, ResNetBackbone
from kizu.models.config import STRICT
from kizu.models.gaussian import gaussian_blur
from kizu.models.layers import pad_to
from kizu.models.stylegan2 import Discriminator

ResNet = Literal["resnet18", "resnet34"]
RESNETS: tuple[ResNet, ...] = get_args(ResNet)
LEVELS = 3
PRETRAINED_STRIDES = (8, 16)
CHUNK = 256
"""Patches of the memory that are compared at once: bounds the working memory, not the result."""
FLOOR = 0.1
"""Distances are √(d² + c²), c this share of the memory's spread: orders nothing anew, and keeps a score's rounding
far below the score where a part is exactly as remembered."""


@dataclass(frozen=True, config=STRICT)
class MemoryConfig(BackboneConfig):
    """Shape of the features and of the memory; `height` and `width` in pixels."""

    features: Literal["pretrained", "self-supervised", "discriminator"] | ResNet = "pretrained"
    """`pretrained` (of `backbone`), `self-supervised`, `discriminator` (of the run's generator), `resnet18` or
    `resnet34`."""
    filters: int = Field(default=16, ge=1)
    """`self-supervised`: channels of its first convolution; 2, 4 and 4 times as many on its levels."""
    memory: int = Field(default=2000, ge=2)
    """Patches of OK parts that are remembered, at most."""
    dimensions: int = Field(default=0, ge=0)
    """Features are projected to so many by a fixed Gaussian matrix; 0: not at all."""
    score: Literal["max", "reweighted"] = "max"
    """`max`: the largest distance; `reweighted`: that, times how far its neighbour in the memory is from others there
    (equation 7)."""
    neighbours: int = Field(default=9, ge=2)
    """`reweighted`: how many neighbours of the neighbour count."""
    blur: float = Field(default=0.0, ge=0)
    """Standard deviation in pixels of the Gaussian that smooths the heatmap; 0: none. It never changes the score."""

    @property
    def stride(self) -> int:
        """Pixels from patch to patch: 4, and 8 where the shorter side has at least `FINE_BELOW`, or of `enlarged`."""
        if self.features == "pretrained":
            return PRETRAINED_STRIDES[0]
        return 4 if min(self.height, self.width) < FINE_BELOW else 8

    @property
    def places(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        if self.features == "pretrained":
            return self.grid(self.stride)
        return math.ceil(self.height / self.stride), math.ceil(self.width / self.stride)


PRESETS: dict[str, dict[str, Any]] = {
    "small": {"features": "pretrained"},
    "self-supervised": {"features": "self-supervised", "memory": 1000},
    "discriminator": {"features": "discriminator", "memory": 1000},
    "resnet18": {"features": "resnet18", "memory": 1000},
    "resnet34": {"features": "resnet34", "memory": 1000},
}


class Backbone(Protocol):
    """Source of features."""

    widths: Sequence[int]
    """Channels of each level."""

    def levels(self, x: Tensor) -> list[Tensor]:
        """[N, C, H, W] in [−1, 1] → maps at half, at once and at twice the configuration's stride."""
        ...


class LocalEncoder(nn.Module):
    """A small residual network whose patches see little of the image: levels of 2, 4 and 4 times `filters` channels."""

    def __init__(self, config: MemoryConfig):
        super().__init__()
        f = config.filters
        self.widths = (2 * f, 4 * f, 4 * f)
        self.stem = nn.Sequential(
            nn.Conv2d(config.channels, f, 3, config.stride // 4, 1, bias=False), nn.BatchNorm2d(f), nn.ReLU()
        )
        self.blocks = nn.ModuleList([PlainBlock(f, 2 * f, 2), PlainBlock(2 * f, 4 * f, 2), PlainBlock(4 * f, 4 * f, 2)])
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def levels(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.levels`."""
        x = self.stem(x)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class ResNetLevels(nn.Module):
    """The first three layers of torchvision's ResNet."""

    widths = (64, 128, 256)

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.network = ResNetBackbone(
            ClassifierConfig(config.height, config.width, config.channels, backbone=cast(ResNet, config.features))
        )

    def levels(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.levels`."""
        return self.network.levels(x)


class DiscriminatorLevels(nn.Module):
    """Three of a StyleGAN2 discriminator's residual blocks, and those before them.

    Args:
        discriminator: for images of the configuration's size and channels; it is copied.

    Raises:
        ValueError: its images are of another size.
    """

    def __init__(self, config: MemoryConfig, discriminator: Discriminator):
        super().__init__()
        shape = discriminator.config
        if (shape.height, shape.width, shape.channels) != (config.height, config.width, config.channels):
            raise ValueError(f"the discriminator judges {shape.width}×{shape.height} pixels, {shape.channels} channels")
        first = config.stride // 4 - 1
        self.network = copy.deepcopy(discriminator)
        self.network.blocks = self.network.blocks[: first + LEVELS]
        # What judges an image as a whole, and compares it with others of its batch, has no patches.
        del self.network.head, self.network.mapping
        self.first = first
        self.widths = tuple(shape.features(shape.depth - 1 - first - level) for level in range(LEVELS))

    def levels(self, x: Tensor) -> list[Tensor]:
        """See `Backbone.levels`."""
        return self.network.features(x)[self.first :]


class PatchFeatures(nn.Module):
    """An image's features at each patch of the grid, from the levels of a backbone."""

    def __init__(self, config: MemoryConfig, backbone: nn.Module):
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.widths = tuple(cast(Backbone, backbone).widths)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [−1, 1] → [N, sum of widths, rows, columns]."""
        rows, columns = self.config.places
        maps = cast(Backbone, self.backbone).levels(x)
        fine, middle, coarse = (F.avg_pool2d(m, 3, 1, 1, count_include_pad=False) for m in maps)
        even = pad_to(fine, fine.shape[2] + fine.shape[2] % 2, fine.shape[3] + fine.shape[3] % 2)
        upsampled = F.interpolate(coarse, scale_factor=2.0, mode="bilinear", align_corners=False)
        # Levels of odd or padded images reach over the grid's lower and right edge.
        on_grid = [m[:, :, :rows, :columns] for m in (F.avg_pool2d(even, 2), middle, upsampled)]
        return torch.cat(on_grid, 1)


def squared_distances(points: Tensor, memory: Tensor, squares: Tensor) -> Tensor:
    """‖f‖² − 2 f·m + ‖m‖² ≥ 0 of each pair, as one matrix product: [N, D], [K, D], ‖m‖² [K] → [N, K]."""
    products = torch.addmm(squares, points, memory.T, alpha=-2.0)
    return (products + points.square().sum(1, keepdim=True)).clamp(min=0)


class PatchMemory(nn.Module):
    """The memory that patches are compared with, on features that are given.

    Args:
        widths: channels of each level of the features.
        seed: of the Gaussian projection, if there is one.
    """

    gains: Tensor
    projection: Tensor
    centre: Tensor
    bank: Tensor
    squares: Tensor
    neighbours: Tensor
    floor: Tensor

    def __init__(self, config: MemoryConfig, widths: Sequence[int], seed: int = 0):
        super().__init__()
        self.config = config
        self.widths = tuple(widths)
        inputs = sum(self.widths)
        self.register_buffer("gains", torch.ones(inputs))
        generator = torch.Generator().manual_seed(seed)
        sampled = torch.randn(inputs, config.dimensions, generator=generator) / math.sqrt(max(1, config.dimensions))
        self.register_buffer("projection", sampled)
        width = config.dimensions or inputs
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("bank", torch.zeros(0, width))
        self.register_buffer("squares", torch.zeros(0))
        self.register_buffer("neighbours", torch.zeros(0, 0, dtype=torch.int64))
        self.register_buffer("floor", torch.zeros(()))

    @torch.no_grad()
    def fit_gains(self, features: Tensor) -> None:
        """Give each level the same share of the variance, 1 in sum: features [M, sum of widths] of OK parts."""
        gains = []
        for level in torch.split(features, list(self.widths), dim=1):
            variance = level.var(0, correction=0).sum()
            gain = (len(self.widths) * variance).rsqrt() if variance > 0 else torch.ones_like(variance)
            gains.append(gain.expand(level.shape[1]))
        self.gains.copy_(torch.cat(gains))

    def embed(self, features: Tensor) -> Tensor:
        """Weight and project features, before centring: [M, sum of widths] → [M, D]."""
        weighted = features * self.gains
        return weighted @ self.projection if self.config.dimensions else weighted

    @torch.no_grad()
    def fill(self, embedded: Tensor) -> None:
        """Make [K, D], as `embed` gives them, the memory; 1 ≤ K ≤ `config.memory`, else ValueError."""
        if not 1 <= len(embedded) <= self.config.memory:
            raise ValueError(f"{len(embedded)} patches for a memory of 1 to {self.config.memory}")
        self.centre = embedded.mean(0)
        self.bank = embedded - self.centre
        self.squares = self.bank.square().sum(1)
        among = torch.cat([squared_distances(p, self.bank, self.squares) for p in torch.split(self.bank, CHUNK)])
        among.fill_diagonal_(-1.0)  # a patch is its own nearest, even if another is equal
        self.neighbours = among.topk(min(self.config.neighbours, len(embedded)), dim=1, largest=False).indices
        # A memory of one patch has no spread; a unit is then as good as any.
        spread = self.squares.mean().sqrt()
        self.floor = FLOOR * torch.where(spread > 0, spread, torch.ones_like(spread))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Compare patches: features [N, D, rows, columns] → score [N] and distances [N, 1, rows, columns].

        Raises:
            RuntimeError: nothing is remembered yet.
        """
        if not len(self.bank):
            raise RuntimeError("the memory is empty: it is filled from OK parts after training, before anything scores")
        rows, columns = features.shape[2:]
        f = self.embed(features.permute(0, 2, 3, 1).flatten(0, 2)) - self.centre
        nearest = self._nearest(f)
        distance = self._distance(f, self.bank.index_select(0, nearest)).reshape(-1, rows * columns)
        score = distance.amax(1)
        if self.config.score == "reweighted" and self.neighbours.shape[1] > 1:
            score = score * self._reweighting(f, nearest, distance)
        return score, distance.reshape(-1, 1, rows, columns)

    def _nearest(self, f: Tensor) -> Tensor:
        """Index of the nearest patch of the memory: [M, D] → [M]; ‖f‖², the same for all, is left out."""
        found: tuple[Tensor, Tensor] | None = None
        for start in range(0, len(self.bank), CHUNK):
            piece = slice(start, start + CHUNK)
            ranks = torch.addmm(self.squares[piece], f, self.bank[piece].T, alpha=-2.0)
            least, index = ranks.topk(1, dim=1, largest=False)
            if found is None:
                found = least, index
                continue
            closer = least < found[0]
            found = torch.where(closer, least, found[0]), torch.where(closer, index + start, found[1])
        assert found is not None
        return found[1][:, 0]

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).square().sum(-1) + self.floor.square()).sqrt()

    def _reweighting(self, f: Tensor, nearest: Tensor, distance: Tensor) -> Tensor:
        """1 − exp(d(m*)) / Σ exp(d(m)) over the neighbours m of m*, itself the first of them (equation 7): [N]."""
        worst = distance.argmax(1)
        index = worst + torch.arange(distance.shape[0], device=f.device) * distance.shape[1]
        around = self.bank[self.neighbours[nearest[index]]]
        return 1 - torch.softmax(self._distance(f[index][:, None], around), 1)[:, 0]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A state may hold any number of patches."""
        for name in ("bank", "squares", "neighbours"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if given is not None and len(given) <= self.config.memory and given.ndim == own.ndim:
                setattr(self, name, own.new_zeros(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class MemoryDetector(nn.Module):
    """The detector on a network of this run or of torchvision: patches of an image, and their memory.

    `forward` maps x [N, C, height, width] in [−1, 1] to score [N] and heatmap [N, 1, height, width], both distances in
    units of the features' spread. It raises RuntimeError until `memory` has been filled, or a state with one loaded.

    Args:
        seed: as `PatchMemory`.
    """

    def __init__(self, config: MemoryConfig, backbone: nn.Module, seed: int = 0):
        super().__init__()
        self.config = config
        self.patches = PatchFeatures(config, backbone)
        self.memory = PatchMemory(config, self.patches.widths, seed)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        score, distances = self.memory(self.patches(x))
        heatmap = F.interpolate(distances, scale_factor=float(self.config.stride), mode="bilinear", align_corners=False)
        return score, gaussian_blur(heatmap[:, :, : x.shape[2], : x.shape[3]], self.config.blur)


class PretrainedMemoryDetector(FeatureDetector):
    """The detector on a pretrained backbone, see `FeatureDetector` and `MemoryDetector`."""

    def __init__(self, config: MemoryConfig, backbone: PretrainedBackbone, seed: int = 0):
        super().__init__(backbone)
        self.config = config
        self.memory = PatchMemory(config, [backbone.widths[stride] for stride in PRETRAINED_STRIDES], seed)

    def patches(self, x: Tensor) -> Tensor:
        """[N, C, H, W] in [−1, 1] → features [N, D, rows, columns]."""
        return self._features(self.backbone(x))

    def detect(self, levels: BackboneLevels) -> tuple[Tensor, Tensor]:
        """See `FeatureDetector.detect`."""
        score, distances = self.memory(self._features(levels))
        return score, gaussian_blur(self.on_image(distances), self.config.blur)

    def _features(self, levels: BackboneLevels) -> Tensor:
        return on_grid(levels, PRETRAINED_STRIDES, self.config.places)
