"""StyleGAN2-ADA on few NG images: KID against budget, with ADA, with DiffAugment, with neither.

    python -m benchmarks.limited data/deeppcb --report benchmarks/limited-data.md

Notable here:
- `limited_arms` trains and measures; `limited_gap` compares; `limited_report` writes the page and its pictures.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import command, limited_arms
from benchmarks.limited_arms import LimitedSettings
from benchmarks.limited_report import write_report
from kizu.errors import UserError
from kizu.training.data.manifest import Manifest
from kizu.training.study.environment import current_environment, usable_cores

RESULT_FILE = "result.json"


def limited(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A manifest folder whose NG have boxes or masks.")],
    size: Annotated[int, typer.Option(min=32, max=1024, help="Pixels of the crops' side.")] = 32,
    crop: Annotated[int, typer.Option(min=16, help="Source pixels of the crops' side.")] = 64,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 or 3.")] = 1,
    preset: Annotated[str, typer.Option(help="Of the networks.")] = "demo",
    kimg: Annotated[float, typer.Option(help="Thousands of real images shown to each discriminator.")] = 80.0,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per update.")] = 16,
    ada_kimg: Annotated[float, typer.Option(help="Thousands of images in which p may go from 0 to 1.")] = 100.0,
    r1: Annotated[float, typer.Option(min=0.0, help="γ of R1.")] = 0.2,
    measurements: Annotated[int, typer.Option(min=1, help="Points of each curve.")] = 8,
    count: Annotated[
        list[int] | None,
        typer.Option(help="Training crops of an arm, 0 for all; several times. Left out: 100, 500, 0."),
    ] = None,
    augment: Annotated[
        list[str] | None, typer.Option(help="ada, diffaugment or none; several times. Left out: each.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each arm, with seed 0, 1, …")] = 1,
    parallel: Annotated[int | None, typer.Option(min=1, help="Arms at a time; one per usable core if omitted.")] = None,
    inception: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Inception weights for KID and FID; else features learned here.")
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Arms, pictures and result.json; arms that are done stay.")
    ] = Path("var/bench/limited"),
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.md", help="Write a Markdown page here, its pictures in a folder of its name."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """How few NG images StyleGAN2-ADA can learn from: KID against budget, with ADA, with DiffAugment, with neither."""
    defaults = LimitedSettings()
    augment = augment or list(defaults.augment)
    if unknown := set(augment) - {"ada", "diffaugment", "none"}:
        raise UserError(f"Unknown augmentation {', '.join(sorted(unknown))}.", "Choose ada, diffaugment or none.")
    at_once = parallel or usable_cores()
    settings = LimitedSettings(
        size=size,
        crop=crop,
        channels=command.check_channels(channels),
        preset=preset,
        kimg=kimg,
        batch_size=batch_size,
        ada_kimg=ada_kimg,
        r1=r1,
        measurements=measurements,
        counts=tuple(count or defaults.counts),
        augment=tuple(augment),
        seeds=tuple(range(seeds)),
        threads=max(1, usable_cores() // at_once),
        parallel=at_once,
        inception=str(inception) if inception else None,
    )
    result = measure(dataset, settings, out)
    if report is not None:
        write_report(result, out, report)
    if as_json:
        command.print_json(result)


app = command.single_command(limited)


def measure(dataset: Path, settings: LimitedSettings, out: Path) -> dict[str, Any]:
    """Run all arms, and write `result.json` into `out`; the result, JSON-able."""
    environment = current_environment().as_dict()
    facts, arms = limited_arms.run(Manifest.read(dataset), settings, out, command.progress())
    result = {
        "benchmark": "limited",
        "command": limited_arms.command_line(dataset.resolve().name, settings),
        "environment": environment,
        "settings": dataclasses.asdict(settings),
        "facts": facts,
        "arms": arms,
    }
    (out / RESULT_FILE).write_text(json.dumps(result, allow_nan=False, indent=1), encoding="utf-8")
    return result


if __name__ == "__main__":
    command.main(app)
