"""`kizu bench …`. Heavy modules are imported inside the commands."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from kizu.errors import UserError
from kizu.training.bench.scarce_cli import scarce

if TYPE_CHECKING:
    from kizu.training.bench.ganomaly import Material, Settings, Trial

RESULT_FILE = "result.json"


def bench_app() -> typer.Typer:
    """The command group."""
    group = typer.Typer(no_args_is_help=True, help="Measure Kizu against its peers, repeatably.")

    @group.callback()
    def bench() -> None:
        """A group, whatever the number of its commands."""

    group.command("ganomaly")(_ganomaly)
    group.command("gan")(_gan)
    group.command("limited")(_limited)
    group.command("scarce")(scarce)
    return group


def _ganomaly(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A manifest folder.")],
    size: Annotated[int, typer.Option(min=32, max=1024, help="Pixels of the side that both see.")] = 128,
    channels: Annotated[int, typer.Option(min=1, max=3, help="Kizu's, 1 or 3; anomalib always has 3.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 20,
    features: Annotated[int, typer.Option(min=1, help="Channels of the first convolution.")] = 32,
    latent: Annotated[int, typer.Option(min=1, help="Length of the latent.")] = 100,
    batch_size: Annotated[int, typer.Option(min=2, help="Images per update.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the split, and of the first training.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each, with seed, seed + 1, …")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="Of either; every usable core if omitted.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images for anomalib.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Of each timing of scoring.")] = 7,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Job files, logs and result.json.")] = Path(
        "var/bench/ganomaly"
    ),
    environment: Annotated[Path, typer.Option(metavar="FOLDER", help="anomalib's; made if it is not there.")] = Path(
        "var/bench/anomalib-venv"
    ),
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown report here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """Kizu's GANomaly against anomalib's: same images, split, size, width, epochs and threads, in turns.

    anomalib is installed from the package registry into an environment of its own. Let nothing else run meanwhile.
    """
    if channels not in (1, 3):
        raise UserError(f"{channels} channels are neither grey nor RGB.", "Choose --channels 1 or 3.")
    from kizu.training.bench.environment import current_environment, usable_cores
    from kizu.training.bench.ganomaly import Settings, gather, run
    from kizu.training.bench.peer import make_environment
    from kizu.training.bench.report import headline, render_markdown, rich_tables
    from kizu.training.data.manifest import Manifest

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say = lambda text: console.print(text, markup=False)  # noqa: E731 - a name for one argument
    settings = Settings(
        size=size,
        channels=3 if channels == 3 else 1,
        epochs=epochs,
        features=features,
        latent=latent,
        batch_size=batch_size,
        seed=seed,
        seeds=seeds,
        threads=threads or usable_cores(),
        workers=workers,
        device=_device(device),
        repeats=repeats,
    )
    facts = current_environment()
    if facts.load > 0.5:
        say(f"note: the load average is {facts.load}; timings need a machine that does nothing else")
    say("anomalib's environment: making it or finding it")
    python = make_environment(environment)
    say("reading images")
    manifest = Manifest.read(dataset)
    material = gather(manifest, settings, out / "pixels")
    trials = run(material, settings, python, out, say)
    result = result_of(dataset.resolve().name, material, settings, trials, facts.as_dict())
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT_FILE).write_text(json.dumps(result, allow_nan=False, indent=1), encoding="utf-8")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(render_markdown(result, _method_notes()), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    shown = Console(highlight=False)
    if not shown.is_terminal:
        shown.width = 160
    for table in rich_tables(result["figures"]):
        shown.print(table)
    for line in headline(result["figures"]):
        shown.print(line, markup=False)


def _limited(
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
        typer.Option(metavar="FILE.md", help="Write a Markdown page here, pictures in a folder beside."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """How few NG images StyleGAN2-ADA can learn from: KID against budget, with ADA, with DiffAugment, with neither."""
    from kizu.training.bench import limited

    if channels not in (1, 3):
        raise UserError(f"{channels} channels are neither grey nor RGB.", "Choose --channels 1 or 3.")
    defaults = limited.Settings()
    augment = augment or list(defaults.augment)
    if unknown := set(augment) - {"ada", "diffaugment", "none"}:
        raise UserError(f"Unknown augmentation {', '.join(sorted(unknown))}.", "Choose ada, diffaugment or none.")
    from kizu.training.bench.environment import current_environment, usable_cores
    from kizu.training.bench.limited_report import write_report
    from kizu.training.data.manifest import Manifest

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    at_once = parallel or usable_cores()
    settings = limited.Settings(
        size=size,
        crop=crop,
        channels=channels,
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
    facts = current_environment().as_dict()
    data, arms = limited.run(Manifest.read(dataset), settings, out, lambda text: console.print(text, markup=False))
    result = {
        "benchmark": "limited",
        "command": limited.command_line(dataset.resolve().name, settings),
        "environment": facts,
        "settings": dataclasses.asdict(settings),
        "facts": data,
        "arms": arms,
    }
    (out / RESULT_FILE).write_text(json.dumps(result, allow_nan=False, indent=1), encoding="utf-8")
    if report is not None:
        write_report(result, out, report)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))


def _gan(
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
    ideas: Annotated[bool, typer.Option("--ideas", help="Also put single ideas to the test.")] = False,
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown report here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """Training of Kizu's StyleGAN2 against the paper's formulas read plainly: same training, other networks, in turns.

    --size and --preset may be given several times. Needs no data. Let nothing else run meanwhile.
    """
    from kizu.models.stylegan2 import PRESETS
    from kizu.training.bench import gan, gan_report
    from kizu.training.bench.environment import current_environment, usable_cores
    from kizu.training.bench.report import rich_table

    if unknown := set(preset or ()) - set(PRESETS):
        raise UserError(f"There is no preset '{min(unknown)}'.", f"Choose from {', '.join(PRESETS)}.")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    settings = gan.Settings(
        sizes=tuple(size or [64]),
        presets=tuple(preset or ["small"]),
        batch_size=batch_size,
        steps=steps,
        threads=threads or usable_cores(),
        device=_device(device),
        channels=channels,
        compile=compile_,
        repeats=repeats,
        memory=memory,
    )
    result = gan.result_of(
        settings, current_environment().as_dict(), ideas, lambda text: console.print(text, markup=False)
    )
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(gan_report.render_markdown(result, _notes_of(gan.__doc__)), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    shown = Console(highlight=False)
    if not shown.is_terminal:
        shown.width = 160
    for sheet in gan_report.sheets(result):
        shown.print(rich_table(sheet))
    for line in gan_report.headline(result):
        shown.print(line, markup=False)


def result_of(
    name: str, material: Material, settings: Settings, trials: list[Trial], environment: dict[str, Any]
) -> dict[str, Any]:
    """Everything that is known after the run, JSON-able, without paths."""
    from kizu.training.bench.comparison import compare
    from kizu.training.data.splits import assign_splits

    splits = assign_splits(material.manifest, settings.seed)
    return {
        "benchmark": "ganomaly",
        "command": command_line(name, settings),
        "environment": environment,
        "peer_versions": next((trial.versions for trial in trials if trial.versions), {}),
        "dataset": {
            "name": name,
            "counts": splits.counts,
            "split_fingerprint": splits.fingerprint,
            "rewritten_for_anomalib": material.rewritten,
        },
        "settings": dataclasses.asdict(settings),
        "figures": compare(trials, material.labels),
        "scores": [{"arm": t.arm, "seed": t.seed, "scores": t.scores} for t in trials],
        "labels": material.labels,
    }


def command_line(name: str, settings: Settings) -> str:
    """The command that repeats the run; the data set by its name alone."""
    options = [f"--{key.replace('_', '-')} {value}" for key, value in dataclasses.asdict(settings).items()]
    return " ".join(["kizu bench ganomaly", shlex.quote(name), *options])


def _device(wanted: str) -> Literal["cpu", "cuda"]:
    import torch

    if wanted not in ("auto", "cpu", "cuda"):
        raise UserError(f"There is no device '{wanted}'.", "Choose auto, cpu or cuda.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for, but there is no GPU that torch can use.", "Choose --device cpu.")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _method_notes() -> list[str]:
    """How it was measured, in the words of the module that measures."""
    from kizu.training.bench import ganomaly

    return _notes_of(ganomaly.__doc__)


def _notes_of(docstring: str | None) -> list[str]:
    return ("- " + (docstring or "").partition(":\n- ")[2]).strip().splitlines()
