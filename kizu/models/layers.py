"""Building blocks that networks share."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def pyramid_depth(height: int, width: int, base: int = 4) -> int:
    """How often an image can be halved before its shorter side falls under `base` pixels."""
    return max(1, int(math.log2(min(height, width) / base)))


def padded(height: int, width: int, depth: int) -> tuple[int, int]:
    """The next size that halves `depth` times without remainder."""
    step = 2**depth
    return math.ceil(height / step) * step, math.ceil(width / step) * step


def pad_to(x: Tensor, height: int, width: int) -> Tensor:
    """Pad at the bottom and right by repeating the edge; the identity where x [N, C, h, w] already fits."""
    extra_height, extra_width = height - x.shape[2], width - x.shape[3]
    if not extra_height and not extra_width:
        return x
    return F.pad(x, (0, extra_width, 0, extra_height), mode="replicate")


def peak(heatmap: Tensor) -> Tensor:
    """The highest value of each heatmap [N, 1, h, w] after a Gaussian blur of 1/64 of its shorter side: [N].

    A defect of a few pixels hardly moves a mean over the image or its latent; it does move the highest value, which
    the blur (of one pixel at least) keeps from being one noisy pixel.
    """
    sigma = max(1.0, min(heatmap.shape[2:]) / 64)
    radius = math.ceil(3 * sigma)
    offset = torch.arange(-radius, radius + 1, device=heatmap.device, dtype=heatmap.dtype)
    weights = torch.exp(-0.5 * (offset / sigma) ** 2)
    weights = weights / weights.sum()
    smooth = F.pad(heatmap, (radius, radius, radius, radius), mode="replicate")
    smooth = F.conv2d(F.conv2d(smooth, weights[None, None, None]), weights[None, None, :, None])
    return smooth.amax((1, 2, 3))


def init_dcgan(module: nn.Module) -> None:
    """Weights N(0, 0.02), normalisation gains N(1, 0.02), biases 0 (Radford et al. 2016, section 4)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, 0.0, 0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
            nn.init.zeros_(layer.bias)


class ResidualBlock(nn.Module):
    """Pre-activation residual block that keeps, halves (`down`) or doubles (`up`) the resolution.

    As in the ResNets of WGAN-GP (Gulrajani et al. 2017, appendix F): two 3×3 convolutions, mean-pooled or
    nearest-upsampled, with a 1×1 shortcut. `norm` makes the normalisation for a number of channels.
    """

    def __init__(self, inputs: int, outputs: int, norm: type[nn.Module], resample: str):
        super().__init__()
        if resample not in ("up", "down"):
            raise ValueError(f"resample must be 'up' or 'down', not {resample!r}")
        self.up = resample == "up"
        hidden = outputs if self.up else inputs
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, hidden, 3, padding=1, bias=False)
        self.norm2 = norm(hidden)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        for conv, gain in ((self.conv1, 2.0), (self.conv2, 2.0), (self.shortcut, 1.0)):
            nn.init.normal_(conv.weight, 0.0, math.sqrt(gain / (conv.in_channels * conv.kernel_size[0] ** 2)))
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.shortcut.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] → [N, outputs, h·2, w·2] or [N, outputs, h/2, w/2]."""
        y = F.relu(self.norm1(x))
        if self.up:
            y = F.interpolate(y, scale_factor=2, mode="nearest")
            y = self.conv2(F.relu(self.norm2(self.conv1(y))))
            # A 1×1 convolution commutes with nearest upsampling; before it, it costs a quarter.
            return y + F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")
        y = F.avg_pool2d(self.conv2(F.relu(self.norm2(self.conv1(y)))), 2)
        return y + self.shortcut(F.avg_pool2d(x, 2))


class LayerNorm2d(nn.Module):
    """Layer normalisation over C, H and W of each image, with a gain and bias per channel (Ba et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] → the same shape."""
        return F.group_norm(x, 1, self.weight, self.bias)
