"""Training of Kizu's StyleGAN2 and of a plain reading of the paper (`plain_stylegan2`): same training, other networks.

How it is measured:
- Both train through the same `StyleGAN2ADAMethod` and `TrainingLoop`, with the same weights at the start, losses,
  phases, ADA, optimisers, batches and precision (float32 on the CPU, bfloat16 autocast on CUDA, for both).
- In turns, in one process: each repeat trains one a few steps and then the other, every other repeat in reverse order.
  One round of each is not counted. The ratio is taken within a repeat; median and range are over repeats.
- A repeat begins with a step in which every phase runs. Seconds per step are each phase's mean, weighted by how often
  it runs (path length in every 4th step, R1 in every 16th), and what is outside of phases (averages, control points).
- Images are real images shown to the discriminator; 1 kimg is 1000 of them. p of ADA is 0.2, so that augmentation has
  something to do; it costs the same at any p. The pixels are noise, which no time depends on.
- Memory: one step with every phase, in a process of its own for each: the highest resident set on the CPU, everything
  included (`before` is that of the process with the networks made), or what torch allocated on CUDA.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch

from benchmarks import plain_stylegan2 as plain
from kizu.models.stylegan2 import PRESETS, Discriminator, Generator, StyleGAN2Config
from kizu.training.augment.ada import AugmentConfig
from kizu.training.data.batches import Batch, Batches
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.loop import LoopSettings, Losses, Phase, Stage, TrainingLoop
from kizu.training.progress import RunLog

KIZU, PLAIN = "Kizu", "plain"
ARMS = (KIZU, PLAIN)
REST = "rest"
IMAGES = 256
REPOSITORY = Path(__file__).resolve().parents[1]
Memory = dict[str, float | None]
"""MiB by name; None where the system does not say."""


@dataclass(frozen=True)
class GanBenchmarkSettings:
    """Settings that both sides share."""

    sizes: tuple[int, ...] = (64,)
    presets: tuple[str, ...] = ("small",)
    batch_size: int = 16
    steps: int = 4
    """Of each, in each repeat."""
    threads: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    channels: int = 1
    compile: bool = False
    """Kizu's, on CUDA; on the CPU it adds an idea to `--ideas`."""
    repeats: int = 5
    memory: bool = True


@dataclass(frozen=True)
class Timing:
    """One repeat of one side."""

    phases: dict[str, float]
    """Seconds per step: each phase's by how often it runs, and the rest."""

    @property
    def step(self) -> float:
        """Seconds per step."""
        return sum(self.phases.values())


class PlainMethod(StyleGAN2ADAMethod):
    """The same method on the plain networks, with the weights that Kizu's would begin with."""

    def __init__(self, shape: StyleGAN2Config, *arguments: Any, **options: Any):
        super().__init__(shape, *arguments, **options)
        generator, discriminator = plain.Generator(shape), plain.Discriminator(shape)
        generator.load_state_dict(self.generator.state_dict())
        discriminator.load_state_dict(self.discriminator.state_dict())
        self.generator, self.discriminator = cast(Generator, generator), cast(Discriminator, discriminator)
        self.average = cast(Generator, copy.deepcopy(generator).eval().requires_grad_(False))
        self.networks["G"], self.networks["D"] = self.generator, self.discriminator
        self._synthesise, self._judge = generator.synthesis, discriminator


class TimedLoop(TrainingLoop):
    """Training loop that runs some steps at a time and times each phase."""

    def __init__(self, method: StyleGAN2ADAMethod, batches: Batches, folder: Path):
        settings = LoopSettings(checkpoint_seconds=math.inf)
        super().__init__(method, batches, folder, identity="bench", log=RunLog(None, quiet=True), settings=settings)
        self.stage = self.stages[0]
        self.cycle = math.lcm(*(phase.every for phase in self.stage.phases))
        self._seconds: dict[str, list[float]] = {}

    def advance(self, steps: int) -> Timing:
        """Train for some steps, the first of which has every phase."""
        self._seconds = {phase.name: [] for phase in self.stage.phases}
        self.step = -(-self.step // self.cycle) * self.cycle
        self.stage.steps = self.step + steps
        self._synchronise()
        began = time.perf_counter()
        self._run_stage(self.stage)
        self._synchronise()
        whole = time.perf_counter() - began
        weighted = {
            phase.name: statistics.mean(self._seconds[phase.name]) * phase.repeats / phase.every
            for phase in self.stage.phases
        }
        rest = whole - sum(map(sum, self._seconds.values()))
        return Timing({**weighted, REST: max(0.0, rest) / steps})

    def _update(self, phase: Phase, batch: Batch) -> Losses:
        self._synchronise()
        began = time.perf_counter()
        losses = super()._update(phase, batch)
        self._synchronise()
        self._seconds[phase.name].append(time.perf_counter() - began)
        return losses

    def _picture(self, stage: Stage) -> None:
        """Write no picture, so that none is timed."""

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def shape_of(settings: GanBenchmarkSettings, size: int, preset: str) -> StyleGAN2Config:
    """Configuration of the networks."""
    return StyleGAN2Config(size, size, settings.channels, **PRESETS[preset])


def make_loop(arm: str, settings: GanBenchmarkSettings, size: int, preset: str, folder: Path) -> TimedLoop:
    """Training loop of one side, ready to run."""
    device = torch.device(settings.device)
    torch.manual_seed(0)
    method = (StyleGAN2ADAMethod if arm == KIZU else PlainMethod)(
        shape_of(settings, size, preset),
        StyleGAN2ADAConfig(batch_size=settings.batch_size, ada_start=0.2, compile=settings.compile and arm == KIZU),
        AugmentConfig(),
        1.0,
        torch.zeros(IMAGES, dtype=torch.int64, device=device),
    )
    method.networks.to(device)
    method.average.to(device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, settings.channels, size, size), generator=generator, dtype=torch.uint8)
    return TimedLoop(method, Batches(pixels, settings.batch_size, 0, device=device), folder)


def run(settings: GanBenchmarkSettings, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Figures of every size with every preset, JSON-able."""
    with using_threads(settings.threads):
        found = []
        for size in settings.sizes:
            for preset in settings.presets:
                say(f"{size} px, {preset}: {settings.repeats} repeats of {settings.steps} steps each, in turns")
                timings = compare(settings, size, preset, say)
                memory = {arm: peak_memory(arm, settings, size, preset) for arm in ARMS} if settings.memory else {}
                found.append(figures(settings, size, preset, timings, memory))
        return found


def compare(
    settings: GanBenchmarkSettings, size: int, preset: str, say: Callable[[str], None]
) -> dict[str, list[Timing]]:
    """Timings of both sides, trained in turns."""
    timings: dict[str, list[Timing]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        loops = {arm: make_loop(arm, settings, size, preset, Path(folder)) for arm in ARMS}
        for loop in loops.values():
            loop.advance(1)
        for repeat in range(settings.repeats):
            for arm in ARMS if repeat % 2 == 0 else ARMS[::-1]:
                timings[arm].append(loops[arm].advance(settings.steps))
            ratio = timings[PLAIN][-1].step / timings[KIZU][-1].step
            say(f"    repeat {repeat + 1}: Kizu is {ratio:.2f} times as fast")
    return timings


def figures(
    settings: GanBenchmarkSettings, size: int, preset: str, timings: dict[str, list[Timing]], memory: dict[str, Memory]
) -> dict[str, Any]:
    """Medians, shares and ratios over the repeats."""
    arms = []
    for arm in ARMS:
        step = statistics.median(timing.step for timing in timings[arm])
        seconds = {name: statistics.median(t.phases[name] for t in timings[arm]) for name in timings[arm][0].phases}
        arms.append(
            {
                "arm": arm,
                "images_per_second": settings.batch_size / step,
                "seconds_per_kimg": 1000 * step / settings.batch_size,
                "seconds_per_step": [timing.step for timing in timings[arm]],
                "phase_seconds_per_step": seconds,
                "phase_shares": {name: value / sum(seconds.values()) for name, value in seconds.items()},
                "memory": memory.get(arm),
            }
        )
    ratios = [p.step / k.step for k, p in zip(timings[KIZU], timings[PLAIN], strict=True)]
    by_phase = {
        name: statistics.median(
            p.phases[name] / k.phases[name] for k, p in zip(timings[KIZU], timings[PLAIN], strict=True)
        )
        for name in timings[KIZU][0].phases
        if name != REST
    }
    return {
        "size": size,
        "preset": preset,
        "arms": arms,
        "speedup": spread(ratios),
        "speedup_by_phase": by_phase,
        "speedups": ratios,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def peak_memory(arm: str, settings: GanBenchmarkSettings, size: int, preset: str) -> Memory:
    """MiB of a step with every phase, in a process of its own: `peak`, and `before` it."""
    code = f"from {__name__} import print_memory; print_memory()"
    job = json.dumps([arm, asdict(settings), size, preset])
    command = [sys.executable, "-c", code, job]
    answer = subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=600, cwd=REPOSITORY
    )
    memory: Memory = json.loads(answer.stdout.splitlines()[-1])
    return memory


def print_memory() -> None:
    """Measure the job of the first argument and print it as JSON; `peak_memory` starts this."""
    arm, settings, size, preset = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(_measure_memory(arm, GanBenchmarkSettings(**settings), size, preset)) + "\n")


def _measure_memory(arm: str, settings: GanBenchmarkSettings, size: int, preset: str) -> Memory:
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        loop = make_loop(arm, settings, size, preset, Path(folder))
        before = _highest_mib(settings.device)
        loop.advance(1)
        return {"peak": _highest_mib(settings.device), "before": before}


def _highest_mib(device: str) -> float | None:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, without what the parent had when this process was forked off
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """Use this number of torch threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
