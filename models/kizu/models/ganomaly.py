"""GANomaly: an autoencoder whose reconstruction is encoded once more; a defect shows as two latents that disagree.

Akcay, Atapour-Abarghouei & Breckon, "GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training", ACCV 2018.

Notable here:
- The score is the paper's, the mean of |z − ẑ| over the latent (preset `paper`), or the peak of the residual (preset
  `small`), which finds small defects far better. Batch norm is in eval mode: either is a function of one image alone.
- The discriminator gives its features, which the adversarial loss matches (section 3.2, equation 2).
- Any size from 32 px and any aspect: the image is padded to the next size that halves evenly.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT, Extent
from kizu.models.layers import init_dcgan, pad_to, padded, peak, pyramid_depth


@dataclass(frozen=True, config=STRICT)
class GANomalyConfig:
    """Shape of a GANomaly; `height` and `width` in pixels."""

    height: Extent
    width: Extent
    channels: Extent
    features: int = Field(default=64, ge=1)
    """Channels of the first convolution (ndf, ngf)."""
    latent: int = Field(default=100, ge=1)
    """Length of z (nz)."""
    score: Literal["latent", "peak"] = "latent"
    """`latent`: the published one; `peak`: the highest residual, for defects that are small in the image."""


PRESETS: dict[str, dict[str, Any]] = {
    "small": {"features": 24, "latent": 64, "score": "peak"},
    "paper": {"features": 64, "latent": 100, "score": "latent"},
}


class Encoder(nn.Module):
    """DCGAN encoder: image [N, C, H, W] in [−1, 1] → [N, outputs, 1, 1], and the feature map before the last layer."""

    def __init__(self, config: GANomalyConfig, outputs: int):
        super().__init__()
        depth = pyramid_depth(config.height, config.width)
        height, width = padded(config.height, config.width, depth)
        layers: list[nn.Module] = [
            nn.Conv2d(config.channels, config.features, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        channels = config.features
        for _ in range(depth - 1):
            layers += [
                nn.Conv2d(channels, channels * 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            channels *= 2
        self.pyramid = nn.Sequential(*layers)
        self.head = nn.Conv2d(channels, outputs, (height >> depth, width >> depth), bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images, see the class."""
        features = self.pyramid(x)
        return self.head(features), features


class Decoder(nn.Module):
    """DCGAN generator: z [N, latent, 1, 1] → image [N, C, H, W] in [−1, 1]."""

    def __init__(self, config: GANomalyConfig):
        super().__init__()
        depth = pyramid_depth(config.height, config.width)
        height, width = padded(config.height, config.width, depth)
        channels = config.features * 2 ** (depth - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(config.latent, channels, (height >> depth, width >> depth), bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        ]
        for _ in range(depth - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(inplace=True),
            ]
            channels //= 2
        layers += [nn.ConvTranspose2d(channels, config.channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """Decode latents, see the class."""
        result: Tensor = self.layers(z)
        return result


class GANomalyGenerator(nn.Module):
    """Encoder, decoder, encoder: x → (x̂, z, ẑ)."""

    def __init__(self, config: GANomalyConfig):
        super().__init__()
        self.encoder = Encoder(config, config.latent)
        self.decoder = Decoder(config)
        self.second_encoder = Encoder(config, config.latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruct and encode again, see the class."""
        z, _ = self.encoder(x)
        reconstruction = self.decoder(z)
        z_hat, _ = self.second_encoder(reconstruction)
        return reconstruction, z, z_hat

    def reconstruct(self, x: Tensor) -> Tensor:
        """Reconstruct x → x̂, without encoding it again."""
        result: Tensor = self.decoder(self.encoder(x)[0])
        return result


class GANomaly(nn.Module):
    """The networks, and the detector they make.

    `forward` maps x [N, C, height, width] in [−1, 1] to score [N] ≥ 0 (equation 5, over the latent's length, or the
    heatmap's peak) and heatmap [N, 1, height, width] ≥ 0: the mean over channels of |x − x̂|.
    """

    def __init__(self, config: GANomalyConfig):
        super().__init__()
        self.config = config
        self.padded = padded(config.height, config.width, pyramid_depth(config.height, config.width))
        self.generator = GANomalyGenerator(config)
        self.discriminator = Encoder(config, 1)
        init_dcgan(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        x = pad_to(x, *self.padded)
        reconstruction, z, z_hat = self.generator(x)
        heatmap = (x - reconstruction).abs().mean(1, keepdim=True)
        heatmap = heatmap[:, :, : self.config.height, : self.config.width]
        score = peak(heatmap) if self.config.score == "peak" else (z - z_hat).abs().flatten(1).mean(1)
        return score, heatmap

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """x̂ for x, both [N, C, height, width] in [−1, 1]."""
        reconstruction = self.generator.reconstruct(pad_to(x, *self.padded))
        return reconstruction[:, :, : self.config.height, : self.config.width]
