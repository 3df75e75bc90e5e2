"""Building blocks that networks share."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kizu.models.gaussian import gaussian_blur

SLOPE = 0.2
ROOT2 = math.sqrt(2)


def pyramid_depth(height: int, width: int, base: int = 4) -> int:
    """Number of downsamplings by 2 before an image's shorter side falls under `base` pixels; at least 1."""
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
    return gaussian_blur(heatmap, max(1.0, min(heatmap.shape[2:]) / 64)).amax((1, 2, 3))


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
    """Pre-activation residual block that downsamples (`down`) or upsamples (`up`) by 2.

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
            upsampled: Tensor = y + F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")
            return upsampled
        y = F.avg_pool2d(self.conv2(F.relu(self.norm2(self.conv1(y)))), 2)
        downsampled: Tensor = y + self.shortcut(F.avg_pool2d(x, 2))
        return downsampled


class LayerNorm2d(nn.Module):
    """Layer normalisation over C, H and W of each image, with a gain and bias per channel (Ba et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] → the same shape."""
        return F.group_norm(x, 1, self.weight, self.bias)


class EqualizedLinear(nn.Module):
    """y = W x + b with weights N(0, 1) that are scaled at run time (equalised learning rate, Karras et al. 2018).

    `rate` multiplies this layer's learning rate without changing what it computes at the start.
    """

    def __init__(self, inputs: int, outputs: int, *, bias: float = 0.0, rate: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain = rate / math.sqrt(inputs)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs] → [N, outputs]."""
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class EqualizedConv2d(nn.Module):
    """Square convolution with equalised learning rate; `down` low-passes and downsamples by 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True, down: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain = 1 / math.sqrt(inputs * kernel**2)
        self.kernel, self.down = kernel, down

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """[N, inputs, h, w] → `scale` times the result [N, outputs, h, w], or [N, outputs, h/2, w/2]."""
        weight = self.weight * (self.gain * scale)
        bias = None if self.bias is None else self.bias * scale
        if self.kernel == 1:  # downsampling by 2 never looks at every other filtered pixel
            # One matrix product; where channels come last, as fast with one channel as with many.
            pixels = (downsample(x) if self.down else x).permute(0, 2, 3, 1)
            return F.linear(pixels, weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        if not self.down:
            return F.conv2d(x, weight, bias, padding=self.kernel // 2)
        return F.conv2d(low_pass(x, padding=self.kernel // 2 + 1), weight, bias, stride=2)


def scaled_leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 that keeps the second moment (gain √2)."""
    return F.leaky_relu(x, SLOPE) * ROOT2


def leaky_relu_(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2 without gain, in place; equals `scaled_leaky_relu` if x was multiplied by √2 before."""
    return F.leaky_relu_(x, SLOPE)


class _LowPass(torch.autograd.Function):
    """[1, 3, 3, 1] in both directions over each channel, taking every `stride`-th pixel, or its transpose.

    Autograd knows it as a convolution, and would differentiate twice with respect to its constant weights as well.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sizes: tuple[int, int], stride: int, padding: int, gain: float, transpose: bool
    ) -> Tensor:
        """`sizes`: height and width of the result of a transpose; `gain`: what the filter sums to."""
        ctx.arguments = (x.shape[2:], stride, padding, gain, not transpose)
        offset = torch.arange(-3, 4, 2, device=x.device, dtype=x.dtype)
        taps = (3.25 - offset.square() / 4) / 8
        kernel = (gain * taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)
        if not transpose:
            return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])
        if stride == 1:  # symmetric: its own transpose, but for the border
            return F.conv2d(x, kernel, padding=3 - padding, groups=x.shape[1])
        extra = [size - (side - 1) * stride + 2 * padding - 4 for size, side in zip(sizes, x.shape[2:], strict=True)]
        return F.conv_transpose2d(x, kernel, stride=stride, padding=padding, output_padding=extra, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """The transpose."""
        return _LowPass.apply(gradients[0], *ctx.arguments), None, None, None, None, None


def low_pass(x: Tensor, *, padding: int, gain: float = 1.0) -> Tensor:
    """Filter [N, C, h, w] by [1, 3, 3, 1] between `padding` zeros on each side: 2·padding − 3 pixels more."""
    result: Tensor = _LowPass.apply(x, (0, 0), 1, padding, gain, False)
    return result


def downsample(x: Tensor) -> Tensor:
    """Downsample by 2, low-passed by [1, 3, 3, 1]: [N, C, h, w] → [N, C, h/2, w/2]."""
    result: Tensor = _LowPass.apply(x, (0, 0), 2, 1, 1.0, False)
    return result


def upsample(x: Tensor) -> Tensor:
    """Upsample by 2, interpolated by [1, 3, 3, 1]: [N, C, h, w] → [N, C, 2h, 2w].

    The filter's gain is 4, for the zeros that it fills.
    """
    result: Tensor = _LowPass.apply(x, (2 * x.shape[2], 2 * x.shape[3]), 2, 1, 4.0, True)
    return result


class MinibatchStd(nn.Module):
    """Append one channel with the spread of the images of a group (Karras et al. 2018, section 3).

    Groups have at most `group` images; where the batch does not divide, they differ by one image in size.
    """

    def __init__(self, group: int = 4):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] → [N, C + 1, h, w], computed in fp32."""
        n = len(x)
        size = min(self.group, n)
        groups = -(-n // size)
        y = F.pad(x.float().flatten(1), (0, 0, 0, groups * size - n)).view(size, groups, -1)
        real = (torch.arange(size * groups, device=x.device) < n).view(size, groups, 1).float()
        count = real.sum(0)
        mean = y.sum(0) / count
        variance = ((y - mean).square() * real).sum(0) / count
        std = (variance + 1e-8).sqrt().mean(1)
        statistic = std.repeat(size)[:n].view(n, 1, 1, 1).expand(n, 1, *x.shape[2:])
        return torch.cat([x, statistic.to(x.dtype)], 1)
