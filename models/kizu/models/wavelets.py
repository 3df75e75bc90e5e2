"""A first layer that learns nothing: moduli of Morlet wavelets, for detectors with few images to learn from.

Notable here:
- Lines, edges and grain are told by scale and orientation before anything is learnt; what trains sees their strength,
  not their phase (Oyallon et al., "Scattering networks for hybrid representation learning", 2018; first order only).
- Wavelets have zero mean: the level of light changes nothing. Moduli come as logarithms: contrast is an offset.
- Everything runs at a quarter of the resolution or gets there at once, which makes what follows cheap.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = (1, 2, 4)
"""σ/0.8 of each wavelet's envelope in pixels; a wave is 8/3 times as long."""
ORIENTATIONS = 8
STRIDE = 4
FAINT = 1 / 30
"""Moduli well under this (about four of 256 grey levels) count linearly, those over it by their logarithm."""
SMALLEST = 1e-5
"""Added to (m / FAINT)², so that its root has a gradient; exporters drop what is added under 1e-8."""


def morlet(scale: float, angle: float) -> Tensor:
    """ψ(u) = c·(exp(iξ·u_θ) − β)·exp(−(u_θ² + u_⊥²/4) / 2σ²), with ∑ψ = 0 and ∑|ψ| = 1: complex [2r + 1, 2r + 1].

    Bruna & Mallat, "Invariant scattering convolution networks", 2013, section 2.1, with σ = 0.8·scale, ξ = 3π/4·scale⁻¹
    and an envelope twice as long across the wave as along it; r = 3·scale.

    Args:
        scale: in pixels.
        angle: of the wave vector from the x axis, in radians.
    """
    radius = math.ceil(3 * scale)
    side = torch.arange(-radius, radius + 1, dtype=torch.float64)
    y, x = torch.meshgrid(side, side, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    envelope = torch.exp(-(along**2 + across**2 / 4) / (2 * (0.8 * scale) ** 2))
    wave = envelope * torch.exp(1j * (3 * math.pi / 4 / scale) * along)
    wave = wave - envelope * (wave.sum() / envelope.sum())
    return wave / wave.abs().sum()


class WaveletModuli(nn.Module):
    """Image [N, C, H, W] in [−1, 1] → features [N, outputs, ⌈H/4⌉, ⌈W/4⌉], without a parameter.

    For every channel: the mean and the minimum of each 4 × 4 pixels, and of each wavelet's modulus there the root mean
    square and the maximum, as log(1 + m / FAINT).

    Args:
        channels: C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.outputs = channels * (2 + 2 * len(SCALES) * ORIENTATIONS)
        for scale in SCALES:
            waves = torch.stack([morlet(scale, math.pi * i / ORIENTATIONS) for i in range(ORIENTATIONS)])
            kernels = torch.cat([waves.real, waves.imag])[:, None].float()
            self.register_buffer(f"waves{scale}", kernels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Give the features of images, see the class."""
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate").flatten(0, 1)[:, None]
        energies = [pooled for scale in SCALES for pooled in self._energies(x, scale)]
        moduli = (torch.cat(energies, dim=1) / FAINT**2 + SMALLEST).sqrt()
        light = [F.avg_pool2d(x, STRIDE), -F.max_pool2d(-x, STRIDE)]
        features = torch.cat([*light, torch.log1p(moduli)], dim=1)
        return features.reshape(-1, self.outputs, *features.shape[2:])

    def _energies(self, x: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Mean and maximum of |ψ ∗ x|² over each place: [M, 1, h, w] → 2 × [M, ORIENTATIONS, h/4, w/4]."""
        kernels: Tensor = getattr(self, f"waves{scale}")
        radius = kernels.shape[-1] // 2
        squares = F.conv2d(F.pad(x, (radius,) * 4, mode="reflect"), kernels, stride=scale) ** 2
        energy = squares[:, :ORIENTATIONS] + squares[:, ORIENTATIONS:]
        if scale == STRIDE:
            return energy, F.max_pool2d(energy, 3, 1, 1)
        return F.avg_pool2d(energy, STRIDE // scale), F.max_pool2d(energy, STRIDE // scale)
