"""Differentiable augmentation at full strength (Zhao et al. 2020, Differentiable Augmentation for GAN Training).

The discriminator sees real and generated images only through it, in its own step and in the generator's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kizu.training.augment.corruption import cut_out

TRANSFORMS = ("brightness", "saturation", "contrast", "translation", "cutout")
"""In their order; the paper calls the first three `color`."""


def brighten(images: Tensor, amount: Tensor) -> Tensor:
    """Adds amount [N] to images [N, C, H, W]."""
    return images + amount[:, None, None, None]


def saturate(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies by factor [N] how far each channel of images [N, C, H, W] is from the pixel's mean."""
    grey = images.mean(1, keepdim=True)
    return torch.lerp(grey, images, factor[:, None, None, None])


def change_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Multiplies by factor [N] how far images [N, C, H, W] are from their own mean."""
    grey = images.mean((1, 2, 3), keepdim=True)
    return torch.lerp(grey, images, factor[:, None, None, None])


def shift(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Moves images [N, C, H, W] by whole pixels x [N] to the right and y [N] down, with 0 moving in."""
    _, channels, height, width = images.shape
    column = torch.arange(width, device=images.device) - x[:, None]
    row = torch.arange(height, device=images.device) - y[:, None]
    index = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None, :]
    moved = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view_as(images)
    inside = ((row >= 0) & (row < height))[:, None, :, None] & ((column >= 0) & (column < width))[:, None, None, :]
    return torch.where(inside, moved, 0.0)


class DiffAugment(nn.Module):
    """Applies to every image, in this order and each drawn anew, what `policy` names.

    Args:
        policy: of "brightness" (±0.5), "saturation" (×0–2) and "contrast" (×0.5–1.5), for images in [−1, 1],
            "translation" (by up to 1/8 of each side, in whole pixels) and "cutout" (a rectangle of half the sides).
    """

    def __init__(self, policy: Sequence[str] = TRANSFORMS):
        super().__init__()
        unknown = sorted(set(policy) - set(TRANSFORMS))
        if unknown:
            raise ValueError(f"unknown transform {', '.join(unknown)}; there are {', '.join(TRANSFORMS)}")
        self.policy = tuple(policy)

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in [−1, 1] → the same shape, in fp32 or fp64."""
        with torch.autocast(images.device.type, enabled=False):
            images = images if images.dtype == torch.float64 else images.float()
            for name in self.policy:
                images = getattr(self, f"_{name}")(images)
            return images

    def _brightness(self, images: Tensor) -> Tensor:
        return brighten(images, _uniform(images) - 0.5)

    def _saturation(self, images: Tensor) -> Tensor:
        return saturate(images, _uniform(images) * 2)

    def _contrast(self, images: Tensor) -> Tensor:
        return change_contrast(images, _uniform(images) + 0.5)

    def _translation(self, images: Tensor) -> Tensor:
        x, y = (
            # Rounded half up, so that small images move too.
            torch.randint(-int(side / 8 + 0.5), int(side / 8 + 0.5) + 1, (len(images),), device=images.device)
            for side in (images.shape[3], images.shape[2])
        )
        return shift(images, x, y)

    def _cutout(self, images: Tensor) -> Tensor:
        centres = torch.stack([_uniform(images), _uniform(images)], dim=1)
        return cut_out(images, centres, torch.ones(len(images), dtype=torch.bool, device=images.device))


def _uniform(images: Tensor) -> Tensor:
    return torch.rand(len(images), dtype=images.dtype, device=images.device)
