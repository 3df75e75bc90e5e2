"""f-AnoGAN: a WGAN-GP learns good parts; an encoder then finds, in one pass, the good part nearest to an image.

Schlegl, Seeböck, Waldstein, Langs & Schmidt-Erfurth, "f-AnoGAN: Fast unsupervised anomaly detection with generative
adversarial networks", Medical Image Analysis 54, 2019. ResNets as in Gulrajani et al. 2017, appendix F.

Notable here:
- Batch norm in the generator, layer norm in the critic and encoder (a gradient penalty per image forbids batch norm).
- The encoder ends in tanh, as published, although z ~ N(0, 1).
- The score is the loss the encoder was trained on, izi_f: residual of the image plus κ times residual of the critic's
  last feature block, both as means per image; or, where asked for, the peak of the image residual.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT, Extent
from kizu.models.layers import LayerNorm2d, ResidualBlock, pad_to, padded, peak, pyramid_depth


@dataclass(frozen=True, config=STRICT)
class FAnoGANConfig:
    """Shape of an f-AnoGAN; `height` and `width` in pixels."""

    height: Extent
    width: Extent
    channels: Extent
    features: int = Field(default=64, ge=1)
    """Channels at full resolution (dim)."""
    latent: int = Field(default=128, ge=1)
    """Length of z ~ N(0, 1)."""
    kappa: float = Field(default=1.0, ge=0)
    """κ: weight of the feature residual in loss and score."""
    score: Literal["izi_f", "peak"] = "izi_f"
    """`izi_f`: the published one; `peak`: the highest residual, for defects that are small in the image."""

    @property
    def depth(self) -> int:
        """Residual blocks, each of which downsamples or upsamples by 2."""
        return pyramid_depth(self.height, self.width)

    @property
    def padded(self) -> tuple[int, int]:
        """Size that the networks work at."""
        return padded(self.height, self.width, self.depth)

    @property
    def widths(self) -> list[int]:
        """Channels from full resolution down: d, 2d, 4d, 8d, and 8d from there on."""
        return [self.features * min(2**level, 8) for level in range(self.depth + 1)]

    @property
    def base(self) -> tuple[int, int]:
        """Height and width of the coarsest feature map."""
        height, width = self.padded
        return height >> self.depth, width >> self.depth


PRESETS: dict[str, dict[str, Any]] = {
    "small": {"features": 8, "latent": 64},
    "paper": {"features": 64, "latent": 128},
}


class FAnoGANGenerator(nn.Module):
    """z [N, latent] → image [N, C, H, W] in [−1, 1]."""

    def __init__(self, config: FAnoGANConfig):
        super().__init__()
        widths = config.widths[::-1]
        self.base = (widths[0], *config.base)
        self.stem = nn.Linear(config.latent, widths[0] * config.base[0] * config.base[1])
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, nn.BatchNorm2d, "up") for a, b in pairwise(widths)))
        self.head = nn.Sequential(
            nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.Conv2d(widths[-1], config.channels, 3, padding=1), nn.Tanh()
        )

    def forward(self, z: Tensor) -> Tensor:
        """Generate images, see the class."""
        result: Tensor = self.head(self.blocks(self.stem(z).reshape(-1, *self.base)))
        return result


class ResidualPyramid(nn.Module):
    """Image [N, C, H, W] → (outputs [N, outputs], f [N, features]); f is the flattened last block."""

    def __init__(self, config: FAnoGANConfig, outputs: int):
        super().__init__()
        widths = config.widths
        self.stem = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(a, b, LayerNorm2d, "down") for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1] * config.base[0] * config.base[1], outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Apply stem, blocks and head, see the class."""
        features = self.blocks(self.stem(x)).flatten(1)
        return self.head(features), features


class FAnoGAN(nn.Module):
    """The networks, and the detector they make.

    `forward` maps x [N, C, height, width] in [−1, 1] to score [N] ≥ 0, mean (x − G(E(x)))² +
    κ·mean (f(x) − f(G(E(x))))² (section 2.3, or the heatmap's peak), and heatmap [N, 1, height, width] ≥ 0, the mean
    over channels of |x − G(E(x))|.
    """

    def __init__(self, config: FAnoGANConfig):
        super().__init__()
        self.config = config
        self.generator = FAnoGANGenerator(config)
        self.critic = ResidualPyramid(config, 1)
        self.encoder = ResidualPyramid(config, config.latent)

    def encode(self, x: Tensor) -> Tensor:
        """Encode x [N, C, H, W] → z [N, latent] in (−1, 1)."""
        return torch.tanh(self.encoder(x)[0])

    def residuals(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compare x [N, C, H, W] with G(E(x)) → (image residual [N], feature residual [N], G(E(x)) [N, C, H, W])."""
        reconstruction = self.generator(self.encode(x))
        image = (x - reconstruction).square().flatten(1).mean(1)
        features = (self.critic(x)[1] - self.critic(reconstruction)[1]).square().mean(1)
        return image, features, reconstruction

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        x = pad_to(x, *self.config.padded)
        image, features, reconstruction = self.residuals(x)
        heatmap = (x - reconstruction).abs().mean(1, keepdim=True)
        heatmap = heatmap[:, :, : self.config.height, : self.config.width]
        return peak(heatmap) if self.config.score == "peak" else image + self.config.kappa * features, heatmap

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """G(E(x)) for x, both [N, C, height, width] in [−1, 1]."""
        reconstruction = self.generator(self.encode(pad_to(x, *self.config.padded)))
        result: Tensor = reconstruction[:, :, : self.config.height, : self.config.width]
        return result
