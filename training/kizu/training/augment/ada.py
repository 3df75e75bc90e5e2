"""The augmentation pipeline of ADA (Karras et al. 2020, Training Generative Adversarial Networks with Limited Data).

A discriminator that only ever sees augmented images, real and generated alike, leaves the augmentations out of what
the generator learns as long as each is left undone often enough. Notable here:

- With p = 0, images come back the same to the bit; so does any part of the pipeline that was not drawn for an image.
  Mirroring, quarter turns and shifts by whole pixels alone move pixels and resample nothing.
- p may be a tensor on the device. Nothing asks the device for a value, and no size depends on what was drawn.
- Everything is worked out in fp32 whatever the autocast around it (or in fp64, given fp64 images).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic.dataclasses import dataclass as config_dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT
from kizu.training.augment import colour, geometry
from kizu.training.augment.corruption import BandFilter, band_gains, cut_out
from kizu.training.augment.geometry import OrthogonalWarp, compose, rotation, scaling, translation


@config_dataclass(frozen=True, config=STRICT)
class AugmentConfig:
    """Transforms that may happen; by default those that the paper trains with: geometry and colour.

    What an inspected part may look like decides: where an orientation, a mirror image or a hue tells good from bad,
    its transform is better left off.
    """

    xflip: bool = True
    """Mirror left and right."""
    rot90: bool = True
    """Quarter turns."""
    integer_translation: bool = True
    """Shifts by whole pixels."""
    scale: bool = True
    """Size."""
    rotation: bool = True
    """Turns by any angle."""
    anisotropic_scale: bool = True
    """Aspect."""
    fractional_translation: bool = True
    """Shifts by parts of a pixel."""
    brightness: bool = True
    """Brightness."""
    contrast: bool = True
    """Contrast."""
    luma_flip: bool = True
    """Inverted brightness."""
    hue: bool = True
    """Hue, of colour images."""
    saturation: bool = True
    """Saturation, of colour images."""
    band_filter: bool = False
    """Strength of spatial frequencies."""
    noise: bool = False
    """Noise."""
    cutout: bool = False
    """A grey rectangle."""


@dataclass(frozen=True)
class Draws:
    """Sampled transforms of N images, in the order of the pipeline; None: off. A neutral value changes nothing."""

    flip: Tensor | None = None  # [N] bool
    quarter_turns: Tensor | None = None  # [N], counter-clockwise as in torch.rot90
    shift: Tensor | None = None  # [N, 2], whole pixels to the right and down
    scale: Tensor | None = None  # [N], factor
    pre_angle: Tensor | None = None  # [N], radians counter-clockwise
    stretch: Tensor | None = None  # [N], factor in width; its inverse in height
    post_angle: Tensor | None = None  # [N], radians counter-clockwise
    drift: Tensor | None = None  # [N, 2], to the right and down, in widths and heights
    brightness: Tensor | None = None  # [N], added
    contrast: Tensor | None = None  # [N], factor
    luma_flip: Tensor | None = None  # [N] bool
    hue: Tensor | None = None  # [N], radians
    saturation: Tensor | None = None  # [N], factor
    band_gains: Tensor | None = None  # [N, 4], lowest band first
    noise: Tensor | None = None  # [N, C, H, W], added
    cutout_centre: Tensor | None = None  # [N, 2], x and y in 0…1
    cutout: Tensor | None = None  # [N] bool


class AdaAugment(nn.Module):
    """Draws and applies the transforms of `config`, each with probability p and on its own for each image.

    Args:
        config: which transforms may happen.
        channels: of the images. Hue and saturation need three, the luma flip one or three; else they never happen.

    Images that are not square turn by half turns only, in place of quarter turns.
    """

    def __init__(self, config: AugmentConfig, channels: int):
        super().__init__()
        self.config = config
        self.channels = channels
        self.warp = OrthogonalWarp()
        self.filter = BandFilter()

    def forward(self, images: Tensor, p: Tensor | float) -> Tensor:
        """Images [N, C, H, W] in [−1, 1], of any size, and p in 0…1 → the same shape, in fp32 or fp64."""
        return self.transform(images, self.sample(images, p))

    def sample(self, images: Tensor, p: Tensor | float) -> Draws:
        """Draws what happens to images [N, C, H, W] (appendix B); they give the sizes, device and precision only."""
        n, _, height, width = images.shape
        c = self.config
        dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
        chance = p if isinstance(p, Tensor) else torch.full((), p, device=images.device)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(n, *shape, dtype=dtype, device=images.device)

        def normal(sigma: float, *shape: int) -> Tensor:
            return torch.randn(n, *shape, dtype=dtype, device=images.device) * sigma

        def coin(chance: Tensor, *shape: int) -> Tensor:
            return torch.rand(n, *shape, device=images.device) < chance

        def angle(chance: Tensor) -> Tensor:
            return torch.where(coin(chance), (uniform() * 2 - 1) * math.pi, 0.0)

        def factor(sigma: float) -> Tensor:
            return torch.where(coin(chance), torch.exp2(normal(sigma)), 1.0)

        draws: dict[str, Tensor] = {}
        if c.xflip:
            draws["flip"] = coin(chance) & (uniform() < 0.5)
        if c.rot90:
            turns = torch.floor(uniform() * 4) if height == width else torch.floor(uniform() * 2) * 2
            draws["quarter_turns"] = torch.where(coin(chance), turns, 0.0)
        if c.integer_translation:
            x, y = (torch.round((uniform() * 2 - 1) * (0.125 * side)) for side in (width, height))
            draws["shift"] = torch.where(coin(chance, 1), torch.stack([x, y], dim=1), 0.0)
        if c.scale:
            draws["scale"] = factor(0.2)
        # Either rotation happens with probability p: 1 − (1 − p_rot)² = p.
        chance_of_each = 1 - (1 - chance).clamp(min=0).sqrt()
        if c.rotation:
            draws["pre_angle"] = angle(chance_of_each)
        if c.anisotropic_scale:
            draws["stretch"] = factor(0.2)
        if c.rotation:
            draws["post_angle"] = angle(chance_of_each)
        if c.fractional_translation:
            draws["drift"] = torch.where(coin(chance, 1), normal(0.125, 2), 0.0)

        if c.brightness:
            draws["brightness"] = torch.where(coin(chance), normal(0.2), 0.0)
        if c.contrast:
            draws["contrast"] = factor(0.5)
        if c.luma_flip and self.channels in (1, 3):
            draws["luma_flip"] = coin(chance) & (uniform() < 0.5)
        if c.hue and self.channels == 3:
            draws["hue"] = angle(chance)
        if c.saturation and self.channels == 3:
            draws["saturation"] = factor(1.0)

        if c.band_filter:
            draws["band_gains"] = band_gains(torch.exp2(normal(1.0, 4)), coin(chance, 4))
        if c.noise:
            sigma = torch.where(coin(chance), normal(0.1).abs(), 0.0)
            draws["noise"] = sigma[:, None, None, None] * normal(1.0, *images.shape[1:])
        if c.cutout:
            draws["cutout_centre"] = uniform(2)
            draws["cutout"] = coin(chance)
        return Draws(**draws)

    def transform(self, images: Tensor, draws: Draws) -> Tensor:
        """Applies `draws` to images [N, C, H, W] → the same shape, in fp32 or fp64; differentiable in the images."""
        if images.shape[1] != self.channels:
            raise ValueError(f"expected images of {self.channels} channels, not {images.shape[1]}")
        with torch.autocast(images.device.type, enabled=False):
            images = images if images.dtype == torch.float64 else images.float()
            images = self._move(images, draws)
            colours = self._colours(images, draws)
            if colours is not None:
                images = colour.recolour(images, colours)
            if draws.band_gains is not None:
                images = self.filter(images, draws.band_gains)
            if draws.noise is not None:
                images = images + draws.noise
            if draws.cutout is not None and draws.cutout_centre is not None:
                images = cut_out(images, draws.cutout_centre, draws.cutout)
            return images

    def _move(self, images: Tensor, draws: Draws) -> Tensor:
        """Every geometric transform as one map; pixels are moved where that is all, and resampled else."""
        n, _, height, width = images.shape
        # The inverse of a product is the product of the inverses in reverse, each of them known.
        inverses: list[Tensor] = []
        if draws.flip is not None:
            mirror = torch.where(draws.flip, -1.0, 1.0).to(images.dtype)
            inverses.append(scaling(mirror, torch.ones_like(mirror)))
        if draws.quarter_turns is not None:
            inverses.append(rotation(draws.quarter_turns * (-math.pi / 2)))
        if draws.shift is not None:
            inverses.append(translation(-draws.shift[:, 0], -draws.shift[:, 1]))
        blits = len(inverses)

        moved = torch.zeros(n, dtype=torch.bool, device=images.device)
        if draws.scale is not None:
            inverses.append(scaling(1 / draws.scale, 1 / draws.scale))
            moved = moved | (draws.scale != 1)
        if draws.pre_angle is not None:
            inverses.append(rotation(-draws.pre_angle))
            moved = moved | (draws.pre_angle != 0)
        if draws.stretch is not None:
            inverses.append(scaling(1 / draws.stretch, draws.stretch))
            moved = moved | (draws.stretch != 1)
        if draws.post_angle is not None:
            inverses.append(rotation(-draws.post_angle))
            moved = moved | (draws.post_angle != 0)
        if draws.drift is not None:
            inverses.append(translation(-draws.drift[:, 0] * width, -draws.drift[:, 1] * height))
            moved = moved | (draws.drift != 0).any(1)

        result = images
        if blits:
            result = geometry.blit(images, _product(inverses[:blits]).to(images.dtype))
        if len(inverses) > blits:
            warped = self.warp(images, _product(inverses).to(images.dtype))
            result = torch.where(moved[:, None, None, None], warped, result)
        return result

    def _colours(self, images: Tensor, draws: Draws) -> Tensor | None:
        """Every colour transform as one matrix [N, 4, 4], or None if all are off."""
        colours: list[Tensor] = []  # the last is applied first
        if draws.brightness is not None:
            colours.insert(0, colour.brightness(draws.brightness))
        if draws.contrast is not None:
            colours.insert(0, colour.contrast(draws.contrast))
        if draws.luma_flip is not None:
            colours.insert(0, colour.luma_flip(draws.luma_flip, images.dtype))
        if draws.hue is not None:
            colours.insert(0, colour.hue(draws.hue))
        if draws.saturation is not None:
            colours.insert(0, colour.saturation(draws.saturation))
        return _product(colours).to(images.dtype) if colours else None


def _product(matrices: list[Tensor]) -> Tensor:
    """The product of matrices [N, k, k], in the order given."""
    result = matrices[0]
    for factor in matrices[1:]:
        result = compose(result, factor)
    return result
