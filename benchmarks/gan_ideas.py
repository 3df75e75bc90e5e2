"""Ideas for a fast StyleGAN2, each put to the test alone: what Kizu does against what it might do instead.

Notable here:
- Shapes are those of the finest level. Each trial is forward and backward unless it says otherwise.
- All ways of one idea take turns, repeat by repeat; the ratio is taken within a repeat, against Kizu's way (`kept`).
- What does the same must give the same: ways that are meant to agree are checked to, before they are timed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import plain_stylegan2 as plain
from benchmarks.gan_training import GanBenchmarkSettings, shape_of, spread, using_threads
from kizu.models.layers import EqualizedConv2d, leaky_relu_, low_pass, scaled_leaky_relu
from kizu.models.stylegan2 import Discriminator, Generator, ModulatedConv, ToImage

Way = Callable[[], Tensor]
ROOT2 = 2**0.5


@dataclass(frozen=True)
class Idea:
    """Ways of doing one thing; Kizu's is the first."""

    name: str
    ways: dict[str, Way]
    agree: bool = True
    """All ways give the same result."""


def run_ideas(
    settings: GanBenchmarkSettings, size: int, preset: str, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Timings of every idea, JSON-able."""
    with using_threads(settings.threads):
        found = []
        for idea in ideas(settings, size, preset):
            say(f"idea: {idea.name}")
            found += try_out(idea, settings, size, preset)
        return found


def try_out(idea: Idea, settings: GanBenchmarkSettings, size: int, preset: str) -> list[dict[str, Any]]:
    """One entry for each way but the first.

    Raises:
        ArithmeticError: ways that should give the same do not.
    """
    results = {name: way().detach().float() for name, way in idea.ways.items()}
    kept, *others = idea.ways
    for name in others if idea.agree else ():
        if not torch.allclose(results[kept], results[name], rtol=1e-3, atol=1e-4):
            raise ArithmeticError(f"{idea.name}: {name} gives other results than {kept}")
    del results
    seconds: dict[str, list[float]] = {name: [] for name in idea.ways}
    for repeat in range(settings.repeats):
        for name in idea.ways if repeat % 2 == 0 else reversed(idea.ways):
            seconds[name].append(_timed(idea.ways[name], settings.device))
    return [
        {
            "size": size,
            "preset": preset,
            "idea": idea.name,
            "kept": kept,
            "instead": name,
            "kept_ms": 1000 * statistics.median(seconds[kept]),
            "instead_ms": 1000 * statistics.median(seconds[name]),
            "ratio": spread([a / b for a, b in zip(seconds[name], seconds[kept], strict=True)]),
        }
        for name in others
    ]


def ideas(settings: GanBenchmarkSettings, size: int, preset: str) -> Iterator[Idea]:
    """All ideas, made one at a time."""
    shape = shape_of(settings, size, preset)
    device, n = torch.device(settings.device), settings.batch_size
    channels = shape.features(shape.depth)
    torch.manual_seed(0)
    x = _leaf(n, channels, size, size, device=device)
    w = torch.randn(n, shape.latent, device=device)
    yield _demodulation(x, w, channels, (size, size))
    yield _filters(x)
    yield _filters_twice(x)
    yield _tails(x, w[:, :1])
    yield _to_image(x, w, settings.channels)
    del x
    yield from _whole_networks(settings, size, preset, device)


def _demodulation(x: Tensor, w: Tensor, channels: int, size: tuple[int, int]) -> Idea:
    ours = ModulatedConv(channels, channels, w.shape[1], size, up=False).to(x.device)
    theirs = plain.ModulatedConv(channels, channels, w.shape[1], size, up=False).to(x.device)
    theirs.load_state_dict(ours.state_dict())
    rows = x.detach().contiguous().requires_grad_(True)
    in_rows = _copy(ours, torch.contiguous_format)
    ours.to(memory_format=torch.channels_last)
    return Idea(
        "modulated convolution",
        {
            "input and output scaled, channels last": _both_ways(lambda: ours(x, w, "none"), [x, *_weights(ours)]),
            "input and output scaled, NCHW": _both_ways(lambda: in_rows(rows, w, "none"), [rows, *_weights(in_rows)]),
            "weights per image, grouped convolution": _both_ways(
                lambda: theirs(rows, w, "none"), [rows, *_weights(theirs)]
            ),
        },
    )


def _filters(x: Tensor) -> Idea:
    rows = x.detach().contiguous().requires_grad_(True)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
    c = x.shape[1]
    upright, level = taps.view(1, 1, 4, 1).expand(c, 1, 4, 1), taps.view(1, 1, 1, 4).expand(c, 1, 1, 4)

    def separable() -> Tensor:
        return F.conv2d(F.conv2d(x, upright, padding=(2, 0), groups=c), level, padding=(0, 2), groups=c)

    def slices() -> Tensor:
        y = F.pad(x, (2, 2, 2, 2))
        h, v = y.shape[3] - 3, y.shape[2] - 3
        y = y[..., :h] + y[..., 3:] + 3 * (y[..., 1 : 1 + h] + y[..., 2 : 2 + h])
        return (y[:, :, :v] + y[:, :, 3:] + 3 * (y[:, :, 1 : 1 + v] + y[:, :, 2 : 2 + v])) / 64

    return Idea(
        "low-pass filter",
        {
            "depthwise, channels last": _both_ways(lambda: low_pass(x, padding=2), [x]),
            "separable depthwise, channels last": _both_ways(separable, [x]),
            "sums of slices, channels last": _both_ways(slices, [x]),
            "depthwise, NCHW": _both_ways(lambda: low_pass(rows, padding=2), [rows]),
        },
    )


def _filters_twice(x: Tensor) -> Idea:
    """Gradient of the squared gradient of a layer's output, as R1 needs it."""
    weight = torch.randn(1, x.shape[1], 1, 1, device=x.device, requires_grad=True)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 4, 4)

    def penalty(filtered: Callable[[Tensor], Tensor]) -> Way:
        def way() -> Tensor:
            (slope,) = torch.autograd.grad((filtered(x * weight).square()).sum(), x, create_graph=True)
            return torch.autograd.grad(slope.square().mean(), weight)[0]

        return way

    return Idea(
        "low-pass filter, differentiated twice",
        {
            "a function that knows its transpose": penalty(lambda y: low_pass(y, padding=2)),
            "autograd's convolution": penalty(lambda y: F.conv2d(y, kernel, padding=2, groups=y.shape[1])),
        },
    )


def _tails(x: Tensor, d: Tensor) -> Idea:
    """Operations that follow a modulated convolution."""
    scale, bias = d[:, :, None, None].abs(), _leaf(x.shape[1], 1, 1, device=x.device)
    noise = torch.randn(len(x), 1, *x.shape[2:], device=x.device)
    return Idea(
        "demodulation, bias, noise, activation",
        {
            "√2 within the summands, in place": _both_ways(
                lambda: leaky_relu_((x * (scale * ROOT2)).add_(bias * ROOT2).add_(noise * ROOT2)), [x, bias]
            ),
            "one after another": _both_ways(lambda: scaled_leaky_relu(x * scale + noise + bias), [x, bias]),
        },
    )


def _to_image(x: Tensor, w: Tensor, channels: int) -> Idea:
    ours = ToImage(x.shape[1], channels, w.shape[1]).to(x.device)

    def scaled() -> Tensor:
        s = ours.style(w) * ours.gain
        return F.conv2d(x * s[:, :, None, None], ours.weight, ours.bias)

    leaves = [x, *_weights(ours)]
    return Idea(
        "modulated 1×1 convolution to the image",
        {
            "a matrix per image": _both_ways(lambda: ours(x, w), leaves),
            "scaled input, convolution": _both_ways(scaled, leaves),
        },
    )


def _whole_networks(settings: GanBenchmarkSettings, size: int, preset: str, device: torch.device) -> Iterator[Idea]:
    shape, n = shape_of(settings, size, preset), settings.batch_size
    generator, discriminator = Generator(shape).to(device), Discriminator(shape).to(device)
    for network in (generator, discriminator):
        network.to(memory_format=torch.channels_last)
    images, more = torch.randn(2, n, settings.channels, size, size, device=device)
    z = torch.randn(n, shape.latent, device=device)
    d_weights, g_weights = _weights(discriminator), _weights(generator)

    two = _both_ways(lambda: torch.stack([discriminator(images), discriminator(more)]), d_weights)
    together = torch.cat([images, more])
    yield Idea(
        "discriminator on reals and fakes",
        {"two calls": two, "one call": _both_ways(lambda: discriminator(together).view(2, -1), d_weights)},
        agree=False,  # groups of the minibatch statistic are others
    )
    # The 1×1 convolutions give channels last whatever they get, so the convolution is tried by itself.
    channels = shape.features(shape.depth)
    x, conv = _leaf(n, channels, size, size, device=device), EqualizedConv2d(channels, channels, 3).to(device)
    rows, in_rows = x.detach().contiguous().requires_grad_(True), _copy(conv, torch.contiguous_format)
    conv.to(memory_format=torch.channels_last)
    yield Idea(
        "3×3 convolution and activation",
        {
            "channels last": _both_ways(lambda: leaky_relu_(conv(x)), [x, *_weights(conv)]),
            "NCHW": _both_ways(lambda: leaky_relu_(in_rows(rows)), [rows, *_weights(in_rows)]),
        },
    )

    def without_graph() -> Tensor:
        with torch.no_grad():
            made: Tensor = generator(z, noise="const")
        return made

    fakes: dict[str, Way] = {"no_grad": without_graph, "with graph, detached": lambda: generator(z, noise="const")}
    yield Idea("fakes for the discriminator, forward only", fakes)

    def half() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            logits: Tensor = discriminator(generator(z, noise="const"))
        return logits

    g = _both_ways(lambda: discriminator(generator(z, noise="const")), g_weights)
    yield Idea("precision of a generator step", {"float32": g, "bfloat16 autocast": _both_ways(half, g_weights)}, False)
    if settings.compile:
        d = _both_ways(lambda: discriminator(images), d_weights)
        compiled: Callable[..., Tensor] = torch.compile(discriminator)
        yield Idea(
            "discriminator through torch.compile",
            {"eager": d, "compiled": _both_ways(lambda: compiled(images), d_weights)},
        )


def _leaf(*size: int, device: torch.device) -> Tensor:
    """Random, requiring a gradient; channels last where there are channels."""
    x = torch.randn(size, device=device)
    return (x.contiguous(memory_format=torch.channels_last) if len(size) == 4 else x).requires_grad_(True)


def _copy(network: nn.Module, memory: torch.memory_format) -> Any:
    return copy.deepcopy(network).to(memory_format=memory)


def _weights(network: nn.Module) -> list[Tensor]:
    return list(network.parameters())


def _both_ways(forward: Way, leaves: Sequence[Tensor]) -> Way:
    def way() -> Tensor:
        y = forward()
        torch.autograd.grad(y.float().square().mean(), leaves, allow_unused=True)
        return y

    return way


def _timed(way: Way, device: str) -> float:
    _synchronise(device)
    began = time.perf_counter()
    way()
    _synchronise(device)
    return time.perf_counter() - began


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
