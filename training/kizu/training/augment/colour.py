"""Colour of ADA: 4×4 matrices on (R, G, B, 1), with images in [−1, 1] and luma along (1, 1, 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kizu.training.augment.geometry import matrix


def brightness(amount: Tensor) -> Tensor:
    """Adds amount [N] to each channel: [N, 4, 4]."""
    return matrix(
        [[1.0, 0.0, 0.0, amount], [0.0, 1.0, 0.0, amount], [0.0, 0.0, 1.0, amount], [0.0, 0.0, 0.0, 1.0]], like=amount
    )


def contrast(factor: Tensor) -> Tensor:
    """Multiplies each channel by factor [N], about mid-grey: [N, 4, 4]."""
    return matrix(
        [[factor, 0.0, 0.0, 0.0], [0.0, factor, 0.0, 0.0], [0.0, 0.0, factor, 0.0], [0.0, 0.0, 0.0, 1.0]], like=factor
    )


def luma_flip(flipped: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Negates luma and keeps what is orthogonal to it, where flipped [N] is true: I − 2vvᵀ, [N, 4, 4]."""
    return _on_rgb(_identity(flipped, dtype) - flipped.to(dtype)[:, None, None] * (2 / 3))


def hue(theta: Tensor) -> Tensor:
    """Rotates by theta [N] radians about the luma axis (Rodrigues): [N, 4, 4]."""
    one = _identity(theta, theta.dtype)
    forward = one.roll(1, dims=1)  # R → G → B → R
    cross = (forward - forward.transpose(1, 2)) / math.sqrt(3)
    cos, sin = torch.cos(theta)[:, None, None], torch.sin(theta)[:, None, None]
    return _on_rgb(cos * one + (1 - cos) / 3 + sin * cross)


def saturation(factor: Tensor) -> Tensor:
    """Multiplies by factor [N] what is orthogonal to luma: s·I + (1 − s)·vvᵀ, [N, 4, 4]."""
    s = factor[:, None, None]
    return _on_rgb(s * _identity(factor, factor.dtype) + (1 - s) / 3)


def recolour(images: Tensor, colours: Tensor) -> Tensor:
    """Applies colours [N, 4, 4] to images [N, C, H, W]; where the matrix is I, the image is the same to the bit.

    Three channels are R, G and B. Any other number is greys, each of which goes as (x, x, x) would.
    """
    if images.shape[1] == 3:
        result = colours[:, :3, 3, None, None].expand_as(images)
        for channel in range(3):
            result = torch.addcmul(result, colours[:, :3, channel, None, None], images[:, channel : channel + 1])
        return result
    return images * colours[:, 0, :3].sum(1)[:, None, None, None] + colours[:, 0, 3][:, None, None, None]


def _identity(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.eye(3, dtype=dtype, device=like.device).expand(len(like), 3, 3)


def _on_rgb(linear: Tensor) -> Tensor:
    """[N, 3, 3] → [N, 4, 4], with no offset."""
    result = torch.nn.functional.pad(linear, (0, 1, 0, 1))
    result[:, 3, 3] = 1.0
    return result
