"""Quality and speed of Kizu's GANomaly against anomalib's on one data set.

    python -m benchmarks.ganomaly data/elpv --report benchmarks/ganomaly-vs-anomalib.md

Notable here:
- `ganomaly_trials` says how the two are made comparable, and where they cannot be.
- anomalib runs in an environment and a process of its own (`anomalib_peer`).
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import command, ganomaly_report, ganomaly_trials
from benchmarks.anomalib_peer import make_environment
from benchmarks.ganomaly_figures import compare
from benchmarks.ganomaly_trials import GanomalyBenchmarkSettings, Material, Trial, gather
from kizu.training.data.manifest import Manifest
from kizu.training.data.splits import assign_splits
from kizu.training.study.environment import current_environment, usable_cores

RESULT_FILE = "result.json"


def ganomaly(
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
    settings = GanomalyBenchmarkSettings(
        size=size,
        channels=command.check_channels(channels),
        epochs=epochs,
        features=features,
        latent=latent,
        batch_size=batch_size,
        seed=seed,
        seeds=seeds,
        threads=threads or usable_cores(),
        workers=workers,
        device=command.choose_device(device),
        repeats=repeats,
    )
    result = measure(dataset, settings, environment, out)
    if report is not None:
        notes = command.method_notes(ganomaly_trials.__doc__)
        command.write_page(report, ganomaly_report.render_markdown(result, notes))
    if as_json:
        command.print_json(result)
    else:
        command.print_tables(ganomaly_report.tables(result["figures"]), ganomaly_report.headline(result["figures"]))


app = command.single_command(ganomaly)


def measure(dataset: Path, settings: GanomalyBenchmarkSettings, environment: Path, out: Path) -> dict[str, Any]:
    """Run everything, and write `result.json` into `out`; the result, JSON-able, without paths.

    Args:
        environment: folder of anomalib's environment; made if it is not there.
    """
    say, facts = command.progress(), current_environment()
    command.warn_if_busy(facts.load, say)
    say("anomalib's environment: making it or finding it")
    python = make_environment(environment)
    say("reading images")
    material = gather(Manifest.read(dataset), settings, out / "pixels")
    trials = ganomaly_trials.run(material, settings, python, out, say)
    result = result_of(dataset.resolve().name, material, settings, trials, facts.as_dict())
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT_FILE).write_text(json.dumps(result, allow_nan=False, indent=1), encoding="utf-8")
    return result


def result_of(
    name: str,
    material: Material,
    settings: GanomalyBenchmarkSettings,
    trials: list[Trial],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Everything that is known after the run, JSON-able, without paths."""
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


def command_line(name: str, settings: GanomalyBenchmarkSettings) -> str:
    """Return the command that repeats the run; the data set by its name alone."""
    options = [f"--{key.replace('_', '-')} {value}" for key, value in dataclasses.asdict(settings).items()]
    return " ".join(["python -m benchmarks.ganomaly", shlex.quote(name), *options])


if __name__ == "__main__":
    command.main(app)
