"""The Gaussian window: one kernel for blurs of heatmaps and for windowed statistics of images.

Notable here:
- A 2-D window is two 1-D convolutions, over rows and then over columns.
- All of it can be exported to ONNX; sizes may stay free.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_kernel(sigma: float, radius: int, *, like: Tensor) -> Tensor:
    """exp(−x² / 2σ²) at x = −radius … radius, scaled to sum 1: [2 · radius + 1], of the type and device of `like`."""
    offset = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    weights = torch.exp(-0.5 * (offset / sigma) ** 2)
    return weights / weights.sum()


def separable_filter(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve every channel of [N, C, H, W] with the window kernelᵀ · kernel, only where all of it lies inside."""
    channels = x.shape[1]
    weights = kernel.expand(channels, 1, 1, -1)
    rows = F.conv2d(x, weights, groups=channels)
    return F.conv2d(rows, weights.transpose(2, 3), groups=channels)


def gaussian_blur(x: Tensor, sigma: float) -> Tensor:
    """Blur [N, C, H, W] with edges repeated; the window ends at 3σ. The identity for σ = 0."""
    if not sigma:
        return x
    radius = math.ceil(3 * sigma)
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    return separable_filter(padded, gaussian_kernel(sigma, radius, like=x))
