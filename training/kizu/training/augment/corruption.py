"""Corruptions of ADA: gains on four frequency bands, additive noise and a missing rectangle.

Notable here:

- The bands come from sym2's half-band filter L(z) = H(z)·H(1/z)/2 as 1 − L(z), L(z)·(1 − L(z²)), and so on, and so add
  up to 1 at every frequency; all are symmetric and move nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kizu.training.augment.geometry import banded, fold

HALF_BAND = (-1 / 32, 0.0, 9 / 32, 1 / 2, 9 / 32, 0.0, -1 / 32)
# Expected share of the power in [0, π/8], [π/8, π/4], [π/4, π/2] and [π/2, π] (Karras et al. 2020, appendix B).
POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)


class BandFilter(nn.Module):
    """Multiplies four frequency bands by gains, along rows and along columns."""

    half_band: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("half_band", torch.tensor(HALF_BAND), persistent=False)

    def bands(self, size: int, like: Tensor) -> Tensor:
        """The four filters over `size` reflected pixels, lowest first; they add up to I: [4, size, size]."""
        at = torch.arange(size, device=like.device)[:, None]
        offsets = torch.arange(len(HALF_BAND), device=like.device) - len(HALF_BAND) // 2
        values = self.half_band.to(like.dtype).expand(size, -1)
        rest = torch.eye(size, dtype=like.dtype, device=like.device)
        bands: list[Tensor] = []
        for spacing in (1, 2, 4):
            low = banded(fold(at + spacing * offsets, size).long(), values, size) @ rest
            bands.insert(0, rest - low)
            rest = low
        return torch.stack([rest, *bands])

    def forward(self, images: Tensor, gains: Tensor) -> Tensor:
        """Images [N, C, H, W] and gains [N, 4]; an image whose gains are all 1 is the same to the bit."""
        gains = gains.to(images.dtype)
        rows, columns = (torch.einsum("nb,bij->nij", gains, self.bands(side, images)) for side in images.shape[2:])
        filtered = rows[:, None] @ images @ columns[:, None].transpose(2, 3)
        return torch.where((gains != 1).any(1)[:, None, None, None], filtered, images)


def band_gains(amplitudes: Tensor, applied: Tensor) -> Tensor:
    """Gains that keep the expected power, from an amplitude per band [N, 4] and whether to apply it [N, 4]: [N, 4].

    Each applied band on its own is amplified and all four are then divided by √Σ λⱼtⱼ²; the four results multiply.
    """
    gains = torch.ones_like(amplitudes)
    for band, power in enumerate(POWER):
        amplitude = torch.where(applied[:, band], amplitudes[:, band], 1.0)
        # Σ λⱼ = 1 with three t at 1; in this form, it is exactly 1 where the amplitude is.
        norm = (1 + power * (amplitude.square() - 1)).sqrt()
        t = torch.stack([amplitude if other == band else torch.ones_like(amplitude) for other in range(4)], dim=1)
        gains = gains * t / norm[:, None]
    return gains


def cut_out(images: Tensor, centres: Tensor, applied: Tensor) -> Tensor:
    """Sets to 0 a rectangle of half the sides of images [N, C, H, W], where applied [N].

    Args:
        images: mid-grey is 0.
        centres: [N, 2], x and y in 0…1 of the sides; parts of the rectangle may lie outside.
        applied: [N] of bool.
    """
    height, width = images.shape[2:]
    x, y = (
        (torch.arange(side, device=images.device) + 0.5 - centres[:, axis, None] * side).abs() < side / 4
        for axis, side in enumerate((width, height))
    )
    missing = y[:, None, :, None] & x[:, None, None, :] & applied[:, None, None, None]
    return torch.where(missing, 0.0, images)
