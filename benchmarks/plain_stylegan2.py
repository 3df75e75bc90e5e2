"""StyleGAN2 as the paper writes it down, for Kizu's faster networks to be held against, in results and in time.

Written from the formulas of Karras et al., CVPR 2020, on plain PyTorch. Notable here:
- Each image has convolution weights of its own, modulated and demodulated (equations 1 and 3), and a grouped
  convolution applies them.
- Resampling is what its name says: zeros are inserted, a two-dimensional filter runs at the higher resolution, pixels
  are dropped.
- fp32, contiguous NCHW, one tensor operation per symbol. Nothing is made slow on purpose: filters run as depthwise
  convolutions, and what enlarges is a transposed convolution.
- Parameters have the names and shapes of `kizu.models.stylegan2`, so that `load_state_dict` carries weights over.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kizu.models.stylegan2 import StyleGAN2Config

SLOPE = 0.2
EPSILON = 1e-8


def activation(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the second moment."""
    return F.leaky_relu(x, SLOPE) * math.sqrt(2)


def resample(x: Tensor, before: int, after: int, *, up: int = 1, down: int = 1, gain: float = 1.0) -> Tensor:
    """Insert zeros, pad by `before` and `after`, filter by [1, 3, 3, 1] ⊗ [1, 3, 3, 1], keep every `down`-th pixel."""
    n, c, height, width = x.shape
    if up > 1:
        x = F.pad(x[:, :, :, None, :, None], (0, up - 1, 0, 0, 0, up - 1)).reshape(n, c, up * height, up * width)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype)
    kernel = torch.outer(taps, taps)
    kernel = (kernel * (gain / kernel.sum())).repeat(c, 1, 1, 1)
    x = F.conv2d(F.pad(x, (before, after, before, after)), kernel, groups=c)
    return x[:, :, ::down, ::down]


class Linear(nn.Module):
    """Fully connected, with equalised learning rate."""

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.rate, self.scale = rate, rate / math.sqrt(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] → [N, outputs]."""
        return F.linear(x, self.weight * self.scale, self.bias * self.rate)


class Conv(nn.Module):
    """Convolution with equalised learning rate; `down` filters and halves."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, down: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.kernel, self.down = kernel, down
        self.scale = 1 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] → [N, outputs, h, w], or half of it."""
        weight, pad = self.weight * self.scale, self.kernel // 2
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=pad)
        if self.kernel == 1:
            return F.conv2d(resample(x, 1, 1, down=2), weight, self.bias)
        return F.conv2d(resample(x, 1 + pad, 1 + pad), weight, self.bias, stride=2)


class ModulatedConv(nn.Module):
    """Equations 1 and 3, then noise, bias and activation."""

    fixed_noise: Tensor

    def __init__(self, inputs: int, outputs: int, latent: int, size: tuple[int, int], up: bool):
        super().__init__()
        self.style = Linear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("fixed_noise", torch.randn(size))
        self.up = up

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """[N, inputs, h, w], w [N, latent] → [N, outputs, h, w], or twice the size."""
        n, inputs, height, width = x.shape
        weight = self.weight[None] * self.style(w)[:, None, :, None, None]
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + EPSILON)
        side_by_side = x.reshape(1, n * inputs, height, width)
        if self.up:
            weight = weight.transpose(1, 2).flatten(0, 1)
            y = F.conv_transpose2d(side_by_side, weight, stride=2, groups=n)
            y = resample(y.reshape(n, -1, *y.shape[2:]), 1, 1, gain=4.0)
        else:
            y = F.conv2d(side_by_side, weight.flatten(0, 1), padding=1, groups=n).reshape(n, -1, height, width)
        if noise == "random":
            y = y + self.strength * torch.randn(n, 1, *y.shape[2:], device=y.device)
        elif noise == "const":
            y = y + self.strength * self.fixed_noise
        return activation(y + self.bias[:, None, None])


class ToImage(nn.Module):
    """Modulated 1×1 convolution, not demodulated, linear."""

    def __init__(self, inputs: int, channels: int, latent: int):
        super().__init__()
        self.style = Linear(latent, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.scale = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[N, inputs, h, w], w [N, latent] → [N, C, h, w]."""
        n, inputs, height, width = x.shape
        weight = self.weight[None] * (self.scale * self.style(w))[:, None, :, None, None]
        y = F.conv2d(x.reshape(1, n * inputs, height, width), weight.flatten(0, 1), groups=n)
        return y.reshape(n, -1, height, width) + self.bias[:, None, None]


class Mapping(nn.Module):
    """f, or the class alone (`latent` 0)."""

    average: Tensor

    def __init__(self, latent: int, outputs: int, classes: int, layers: int):
        super().__init__()
        self.classes = classes
        self.embedding = Linear(classes, outputs) if classes else None
        widths = [latent + (outputs if classes else 0)] + [outputs] * layers
        self.layers = nn.ModuleList(Linear(a, b, rate=0.01) for a, b in itertools.pairwise(widths))
        self.register_buffer("average", torch.zeros(outputs))

    def forward(self, z: Tensor | None, classes: Tensor | None, *, track: bool = False) -> Tensor:
        """z [N, latent], class numbers [N] → w [N, outputs]."""
        parts = [] if z is None else [z]
        if self.embedding is not None and classes is not None:
            parts.append(self.embedding(F.one_hot(classes, self.classes).float()))
        w = torch.cat([part * torch.rsqrt(part.square().mean(1, keepdim=True) + EPSILON) for part in parts], 1)
        for layer in self.layers:
            w = activation(layer(w))
        if track:
            self.average.copy_(0.995 * self.average + 0.005 * w.detach().mean(0))
        return w


class Synthesis(nn.Module):
    """g, with skip connections (figure 7)."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        height, width = config.base
        self.constant = nn.Parameter(torch.randn(1, config.features(0), height, width))
        self.convs, self.to_image = nn.ModuleList(), nn.ModuleList()
        for level in range(config.depth + 1):
            size, here = (height << level, width << level), config.features(level)
            if level:
                self.convs.append(ModulatedConv(config.features(level - 1), here, config.latent, size, up=True))
            self.convs.append(ModulatedConv(here, here, config.latent, size, up=False))
            self.to_image.append(ToImage(here, config.channels, config.latent))

    def forward(self, ws: Tensor, noise: str = "random") -> Tensor:
        """ws [N, layers, latent] → images [N, C, H, W]."""
        x = self.convs[0](self.constant.repeat(len(ws), 1, 1, 1), ws[:, 0], noise)
        image: Tensor = self.to_image[0](x, ws[:, 1])
        for level in range(1, len(self.to_image)):
            x = self.convs[2 * level - 1](x, ws[:, 2 * level - 1], noise)
            x = self.convs[2 * level](x, ws[:, 2 * level], noise)
            image = resample(image, 2, 1, up=2, gain=4.0) + self.to_image[level](x, ws[:, 2 * level + 1])
        return image[:, :, : self.config.height, : self.config.width]


class Generator(nn.Module):
    """G."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        self.mapping = Mapping(config.latent, config.latent, config.classes, config.mapping_layers)
        self.synthesis = Synthesis(config)

    def forward(self, z: Tensor, classes: Tensor | None = None, *, noise: str = "random") -> Tensor:
        """z [N, latent], class numbers [N] → images [N, C, H, W]."""
        images: Tensor = self.synthesis(self.styles(self.mapping(z, classes)), noise)
        return images

    def styles(self, w: Tensor) -> Tensor:
        """w [N, latent] → [N, layers, latent]."""
        return w[:, None].repeat(1, self.config.layers, 1)


class Block(nn.Module):
    """Residual block of D that halves the resolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = Conv(inputs, inputs, 3)
        self.conv2 = Conv(inputs, outputs, 3, down=True)
        self.shortcut = Conv(inputs, outputs, 1, bias=False, down=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, h, w] → [N, outputs, h/2, w/2]."""
        y = activation(self.conv2(activation(self.conv1(x))))
        shortcut: Tensor = self.shortcut(x)
        return (y + shortcut) / math.sqrt(2)


class DiscriminatorHead(nn.Module):
    """The last layers of D."""

    def __init__(self, features: int, size: tuple[int, int], outputs: int, group: int):
        super().__init__()
        self.group = group
        self.conv = Conv(features + 1, features, 3)
        self.dense = Linear(features * size[0] * size[1], features)
        self.out = Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] → [N, outputs]."""
        x = torch.cat([x, self.statistic(x)], 1)
        logits: Tensor = self.out(activation(self.dense(activation(self.conv(x)).flatten(1))))
        return logits

    def statistic(self, x: Tensor) -> Tensor:
        """Mean standard deviation within the group of each image: [N, 1, h, w]."""
        n = len(x)
        groups = math.ceil(n / self.group)
        found = [(x[k::groups].var(0, unbiased=False) + EPSILON).sqrt().mean() for k in range(groups)]
        return torch.stack([found[i % groups] for i in range(n)])[:, None, None, None].expand(n, 1, *x.shape[2:])


class Discriminator(nn.Module):
    """D, with the projection onto the class where there are classes."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        features = [config.features(level) for level in range(config.depth + 1)]
        self.from_image = Conv(config.channels, features[-1], 1)
        self.blocks = nn.ModuleList(Block(features[k], features[k - 1]) for k in range(config.depth, 0, -1))
        self.head = DiscriminatorHead(features[0], config.base, features[0] if config.classes else 1, config.group)
        self.mapping = Mapping(0, features[0], config.classes, config.mapping_layers) if config.classes else None

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        """Images [N, C, H, W], class numbers [N] → logits [N]."""
        height, width = (side << self.config.depth for side in self.config.base)
        over = (0, width - images.shape[3], 0, height - images.shape[2])
        x = activation(self.from_image(F.pad(images, over, mode="replicate")))
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(x)
        if self.mapping is None:
            return y[:, 0]
        w: Tensor = self.mapping(None, classes)
        return (y * w).sum(1) / math.sqrt(y.shape[1])

    def layers(self) -> Iterator[nn.Module]:
        """Its parts from the image on."""
        yield self.from_image
        for block in self.blocks:
            yield from block.children()
        yield self.head
        if self.mapping is not None:
            yield self.mapping
