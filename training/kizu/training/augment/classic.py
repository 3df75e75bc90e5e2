"""Classic augmentation: what a camera's images vary in anyway, as a recipe's `[augment]` allows.

Notable here:
- Flips and turns are off unless asked for: on a machine part either can make a defect, or hide one.
- Masks move with their images. Shifts, flips and turns move whole pixels, and so change no value.
- Outside the image is its reflection, so that no border appears that cameras do not show.
- The rest of a letterboxed image stays as it was: were it altered, grey of another shade would tell the altered copies.
- All random numbers come from torch's global generators, which checkpoints keep.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from kizu.models.letterbox import shown_places
from kizu.training.augment.geometry import blit, compose, rotation, scaling, translation


class Amounts(Protocol):
    """Ranges of the augmentations: `kizu.training.recipe.AugmentSection`, or a configuration with its fields."""

    @property
    def flip_horizontal(self) -> bool:
        """Mirror left and right."""
        ...

    @property
    def flip_vertical(self) -> bool:
        """Mirror top and bottom."""
        ...

    @property
    def quarter_turns(self) -> bool:
        """Turn by multiples of 90°."""
        ...

    @property
    def shift(self) -> float:
        """Largest shift, as a share of the side."""
        ...

    @property
    def scale(self) -> float:
        """Largest change of size, as a share."""
        ...

    @property
    def brightness(self) -> float:
        """Largest change of brightness, as a share of the range of values."""
        ...

    @property
    def contrast(self) -> float:
        """Largest change of contrast, as a share."""
        ...

    @property
    def noise(self) -> float:
        """Largest standard deviation of noise, as a share of the range of values."""
        ...


def augmented(images: Tensor, masks: Tensor | None, amounts: Amounts) -> tuple[Tensor, Tensor | None]:
    """Images [N, C, H, W] in [−1, 1] and their masks [N, 1, H, W] in [0, 1], each image altered in its own way."""
    part = shown_places(images, *images.shape[2:])
    altered, masks = moved(images, masks, amounts)
    return torch.where(part > 0, recorded(altered, amounts), images), None if masks is None else masks * part


def moved(images: Tensor, masks: Tensor | None, amounts: Amounts) -> tuple[Tensor, Tensor | None]:
    """Flips, turns, shifts and scales; turns of an image that is not square are half turns."""
    n, _, height, width = images.shape
    inverse = torch.eye(3, device=images.device).expand(n, 3, 3)
    if amounts.flip_horizontal or amounts.flip_vertical:
        x, y = (_signs(n, on, images.device) for on in (amounts.flip_horizontal, amounts.flip_vertical))
        inverse = compose(inverse, scaling(x, y))
    if amounts.quarter_turns:
        turns = torch.randint(0, 4, (n,), device=images.device)
        inverse = compose(inverse, rotation(math.pi / 2 * (turns if height == width else turns // 2 * 2).float()))
    if amounts.shift:
        x, y = (
            ((torch.rand(n, device=images.device) * 2 - 1) * amounts.shift * side).round() for side in (width, height)
        )
        inverse = compose(inverse, translation(x, y))
    if amounts.scale:
        factor = torch.exp((torch.rand(n, device=images.device) * 2 - 1) * math.log1p(amounts.scale))
        inverse = compose(inverse, scaling(factor, factor))
        return _resampled(images, inverse), None if masks is None else _resampled(masks, inverse)
    if not (amounts.flip_horizontal or amounts.flip_vertical or amounts.quarter_turns or amounts.shift):
        return images, masks
    return blit(images, inverse), None if masks is None else blit(masks, inverse)


def recorded(images: Tensor, amounts: Amounts) -> Tensor:
    """Light and sensor: x → clamp(c·x + 2·b + 2·σ·ε) with ln c, b and σ uniform up to ±ln(1 + contrast), ±brightness
    and noise; brightness and noise are shares of the range from black to white.
    """
    n, device = len(images), images.device
    shape = (n, 1, 1, 1)
    if amounts.contrast:
        images = images * torch.exp((torch.rand(shape, device=device) * 2 - 1) * math.log1p(amounts.contrast))
    if amounts.brightness:
        images = images + (torch.rand(shape, device=device) * 2 - 1) * (2 * amounts.brightness)
    if amounts.noise:
        images = images + torch.rand(shape, device=device) * (2 * amounts.noise) * torch.randn_like(images)
    return images.clamp(-1, 1) if amounts.contrast or amounts.brightness or amounts.noise else images


def _signs(count: int, both: bool, device: torch.device) -> Tensor:
    ones = torch.ones(count, device=device)
    return ones - 2 * torch.randint(0, 2, (count,), device=device) if both else ones


def _resampled(images: Tensor, inverse: Tensor) -> Tensor:
    """Bilinear, about the centre, with `inverse` in pixels."""
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device) - (width - 1) / 2)[None, None, :]
    y = (torch.arange(height, device=images.device) - (height - 1) / 2)[None, :, None]
    row = inverse[:, :, :, None, None]
    across = row[:, 0, 0] * x + row[:, 0, 1] * y + row[:, 0, 2]
    down = row[:, 1, 0] * x + row[:, 1, 1] * y + row[:, 1, 2]
    grid = torch.stack([across * 2 / width, down * 2 / height], dim=3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
