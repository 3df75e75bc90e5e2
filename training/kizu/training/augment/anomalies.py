"""Synthetic anomalies: regions of an OK image that are replaced by an altered piece of another.

Zavrtanik, Kristan & Skočaj, "DRAEM – A discriminatively trained reconstruction embedding for surface anomaly
detection", ICCV 2021, section 3.3, without its collection of textures: other OK images, strongly altered, stand in.

Notable here:
- Regions are thresholded Perlin noise, or strokes, spots and rectangles, which reach down to single pixels.
- The mask says what was changed, not what was meant to be: where a filling looks like the image, nothing is.
- Half of the edges are softened, as lenses do; otherwise hard edges would give synthetic anomalies away.
- No loop over images; all random numbers come from torch's global generators, which checkpoints keep.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FINEST = 4.0
"""Shortest period of the noise in pixels; what exceeds the threshold is about half as wide."""
THRESHOLD = 0.5
"""Of noise in [−1, 1] (the authors' value)."""
OPACITY = (0.1, 1.0)
"""Range of β in equation 3."""
VISIBLE = 0.05
"""Least change of a pixel, of the range [−1, 1], averaged over channels, that makes it part of an anomaly."""
MOST_SHAPES = 3


def perlin_noise(
    count: int, height: int, width: int, *, finest: float = FINEST, device: torch.device | str = "cpu"
) -> Tensor:
    """Perlin noise [count, height, width] in [−1, 1] (Perlin, "An image synthesizer", 1985; fade of 2002).

    Each image has a frequency per axis, a power of two of periods a side from 1 to a period of `finest` pixels, and is
    turned by an angle of its own and moved by a part of a period.
    """
    across, down = _turned(count, height, width, device)
    frequencies = [_powers_of_two(count, side, finest, device) for side in (width, height)]
    x = across * (frequencies[0] / width)[:, None, None] + torch.rand(count, 1, 1, device=device)
    y = down * (frequencies[1] / height)[:, None, None] + torch.rand(count, 1, 1, device=device)
    cells = 2 * _next_power_of_two(max(height, width) * math.sqrt(2) / finest)
    angles = torch.rand(count, cells * cells, device=device) * (2 * math.pi)
    gradient_x, gradient_y = angles.cos(), angles.sin()
    left, top = x.floor(), y.floor()
    x, y = x - left, y - top

    def corner(right: int, low: int) -> Tensor:
        at = (top.long() + low).remainder(cells) * cells + (left.long() + right).remainder(cells)
        slope_x, slope_y = (gradient.gather(1, at.flatten(1)).view_as(x) for gradient in (gradient_x, gradient_y))
        return slope_x * (x - right) + slope_y * (y - low)

    fade_x, fade_y = _fade(x), _fade(y)
    upper = torch.lerp(corner(0, 0), corner(1, 0), fade_x)
    lower = torch.lerp(corner(0, 1), corner(1, 1), fade_x)
    return torch.lerp(upper, lower, fade_y) * math.sqrt(2)


def perlin_anomalies(
    images: Tensor,
    sources: Tensor,
    *,
    shapes: float = 0.5,
    threshold: float = THRESHOLD,
    opacity: tuple[float, float] = OPACITY,
    finest: float = FINEST,
    visible: float = VISIBLE,
) -> tuple[Tensor, Tensor]:
    """An anomaly in each image (equation 3): (1 − M)·I + M·((1 − β)·I + β·A), with A an altered source.

    Args:
        images: [N, C, H, W] in [−1, 1]; which of them stay clean is the caller's choice.
        sources: what anomalies are filled with, of the same shape and range: other OK images.
        shapes: share of images whose regions are strokes, spots and rectangles; the others' are Perlin noise.
        threshold: of the noise in [−1, 1]; lower in images whose noise does not reach it.
        opacity: range of β, one for each image.
        finest: shortest period of the noise in pixels.
        visible: least change of a pixel, averaged over channels.

    Returns:
        images [N, C, H, W] in [−1, 1], and masks [N, 1, H, W], 1 where a pixel was changed and 0 elsewhere. An image
        whose anomaly would not be visible at all keeps every pixel, and has an empty mask.
    """
    count, _, height, width = images.shape
    device = images.device
    noise = perlin_noise(count, height, width, finest=finest, device=device)
    low, high = noise.amin((1, 2), keepdim=True), noise.amax((1, 2), keepdim=True)
    region = noise > torch.lerp(low, high, 0.9).clamp(max=threshold)
    shaped = local_shapes(count, height, width, device=device)
    region = torch.where(_chosen(count, shapes, device)[:, None, None], shaped, region)
    alpha = _softened(region[:, None].to(images.dtype), _chosen(count, 0.5, device))
    beta = opacity[0] + (opacity[1] - opacity[0]) * torch.rand(count, 1, 1, 1, device=device)
    changed = torch.lerp(images, altered(sources), alpha * beta).clamp(-1, 1)
    mask = (changed - images).abs().mean(1, keepdim=True) >= visible
    return torch.where(mask, changed, images), mask.to(images.dtype)


def local_shapes(count: int, height: int, width: int, *, device: torch.device | str = "cpu") -> Tensor:
    """One to three strokes, spots or rectangles an image, from one pixel to a quarter of the side: bool [count, H, W].

    A stroke is thin and may be bent; spots are ellipses. Each is turned by an angle of its own.
    """
    side = min(height, width)
    each = (count, MOST_SHAPES, 1, 1)

    def uniform() -> Tensor:
        return torch.rand(each, device=device)

    def log_uniform(low: float, high: float) -> Tensor:
        return torch.exp(math.log(low) + uniform() * math.log(high / low))

    column, row = torch.arange(width, device=device), torch.arange(height, device=device)[:, None]
    x, y = column - (uniform() * width).floor(), row - (uniform() * height).floor()
    angle = uniform() * math.pi
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    long, wide = log_uniform(0.75, side / 8), log_uniform(0.75, side / 8)
    length, thickness = log_uniform(1.5, side / 4), log_uniform(0.5, max(1.0, side / 40))
    bend = (uniform() - 0.5) / length
    spot = (along / long).square() + (across / wide).square() <= 1
    rectangle = (along.abs() <= long) & (across.abs() <= wide)
    stroke = (along.abs() <= length) & ((across + bend * along.square()).abs() <= thickness)
    kind = uniform() * 3
    shape = torch.where(kind < 1, spot, torch.where(kind < 2, rectangle, stroke))
    number = torch.randint(1, MOST_SHAPES + 1, (count, 1, 1, 1), device=device)
    there = torch.arange(MOST_SHAPES, device=device)[:, None, None] < number
    return (shape & there).any(1)


def altered(images: Tensor) -> Tensor:
    """Images [N, C, H, W] in [−1, 1], each most likely beyond recognition in its own way, in the same range.

    A random choice of shuffled blocks, shift, mirroring, inversion, posterisation, contrast, brightness, gain of each
    channel and noise; a third are flat instead, of a random colour or of one that the image has.
    """
    count, channels, device = len(images), images.shape[1], images.device
    flat = _flat(images)
    x = _rearranged(images)

    def where(share: float, then: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(_chosen(count, share, device)[:, None, None, None], then, otherwise)

    def uniform(low: float, high: float, of_channel: bool = False) -> Tensor:
        return low + (high - low) * torch.rand(count, channels if of_channel else 1, 1, 1, device=device)

    x = where(0.4, -x, x)
    levels = torch.randint(1, 5, (count, 1, 1, 1), device=device)
    x = where(0.3, ((x + 1) / 2 * levels).round() / levels * 2 - 1, x)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = where(0.5, torch.lerp(mean, x, uniform(0.3, 2.0)) + uniform(-0.6, 0.6), x)
    if channels > 1:
        x = where(0.5, (x + 1) * uniform(0.5, 1.5, of_channel=True) - 1, x)
    x = where(1 / 3, flat, x)
    x = where(0.4, x + uniform(0.0, 0.4) * torch.randn_like(x), x)
    return x.clamp(-1, 1)


def _flat(images: Tensor) -> Tensor:
    """Fill each with one colour: any, or one of the image's own."""
    count, channels, height, width = images.shape
    at = torch.randint(0, height * width, (count, 1, 1), device=images.device).expand(-1, channels, -1)
    own = images.flatten(2).gather(2, at)[..., None]
    free = torch.rand(count, channels, 1, 1, device=images.device) * 2 - 1
    return torch.where(_chosen(count, 0.5, images.device)[:, None, None, None], own, free).expand_as(images)


def _rearranged(images: Tensor) -> Tensor:
    """Blocks shuffled in half of the images, then all moved around their edges and mirrored at random."""
    count, channels, height, width = images.shape
    device = images.device
    column = _mirrored(torch.arange(width, device=device), count)[:, None, :]
    row = _mirrored(torch.arange(height, device=device), count)[:, :, None]
    blocks = torch.randint(1, 3, (count, 1, 1), device=device) * 2
    tall, wide = (height + blocks - 1) // blocks, (width + blocks - 1) // blocks
    numbers = torch.arange(16, device=device).expand(count, -1)
    # Sorted by random keys in which those beyond an image's last block come last.
    order = (torch.rand(count, 16, device=device) + (numbers >= blocks[:, :, 0].square())).argsort(1)
    order = torch.where(_chosen(count, 0.5, device)[:, None], order, numbers)
    block = order.gather(1, (row // tall * blocks + column // wide).flatten(1)).view(count, height, width)
    down = (block // blocks * tall + row % tall).clamp(max=height - 1)
    across = (block % blocks * wide + column % wide).clamp(max=width - 1)
    at = (down * width + across).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, at).view_as(images)


def _mirrored(positions: Tensor, count: int) -> Tensor:
    """Positions 0 … L − 1, moved around by a random distance and reversed in half of `count` cases: [count, L]."""
    length, device = len(positions), positions.device
    moved = (positions + torch.randint(0, length, (count, 1), device=device)) % length
    return torch.where(_chosen(count, 0.5, device)[:, None], length - 1 - moved, moved)


def _softened(alpha: Tensor, chosen: Tensor) -> Tensor:
    """[1, 2, 1] / 4 along both axes, over the chosen of [N, 1, H, W]."""
    around = F.pad(alpha, (1, 1, 1, 1), mode="replicate")
    rows = (around[:, :, :-2] + 2 * around[:, :, 1:-1] + around[:, :, 2:]) / 4
    soft = (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    return torch.where(chosen[:, None, None, None], soft, alpha)


def _turned(count: int, height: int, width: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Pixel coordinates about the centre, turned by a random angle for each image: two of [count, height, width]."""
    x = (torch.arange(width, device=device) - (width - 1) / 2)[None, None, :]
    y = (torch.arange(height, device=device) - (height - 1) / 2)[None, :, None]
    angle = torch.rand(count, 1, 1, device=device) * (2 * math.pi)
    return x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos()


def _powers_of_two(count: int, side: int, finest: float, device: torch.device | str) -> Tensor:
    most = int(math.log2(max(1.0, side / finest)))
    return 2.0 ** torch.randint(0, most + 1, (count,), device=device)


def _next_power_of_two(value: float) -> int:
    return 1 << max(0, math.ceil(math.log2(value)))


def _fade(t: Tensor) -> Tensor:
    return t * t * t * (t * (t * 6 - 15) + 10)


def _chosen(count: int, share: float, device: torch.device | str) -> Tensor:
    return torch.rand(count, device=device) < share
