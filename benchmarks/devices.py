"""Training steps of every detector and of StyleGAN2-ADA on a device: whether they run, and their time.

    python -m benchmarks.devices --report benchmarks/devices.md

Needs no data. Notable here:
- On CUDA each method trains in float32 and under bfloat16 autocast, as `kizu train` does; generators also compiled.
- Steps are counted in whole cycles of the lazy penalties, after one cycle that is not counted. Pixels are noise, which
  no time depends on; p of ADA is 0.2. 1 kimg is a thousand images shown to the phase that sees most.
- Steps ran if all losses at the control points, one of them at the end, are finite. A method that fails has its error
  in the table; the others go on.
- Memory is what torch allocated at most, on CUDA.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import command
from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.stylegan2 import PRESETS, StyleGAN2Config
from kizu.training.augment.ada import AugmentConfig
from kizu.training.data.batches import Batches, LabelledBatches, Stratum
from kizu.training.detectors import DETECTORS, create_detector
from kizu.training.generators.stylegan2_ada import StyleGAN2ADAConfig, StyleGAN2ADAMethod
from kizu.training.loop import LoopSettings, Method, Stage, TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection
from kizu.training.study.environment import current_environment
from kizu.training.study.tables import Table, markdown_table
from kizu.training.training_set import TrainingSet

GENERATORS = (("demo", 64), ("small", 64), ("small", 128), ("paper256", 256))
"""Presets and sides that are measured."""
COLUMNS = ("method", "precision", "ms per step", "s per kimg", "peak MiB", "step")


@dataclass(frozen=True)
class DeviceBenchmarkSettings:
    """Settings of all measurements."""

    device: str
    size: int
    """Side of the detectors' images."""
    batch_size: int
    steps: int
    """At least; up to a whole cycle."""
    tiny: bool = False

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that are measured."""
        return ("fp32", "bf16") if self.device == "cuda" else ("fp32",)

    @property
    def generators(self) -> tuple[tuple[str, int], ...]:
        """Presets and sides of the generators."""
        return (("demo", 16),) if self.tiny else GENERATORS


@dataclass(frozen=True)
class Measured:
    """One stage of one method in one precision."""

    method: str
    precision: str
    step_ms: float | None
    kimg_seconds: float | None
    peak_mib: float | None
    problem: str = ""

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of the table."""
        figures = (self.step_ms, self.kimg_seconds, self.peak_mib)
        return (self.method, self.precision, *("" if x is None else f"{x:.1f}" for x in figures), self.problem or "ran")


class PreciseLoop(TrainingLoop):
    """Training loop in a chosen precision that runs some steps at a time."""

    def __init__(self, method: Method, batches: Batches, folder: Path, precision: str):
        self.bf16 = "bf16" in precision
        settings = LoopSettings(checkpoint_seconds=math.inf, patience=10**9)
        super().__init__(method, batches, folder, identity="bench", log=RunLog(None, quiet=True), settings=settings)

    def seconds(self, stage: Stage, steps: int) -> tuple[float, int]:
        """Train for some steps, up to whole cycles; return the seconds they took, and their number."""
        cycle = math.lcm(*(phase.every for phase in stage.phases))
        self.step, stage.steps = 0, cycle
        self._run_stage(stage)
        counted = -(-steps // cycle) * cycle
        self.step, stage.steps = 0, counted
        self._synchronise()
        began = time.perf_counter()
        self._run_stage(stage)
        self._synchronise()
        return time.perf_counter() - began, counted

    def _autocast(self) -> Any:
        return super()._autocast() if self.bf16 else nullcontext()

    def _picture(self, stage: Stage) -> None:
        """Write no picture, so that none is timed."""

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measured(name: str, precision: str, loop: PreciseLoop, steps: int) -> Iterator[Measured]:
    """Measure every stage."""
    cuda = loop.device.type == "cuda"
    for stage in loop.stages:
        if cuda:
            torch.cuda.reset_peak_memory_stats(loop.device)
        seconds, counted = loop.seconds(stage, steps)
        step = seconds / counted
        shown = loop.batches.batch_size * max(phase.repeats for phase in stage.phases)
        peak = torch.cuda.max_memory_allocated(loop.device) / 2**20 if cuda else None
        label = f"{name}: {stage.name}" if len(loop.stages) > 1 else name
        yield Measured(label, precision, 1000 * step, 1000 * step / shown, peak)


def attempted(name: str, precision: str, measurements: Iterator[Measured]) -> Iterator[Measured]:
    """Pass on measurements; an error becomes the last one."""
    try:
        yield from measurements
    except (RuntimeError, TypeError, ValueError, UserError) as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:100]}"
        yield Measured(name, precision, None, None, None, reason.replace("|", "/"))


def detector(kind: str, precision: str, settings: DeviceBenchmarkSettings, folder: Path) -> Iterator[Measured]:
    """Measure one kind of detector, in its default preset: its steps, or its fit where nothing trains."""
    torch.manual_seed(0)
    device = torch.device(settings.device)
    geometry = InputGeometry(height=settings.size, width=settings.size, channels=1)
    method = create_detector(geometry, DetectorSection(kind=kind, epochs=1, batch_size=settings.batch_size))
    method.networks.to(device)
    if device.type == "cuda":
        method.networks.to(memory_format=torch.channels_last)
    batches = images(settings, labelled=method.sampling is not None)
    method.prepare(TrainingSet(batches), RunLog(None, quiet=True))
    loop = PreciseLoop(method, batches, folder, precision)
    yield from measured(kind, precision, loop, settings.steps)
    began = time.perf_counter()
    method.finish(TrainingSet(loop.batches))
    if not loop.stages:
        yield Measured(f"{kind}: its fit", precision, 1000 * (time.perf_counter() - began), None, None)


def generator(
    preset: str, size: int, precision: str, settings: DeviceBenchmarkSettings, folder: Path
) -> Iterator[Measured]:
    """Measure StyleGAN2-ADA in one preset."""
    torch.manual_seed(0)
    device = torch.device(settings.device)
    config = StyleGAN2ADAConfig(
        batch_size=settings.batch_size,
        ada_start=0.2,
        compile="compiled" in precision,
        r1_every=2 if settings.tiny else 16,
        path_length_every=2 if settings.tiny else 4,
    )
    shape = StyleGAN2Config(size, size, 1, **PRESETS[preset])
    pixels = noise(settings, size)
    labels = torch.zeros(len(pixels), dtype=torch.int64, device=device)
    method = StyleGAN2ADAMethod(shape, config, AugmentConfig(), 1.0, labels)
    method.networks.to(device)
    method.average.to(device)
    loop = PreciseLoop(method, Batches(pixels, settings.batch_size, 0, device=device), folder, precision)
    yield from measured(_named(preset, size), precision, loop, settings.steps)


def _named(preset: str, size: int) -> str:
    return f"stylegan2-ada {preset}, {size} px"


def noise(settings: DeviceBenchmarkSettings, size: int | None = None) -> torch.Tensor:
    """Images of noise, two batches of them: uint8 [M, 1, size, size]."""
    side, generator = size or settings.size, torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2 * settings.batch_size, 1, side, side), dtype=torch.uint8, generator=generator)


def images(settings: DeviceBenchmarkSettings, *, labelled: bool) -> Batches:
    """Noise; labelled, half of it is NG, of which half have masks."""
    pixels = noise(settings)
    if not labelled:
        return Batches(pixels, settings.batch_size, 0, device=settings.device)
    ng = torch.arange(len(pixels)) % 2
    masks = torch.zeros(2, 1, settings.size, settings.size, dtype=torch.uint8)
    masks[1, :, : settings.size // 4] = 255
    half = settings.batch_size // 2
    return LabelledBatches(
        pixels,
        0,
        labels=ng,
        masks=masks,
        mask_of=torch.where(ng > 0, torch.arange(len(pixels)) // 2 % 2 * 2 - 1, 0),
        weights=torch.ones(len(pixels)),
        strata=[
            Stratum(torch.nonzero(ng == 0)[:, 0], settings.batch_size - half),
            Stratum(torch.nonzero(ng)[:, 0], half),
        ],
        epoch=len(pixels),
        device=settings.device,
    )


def result_of(
    settings: DeviceBenchmarkSettings, environment: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """Run everything; return the figures, JSON-able, without paths."""
    command.warn_if_busy(environment["load"], say)
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in settings.precisions:
            for kind in DETECTORS:
                found += attempted(kind, precision, detector(kind, precision, settings, Path(folder)))
                say(" ".join(found[-1].row))
        compiled = [f"{precision}, compiled" for precision in settings.precisions if settings.device == "cuda"]
        for preset, size in settings.generators:
            for precision in (*settings.precisions, *compiled):
                made = generator(preset, size, precision, settings, Path(folder))
                found += attempted(_named(preset, size), precision, made)
                say(" ".join(found[-1].row))
    return {
        "benchmark": "devices",
        "command": command_line(settings),
        "environment": environment,
        "settings": asdict(settings),
        "figures": [asdict(entry) for entry in found],
        "rows": [list(entry.row) for entry in found],
    }


def render_markdown(result: dict[str, Any]) -> str:
    """Page with the table and what it was measured on."""
    environment, settings = result["environment"], result["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    hardware = ", ".join(environment["gpus"]) if settings["device"] == "cuda" else environment["cpu"]
    lines = [
        "# Training steps on a device",
        "",
        f"{environment['date']}, {hardware}, {environment['system']}, {versions}. Batch {settings['batch_size']}; "
        f"detectors see {settings['size']}×{settings['size']} pixels.",
        "",
        f"`{result['command']}`",
        "",
        *command.method_notes(__doc__),
        "",
        *markdown_table(COLUMNS, result["rows"]),
    ]
    return "\n".join(lines) + "\n"


def command_line(settings: DeviceBenchmarkSettings) -> str:
    """Return the command that repeats the run."""
    names = ("device", "size", "batch_size", "steps")
    words = [f"--{name.replace('_', '-')} {getattr(settings, name)}" for name in names]
    return " ".join(["python -m benchmarks.devices", *words, *(["--tiny"] if settings.tiny else [])])


def devices(
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    size: Annotated[int, typer.Option(min=32, max=1024, help="Pixels of the side of detectors' images.")] = 128,
    batch_size: Annotated[int, typer.Option(min=4, help="Images per update.")] = 32,
    steps: Annotated[int, typer.Option(min=1, help="Of each, at least.")] = 16,
    tiny: Annotated[bool, typer.Option("--tiny", help="The smallest of everything: shows that it runs.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown report here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """Run and time training steps of every detector and generator preset on a device.

    Needs no data. Let nothing else run meanwhile. Fails if any step failed.
    """
    if tiny:
        size, batch_size, steps = 32, 4, 1
    settings = DeviceBenchmarkSettings(command.choose_device(device), size, batch_size, steps, tiny)
    result = result_of(settings, current_environment().as_dict(), command.progress())
    if report is not None:
        command.write_page(report, render_markdown(result))
    if as_json:
        command.print_json(result)
    else:
        command.print_tables([Table("training steps", COLUMNS, result["rows"])], [])
    if failed := [entry["method"] for entry in result["figures"] if entry["problem"]]:
        raise UserError(f"These did not run: {', '.join(failed)}.", "Their errors stand in the last column.")


app = command.single_command(devices)

if __name__ == "__main__":
    command.main(app)
