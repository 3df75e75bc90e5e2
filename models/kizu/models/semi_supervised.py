"""A classifier of K kinds of real images and one of generated ones, and the generator that it learns against.

Salimans et al., "Improved techniques for training GANs", 2016, section 5 (K + 1 classes) and 3.1 (the generator's aim);
Odena, "Semi-supervised learning with generative adversarial networks", 2016.

Notable here:
- K logits l for the real classes, OK first, then NG; the generated class's logit is 0. A softmax over K + 1 logits has
  one too many, so nothing is lost: Z = Σ exp(l) is the odds of "real", and log Z is a soft maximum of the logits.
- The score is the log-odds of NG against OK among the real classes; what the network thinks of "generated" cancels.
- Fully convolutional, on the classifier's backbones: K logits per place. An NG class of an image is the pool of its
  log-odds against OK over the places, so few places decide; OK, and with it "real", is a mean over all of them.
- Batch norm is in eval mode when it scores: a function of one image alone.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models import classifier
from kizu.models.classifier import ClassifierConfig, lse_pool, make_backbone, mean_over_views, topk_pool
from kizu.models.config import STRICT, Fixed
from kizu.models.layers import init_dcgan, padded, pyramid_depth


@dataclass(frozen=True, config=STRICT)
class SemiSupervisedConfig(ClassifierConfig):
    """Shape of the two networks; backbone and pools are the classifier's."""

    backbone: Literal["plain", "wavelet", "resnet18", "resnet34"] = "plain"
    """`plain` and `wavelet` (from scratch), or torchvision's `resnet18` or `resnet34` up to their third layer."""
    real_classes: Annotated[int, Fixed()] = Field(default=2, ge=2)
    """K: OK and at least one NG."""
    latent: int = Field(default=64, ge=1)
    """Length of the generator's z."""
    generator_features: int = Field(default=16, ge=1)
    """Generator: channels at full resolution; twice as many at each halving, up to 8 times."""


PRESETS: dict[str, dict[str, Any]] = {
    name: {**preset, "latent": 64, "generator_features": 16}
    for name, preset in classifier.PRESETS.items()
    if name != "pretrained"
}


def ng_log_odds(logits: Tensor) -> Tensor:
    """Log-odds log (P(NG) / P(OK)) among the real classes: lse of the NG logits − OK's, [N, K, …] → [N, …]."""
    return torch.logsumexp(logits[:, 1:], 1) - logits[:, 0]


class SemiSupervisedDiscriminator(nn.Module):
    """The K real classes' logits, and the detector that they make.

    `forward` maps x [N, C, height, width] in [−1, 1] to score [N], a·(log-odds NG : OK) + b, and heatmap [N, 1, height,
    width], the same of each place, interpolated to the image. `slope` a > 0 and `offset` b are 1 and 0 until they are
    fitted on held-out images; neither changes a ranking.
    """

    slope: Tensor
    offset: Tensor

    def __init__(self, config: SemiSupervisedConfig):
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config)
        self.head = nn.Conv2d(self.backbone.outputs, config.real_classes, 1)
        nn.init.normal_(self.head.weight, 0.0, 0.01)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def penultimate(self, x: Tensor) -> Tensor:
        """Mean over the map of the features that the logits are made of: [N, C, H, W] → [N, F]."""
        result: Tensor = self.backbone(x).mean((2, 3))
        return result

    def logits(self, x: Tensor) -> Tensor:
        """Map of logits of the real classes: [N, C, H, W] → [N, K, h', w']."""
        result: Tensor = self.head(self.backbone(x))
        return result

    def pooled(self, logits: Tensor) -> Tensor:
        """Logits [N, K] of images from their maps [N, K, h', w'].

        OK is the mean over the map; NG class k is that + the pool of l_k − l_OK over the map.
        """
        ok, classes = logits[:, :1], logits.shape[1] - 1
        odds = (logits[:, 1:] - ok).flatten(0, 1)[:, None]
        if self.config.pool == "lse":
            pooled = lse_pool(odds, self.config.lse_temperature)
        else:
            pooled = topk_pool(odds, self.config.top_share)
        mean = ok.mean((2, 3))
        return torch.cat([mean, mean + pooled.reshape(-1, classes)], 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        score, odds = mean_over_views(x, self.config.views, self._detect)
        heatmap = F.interpolate(odds, size=x.shape[2:], mode="bilinear", align_corners=False)
        return score * self.slope + self.offset, heatmap * self.slope + self.offset

    def _detect(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(x)
        return ng_log_odds(self.pooled(logits)), ng_log_odds(logits)[:, None]


class UpBlock(nn.Module):
    """Nearest upsampling, 3×3 convolution, batch norm, ReLU: [N, inputs, h, w] → [N, outputs, 2h, 2w]."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample, convolve, normalise and activate, see the class."""
        return F.relu(self.norm(self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))))


class SemiSupervisedGenerator(nn.Module):
    """z [N, latent] ~ N(0, I) → image [N, C, height, width] in [−1, 1]; what is too much of it is cropped.

    A DCGAN (Radford et al. 2016) whose transposed convolutions are upsampling and convolution.
    """

    def __init__(self, config: SemiSupervisedConfig):
        super().__init__()
        self.config = config
        depth = pyramid_depth(config.height, config.width)
        height, width = padded(config.height, config.width, depth)
        self.coarsest = (height >> depth, width >> depth)
        widths = [config.generator_features * min(2**level, 8) for level in range(depth, -1, -1)]
        self.project = nn.Linear(config.latent, widths[0] * self.coarsest[0] * self.coarsest[1], bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(UpBlock(a, b) for a, b in pairwise(widths)))
        self.image = nn.Conv2d(widths[-1], config.channels, 3, padding=1)
        init_dcgan(self)

    def forward(self, z: Tensor) -> Tensor:
        """Generate images, see the class."""
        coarse = self.project(z).unflatten(1, (-1, *self.coarsest))
        x = torch.tanh(self.image(self.blocks(F.relu(self.norm(coarse)))))
        return x[:, :, : self.config.height, : self.config.width]
