"""DRAEM: a network that removes anomalies, and one that finds them by what was removed.

Zavrtanik, Kristan & Skočaj, "DRAEM – A discriminatively trained reconstruction embedding for surface anomaly
detection", ICCV 2021.

Notable here:
- The reconstructive network has no skips, so that an anomaly does not pass; the discriminative one is a U-Net that sees
  image and reconstruction side by side, and says of each pixel whether it is an anomaly.
- The map is of log-odds, one logit for the paper's two classes: where probabilities saturate, these still rank.
- Depth follows the image: no network halves it below 4 pixels. Any size from 32 px and any aspect, by padding.
- Batch norm is in eval mode when it scores: a function of one image alone.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT, Extent
from kizu.models.layers import pad_to, padded, peak, pyramid_depth

RECONSTRUCTION_WIDTHS = (1, 2, 4, 8, 8)
SEGMENTATION_WIDTHS = (1, 2, 4, 8, 8, 8)
"""Channels at each halving, in multiples of those at full resolution (the authors' 128 … 1024 and 64 … 512)."""
FILTER_SHARE = 21 / 256
"""Side of the mean filter, as a share of the image's (section 3.4: 21 pixels of 256)."""


@dataclass(frozen=True, config=STRICT)
class DRAEMConfig:
    """Shape of a DRAEM; `height` and `width` in pixels."""

    height: Extent
    width: Extent
    channels: Extent
    features: int = Field(default=128, ge=1)
    """Channels of the reconstructive network at full resolution."""
    segmentation_features: int = Field(default=64, ge=1)
    """Channels of the discriminative network at full resolution."""
    score: Literal["mean-filter", "peak"] = "mean-filter"
    """`mean-filter`: the highest local mean, the published score; `peak`: the highest value after a small blur."""


PRESETS: dict[str, dict[str, Any]] = {
    "small": {"features": 16, "segmentation_features": 16, "score": "mean-filter"},
    "paper": {"features": 128, "segmentation_features": 64, "score": "mean-filter"},
}


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with batch norm and ReLU: [N, inputs, h, w] → [N, outputs, h, w]."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        conv = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class Pyramid(nn.Module):
    """A block at full resolution and one after each halving, and the way back up.

    Args:
        inputs, outputs: channels of the input and of the last, linear 3×3 convolution.
        widths: channels at each resolution, finest first.
        skips: give the way up what the way down had at the same resolution (U-Net, Ronneberger et al. 2015).
    """

    def __init__(self, inputs: int, outputs: int, widths: list[int], *, skips: bool):
        super().__init__()
        self.skips = skips
        before = [inputs, *widths[:-1]]
        self.down = nn.ModuleList(block(i, o) for i, o in zip(before, widths, strict=True))
        self.up = nn.ModuleList(
            block(below + (width if skips else 0), width) for below, width in zip(widths[1:], widths, strict=False)
        )
        self.head = nn.Conv2d(widths[0], outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] → [N, outputs, h, w], with sides that halve `len(widths) − 1` times."""
        kept: list[Tensor] = []
        for i, down in enumerate(self.down):
            x = down(F.max_pool2d(x, 2) if i else x)
            kept.append(x)
        for up, skip in zip(reversed(self.up), reversed(kept[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = up(torch.cat([x, skip], 1) if self.skips else x)
        result: Tensor = self.head(x)
        return result


def highest_mean(heatmap: Tensor) -> Tensor:
    """The highest mean of each heatmap [N, 1, h, w] over squares of 21/256 of its shorter side: [N] (equation 6).

    Squares have an odd side of at least 3 pixels, and lie inside the image.
    """
    radius = max(1, round(min(heatmap.shape[2:]) * FILTER_SHARE / 2 - 0.5))
    return F.avg_pool2d(heatmap, 2 * radius + 1, stride=1).amax((1, 2, 3))


class DRAEM(nn.Module):
    """The networks, and the detector they make.

    `forward` maps x [N, C, height, width] in [−1, 1] to score [N] and heatmap [N, 1, height, width], the log-odds of
    each pixel's being an anomaly under the training's share of them.
    """

    def __init__(self, config: DRAEMConfig):
        super().__init__()
        self.config = config
        depth = pyramid_depth(config.height, config.width)
        self.padded = padded(config.height, config.width, min(depth, len(SEGMENTATION_WIDTHS) - 1))
        c = config.channels
        widths = [config.features * m for m in RECONSTRUCTION_WIDTHS[: depth + 1]]
        self.reconstruction = Pyramid(c, c, widths, skips=False)
        widths = [config.segmentation_features * m for m in SEGMENTATION_WIDTHS[: depth + 1]]
        self.segmentation = Pyramid(2 * c, 1, widths, skips=True)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x [N, C, height, width] to its reconstruction, of the same shape, and logits [N, 1, height, width]."""
        x = pad_to(x, *self.padded)
        reconstruction = self.reconstruction(x)
        logits = self.segmentation(torch.cat([x, reconstruction], 1))
        height, width = self.config.height, self.config.width
        return reconstruction[:, :, :height, :width], logits[:, :, :height, :width]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        _, logits = self.both(x)
        return peak(logits) if self.config.score == "peak" else highest_mean(logits), logits
