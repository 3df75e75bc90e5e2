"""Speed of training StyleGAN2: Kizu's networks against a plain reading of the paper.

    python -m benchmarks.gan --size 64 --preset small --report benchmarks/gan.md

Needs no data. Notable here:
- `gan_training` says how it is measured; `gan_ideas` tries single ideas (`--ideas`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import command, gan_report, gan_training
from benchmarks.gan_ideas import run_ideas
from benchmarks.gan_training import GanBenchmarkSettings
from kizu.errors import UserError
from kizu.models.stylegan2 import PRESETS
from kizu.training.study.environment import current_environment, usable_cores


def gan(
    size: Annotated[list[int] | None, typer.Option(min=16, max=1024, help="Pixels of the side; 64 if omitted.")] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Widths of the networks; small if omitted.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per update.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Of each, in each repeat.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="Of either; every usable core if omitted.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    channels: Annotated[int, typer.Option(min=1, max=4, help="Of the images.")] = 1,
    compile_: Annotated[bool, typer.Option("--compile", help="Compile Kizu's; on the CPU, an idea only.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Of each, in turns.")] = 5,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in processes of their own.")] = True,
    ideas: Annotated[bool, typer.Option("--ideas", help="Also measure single ideas.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown report here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """Training of Kizu's StyleGAN2 against the paper's formulas read plainly: same training, other networks, in turns.

    --size and --preset may be given several times. Needs no data. Let nothing else run meanwhile.
    """
    if unknown := set(preset or ()) - set(PRESETS):
        raise UserError(f"There is no preset '{min(unknown)}'.", f"Choose from {', '.join(PRESETS)}.")
    settings = GanBenchmarkSettings(
        sizes=tuple(size or [64]),
        presets=tuple(preset or ["small"]),
        batch_size=batch_size,
        steps=steps,
        threads=threads or usable_cores(),
        device=command.choose_device(device),
        channels=channels,
        compile=compile_,
        repeats=repeats,
        memory=memory,
    )
    result = result_of(settings, current_environment().as_dict(), ideas, command.progress())
    if report is not None:
        command.write_page(report, gan_report.render_markdown(result, command.method_notes(gan_training.__doc__)))
    if as_json:
        command.print_json(result)
    else:
        command.print_tables(gan_report.tables(result), gan_report.headline(result))


app = command.single_command(gan)


def result_of(
    settings: GanBenchmarkSettings, environment: dict[str, Any], ideas: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run everything; return the figures, JSON-able, without paths."""
    command.warn_if_busy(environment["load"], say)
    tried = [(size, preset) for size in settings.sizes for preset in settings.presets] if ideas else []
    return {
        "benchmark": "gan",
        "command": command_line(settings, ideas),
        "environment": environment,
        "settings": asdict(settings),
        "figures": gan_training.run(settings, say),
        "ideas": [entry for size, preset in tried for entry in run_ideas(settings, size, preset, say)],
    }


def command_line(settings: GanBenchmarkSettings, ideas: bool) -> str:
    """Return the command that repeats the run."""
    words = ["python -m benchmarks.gan"]
    words += [f"--size {size}" for size in settings.sizes] + [f"--preset {preset}" for preset in settings.presets]
    names = ("batch_size", "steps", "threads", "device", "channels", "repeats")
    words += [f"--{name.replace('_', '-')} {getattr(settings, name)}" for name in names]
    flags = {"--compile": settings.compile, "--no-memory": not settings.memory, "--ideas": ideas}
    return " ".join([*words, *(flag for flag, given in flags.items() if given)])


if __name__ == "__main__":
    command.main(app)
