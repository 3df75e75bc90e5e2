"""StyleGAN2: a generator whose style modulates its convolutions, and a residual discriminator.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, with what "Training Generative
Adversarial Networks with Limited Data" (NeurIPS 2020) adds: projection onto the class.

Notable here:
- Plain PyTorch, nothing to compile. Styles scale a convolution's input, demodulation its output, so that one shared
  weight serves the batch; the paper's per-image weights would need a grouped convolution.
- Any size from 16 px, any aspect, any number of channels: the constant that everything grows from has the aspect, and
  what is over at the bottom and right is cropped from fakes and padded to real images.
- Styles, demodulation, RGB outputs and their sum, minibatch statistics and the discriminator's last layers stay in fp32
  under autocast: small products, whose rounding every pixel would show.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT, Extent, Fixed
from kizu.models.layers import (
    ROOT2,
    SLOPE,
    EqualizedConv2d,
    EqualizedLinear,
    MinibatchStd,
    leaky_relu_,
    low_pass,
    pad_to,
    padded,
    pyramid_depth,
    scaled_leaky_relu,
    upsample,
)


@dataclass(frozen=True, config=STRICT)
class StyleGAN2Config:
    """Shape of a StyleGAN2; `height` and `width` in pixels, `classes` 0 for an unconditional one."""

    height: Extent
    width: Extent
    channels: Extent
    classes: Annotated[int, Fixed()] = Field(default=0, ge=0)
    latent: int = Field(default=512, ge=1)
    """Length of z and of w."""
    mapping_layers: int = Field(default=8, ge=0)
    """Layers from z to w."""
    capacity: int = Field(default=16384, ge=1)
    """Channels at a resolution r are capacity / r … (fmaps · 32768 of the paper's code)"""
    max_channels: int = Field(default=512, ge=1)
    """… but no more than this."""
    group: int = Field(default=4, ge=1)
    """Images per group of the minibatch standard deviation."""

    @model_validator(mode="after")
    def _images_have_16_pixels(self) -> Self:
        if min(self.height, self.width) < 16:
            raise ValueError(f"images of {self.width}×{self.height} pixels are smaller than 16")
        return self

    @property
    def depth(self) -> int:
        """Number of upsamplings by 2."""
        return pyramid_depth(self.height, self.width)

    @property
    def base(self) -> tuple[int, int]:
        """Height and width of the constant; 4×4 for squares whose side is a power of two."""
        height, width = padded(self.height, self.width, self.depth)
        return height >> self.depth, width >> self.depth

    @property
    def layers(self) -> int:
        """Number of w that the synthesis network takes: 2·log₂(r) − 2."""
        return 2 * self.depth + 2

    def features(self, level: int) -> int:
        """Channels after `level` upsamplings."""
        return max(1, min(self.capacity // (4 << level), self.max_channels))


PRESETS: dict[str, dict[str, int]] = {
    "demo": {"latent": 32, "mapping_layers": 2, "capacity": 512, "max_channels": 32},
    "small": {"latent": 256, "mapping_layers": 4, "capacity": 4096, "max_channels": 128},
    "auto": {"mapping_layers": 2},
    "paper256": {"capacity": 16384, "group": 8},
    "paper512": {"capacity": 32768, "group": 8},
    "paper1024": {"capacity": 32768, "group": 4},
}
"""Those of the paper have its code's values; `auto`, from the same code, follows the size (`auto_capacity`)."""


def auto_capacity(height: int, width: int) -> int:
    """Return the capacity that the preset `auto` has for images of this size."""
    return 32768 if max(height, width) >= 512 else 16384


Noise = str | Sequence[torch.Generator]
"""`random`, `const` (the same map for every image), `none`, or one CPU generator per image."""


def normalise(x: Tensor) -> Tensor:
    """Scale each vector of [N, L] to second moment 1, in fp32."""
    x = x.float()
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """f: z (and class) → w. With `latent` 0 it embeds a class alone, as the discriminator's projection needs."""

    average: Tensor

    def __init__(self, latent: int, outputs: int, classes: int, layers: int):
        super().__init__()
        self.latent = latent
        self.embedding = EqualizedLinear(classes, outputs) if classes else None
        inputs = latent + (outputs if classes else 0)
        widths = [inputs] + [outputs] * layers
        self.layers = nn.ModuleList(EqualizedLinear(a, b, rate=0.01) for a, b in itertools.pairwise(widths))
        self.register_buffer("average", torch.zeros(outputs))

    def forward(self, z: Tensor | None, classes: Tensor | None, *, track: bool = False) -> Tensor:
        """Map z [N, latent] and classes [N] → w [N, outputs] in fp32; `track` moves the running mean of w by 0.005."""
        with torch.autocast((z if z is not None else self.average).device.type, enabled=False):
            parts = [normalise(z)] if z is not None else []
            if self.embedding is not None:
                if classes is None:
                    raise ValueError("this network is conditional: give each image a class")
                one_hot = F.one_hot(classes, self.embedding.weight.shape[1]).float()
                parts.append(normalise(self.embedding(one_hot)))
            w = torch.cat(parts, 1)
            for layer in self.layers:
                w = scaled_leaky_relu(layer(w))
        if track:
            self.average.lerp_(w.detach().mean(0), 0.005)
        return w


class ModulatedConv(nn.Module):
    """Convolution modulated by a style, demodulated, with noise, bias and activation (Karras et al. 2020, section 2.2).

    y = act(d ⊙ (W ∗ (s ⊙ x)) + strength·noise + b), with s = A(w) and d = 1 / √(Σ (s·W)² + 1e-8) for each image and
    output channel. The gain of the equalised learning rate would cancel in d, and is left out.
    """

    fixed_noise: Tensor

    def __init__(self, inputs: int, outputs: int, latent: int, size: tuple[int, int], *, up: bool):
        super().__init__()
        self.style = EqualizedLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("fixed_noise", torch.randn(size))
        self.up = up

    def forward(self, x: Tensor, w: Tensor, noise: Noise = "random") -> Tensor:
        """[N, inputs, h, w], w [N, latent] → [N, outputs, h, w], or twice the size."""
        with torch.autocast(x.device.type, enabled=False):
            s = self.style(w.float())
            d = (s.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt()
        y = x * s[:, :, None, None].to(x.dtype)
        if self.up:
            y = low_pass(F.conv_transpose2d(y, self.weight.transpose(0, 1), stride=2), padding=1, gain=4.0)
        else:
            y = F.conv2d(y, self.weight, padding=1)
        # Every summand carries the activation's gain.
        y = (y * (d * ROOT2)[:, :, None, None].to(y.dtype)).add_((self.bias * ROOT2)[:, None, None].to(y.dtype))
        return leaky_relu_(self._add_noise(y, noise))

    def _add_noise(self, y: Tensor, noise: Noise) -> Tensor:
        size = (1, *y.shape[2:])
        if not isinstance(noise, str):
            sampled = torch.stack([torch.randn(size, generator=generator) for generator in noise]).to(y.device)
        elif noise == "random":
            sampled = torch.randn(len(y), *size, device=y.device)
        elif noise == "const":
            sampled = self.fixed_noise
        elif noise == "none":
            return y
        else:
            raise ValueError(f"noise must be 'random', 'const', 'none' or generators, not {noise!r}")
        return y.add_((self.strength * ROOT2 * sampled).to(y.dtype))


class ToImage(nn.Module):
    """Modulated 1×1 convolution to the image's channels, without demodulation or activation."""

    def __init__(self, inputs: int, channels: int, latent: int):
        super().__init__()
        self.style = EqualizedLinear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[N, inputs, h, w], w [N, latent] → [N, C, h, w] in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            s = self.style(w.float()) * self.gain
            # A matrix for each image: the modulated x, as large as x, need not be written down.
            y = x.float().permute(0, 2, 3, 1).flatten(1, 2) @ (self.weight[:, :, 0, 0] * s[:, None]).transpose(1, 2)
        y = (y + self.bias).view(len(x), *x.shape[2:], -1)
        result: Tensor = y.permute(0, 3, 1, 2)
        return result


class Synthesis(nn.Module):
    """g: the image grows from a learned constant, each level adding to the enlarged sum of those below (skips)."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        height, width = config.base
        self.config = config
        self.constant = nn.Parameter(torch.randn(1, config.features(0), height, width))
        self.convs, self.to_image = nn.ModuleList(), nn.ModuleList()
        for level in range(config.depth + 1):
            size = (height << level, width << level)
            below, here = config.features(max(0, level - 1)), config.features(level)
            if level:
                self.convs.append(ModulatedConv(below, here, config.latent, size, up=True))
            self.convs.append(ModulatedConv(here, here, config.latent, size, up=False))
            self.to_image.append(ToImage(here, config.channels, config.latent))

    def forward(self, ws: Tensor, noise: Noise = "random") -> Tensor:
        """Map ws [N, layers, latent] → images [N, C, H, W], cropped to the configured size; not clamped to [−1, 1]."""
        x = self.constant.expand(len(ws), -1, -1, -1)
        x = self.convs[0](x, ws[:, 0], noise)
        image = self.to_image[0](x, ws[:, 1])
        for level in range(1, len(self.to_image)):
            x = self.convs[2 * level - 1](x, ws[:, 2 * level - 1], noise)
            x = self.convs[2 * level](x, ws[:, 2 * level], noise)
            with torch.autocast(x.device.type, enabled=False):
                image = upsample(image)
            image = image + self.to_image[level](x, ws[:, 2 * level + 1])
        result: Tensor = image[:, :, : self.config.height, : self.config.width]
        return result


class Generator(nn.Module):
    """G: mapping and synthesis."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.latent, config.latent, config.classes, config.mapping_layers)
        self.synthesis = Synthesis(config)

    def forward(
        self, z: Tensor, classes: Tensor | None = None, *, truncation: float = 1.0, noise: Noise = "random"
    ) -> Tensor:
        """Map z [N, latent] and class numbers [N] → images [N, C, H, W]."""
        result: Tensor = self.synthesis(self.styles(self.mapping(z, classes), truncation), noise)
        return result

    def styles(self, w: Tensor, truncation: float = 1.0, cutoff: int | None = None) -> Tensor:
        """Expand w [N, latent] to one per layer [N, layers, latent].

        ψ < 1 pulls the first `cutoff` of them, or all, to the mean w.
        """
        ws = w[:, None].expand(-1, self.config.layers, -1)
        if truncation == 1.0:
            return ws
        pulled = self.mapping.average.lerp(ws, truncation)
        return pulled if cutoff is None else torch.cat([pulled[:, :cutoff], ws[:, cutoff:]], 1)


def mix(ws: Tensor, other: Tensor, probability: float) -> Tensor:
    """Style mixing: from a random layer on, take the other image's w (both [N, layers, latent]), with a probability.

    Sampled for each image on the device; nothing waits for it.
    """
    n, layers = ws.shape[:2]
    cutoff = torch.randint(1, layers, (n, 1), device=ws.device)
    mixed = torch.rand(n, 1, device=ws.device) < probability
    keep = (torch.arange(layers, device=ws.device) < cutoff) | ~mixed
    return torch.where(keep[:, :, None], ws, other)


class ResidualDown(nn.Module):
    """Two 3×3 convolutions, the second downsampling by 2, and a 1×1 shortcut; variance kept by √½."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = EqualizedConv2d(inputs, inputs, 3)
        self.conv2 = EqualizedConv2d(inputs, outputs, 3, down=True)
        self.shortcut = EqualizedConv2d(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] → [N, outputs, h/2, w/2]."""
        # √½ of the sum and √2 of the activations are taken by the convolutions.
        y = leaky_relu_(self.conv2(leaky_relu_(self.conv1(x, ROOT2))))
        result: Tensor = y + self.shortcut(x, 1 / ROOT2)
        return result


class DiscriminatorHead(nn.Module):
    """The discriminator's last layers: minibatch statistic, convolution, and one logit (or a projection's vector)."""

    def __init__(self, features: int, size: tuple[int, int], outputs: int, group: int):
        super().__init__()
        self.statistic: nn.Module = MinibatchStd(group)
        self.conv = EqualizedConv2d(features + 1, features, 3)
        self.dense = EqualizedLinear(features * size[0] * size[1], features)
        self.out = EqualizedLinear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] → [N, outputs], in fp32."""
        with torch.autocast(x.device.type, enabled=False):
            x = leaky_relu_(self.conv(self.statistic(x.float()), ROOT2))
            result: Tensor = self.out(scaled_leaky_relu(self.dense(x.flatten(1))))
            return result


class Discriminator(nn.Module):
    """D: one logit per image; with classes, the projection of its features onto the class (Miyato & Koyama 2018)."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        features = [config.features(level) for level in range(config.depth + 1)]
        self.from_image = EqualizedConv2d(config.channels, features[-1], 1)
        self.blocks = nn.ModuleList(ResidualDown(features[k], features[k - 1]) for k in range(config.depth, 0, -1))
        self.head = DiscriminatorHead(features[0], config.base, features[0] if config.classes else 1, config.group)
        self.mapping = Mapping(0, features[0], config.classes, config.mapping_layers) if config.classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images [N, C, H, W], class numbers [N] → logits [N] in fp32."""
        y: Tensor = self.head(self.features(images)[-1])
        if self.mapping is None:
            return y[:, 0]
        projection: Tensor = (y * self.mapping(None, classes)).sum(1) / math.sqrt(y.shape[1])
        return projection

    def features(self, images: Tensor) -> list[Tensor]:
        """The map after each block, finest first: [N, features, H/2, W/2] and smaller."""
        height, width = padded(self.config.height, self.config.width, self.config.depth)
        x = F.leaky_relu(self.from_image(pad_to(images, height, width), ROOT2), SLOPE)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def layers(self) -> Iterator[nn.Module]:
        """Its parts from the image on, as Freeze-D counts them (Mo et al. 2020)."""
        yield self.from_image
        for block in self.blocks:
            yield from block.children()
        yield self.head
        if self.mapping is not None:
            yield self.mapping
