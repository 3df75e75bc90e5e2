"""`kizu bench scarce`. Heavy modules are imported inside the command."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from kizu.errors import UserError

if TYPE_CHECKING:
    from kizu.training.recipe import Recipe
    from kizu.training.study.run import Settings

RESULT_FILE = "result.json"
FOLDER = Path("var/bench/scarce")
QUICK_OK, QUICK_NG, QUICK_SEEDS = 1200, 400, 2


def bench_app() -> typer.Typer:
    """The command group."""
    group = typer.Typer(no_args_is_help=True, help="Measure on your own data.")

    @group.callback()
    def bench() -> None:
        """Keeps `scarce` a subcommand of its own while it is the only one."""

    group.command("scarce")(scarce)
    return group


def scarce(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE", help="A detector that learns from NG, and a [generator].")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings of each arm, with seed 0, 1, …; 5 if omitted.")
    ] = None,
    arm: Annotated[
        list[str] | None,
        typer.Option(help="By name, several times; table or curve: all of theirs. Both if omitted."),
    ] = None,
    share: Annotated[
        list[float] | None,
        typer.Option(help="Of the NG, for the curve; several times. Left out: 0.01, 0.02, 0.05, 0.1, 0.25, 0.5."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few arms, seeds, images and updates: ten minutes on two cores.")
    ] = False,
    most_ok: Annotated[int | None, typer.Option(min=1, help="OK images of each split; all if omitted.")] = None,
    most_ng: Annotated[int | None, typer.Option(min=1, help="NG images of each split; all if omitted.")] = None,
    ok_alone_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of detectors on OK alone, which cost more; as many updates as the rest if omitted."),
    ] = None,
    parallel: Annotated[int | None, typer.Option(min=1, help="Arms at a time; one per usable core if omitted.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each arm; the cores shared out if omitted.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help=f"Runs and result.json; what is done stays. {FOLDER} if omitted."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown page here, its plot in a folder beside.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
    names: Annotated[bool, typer.Option("--list", help="Print the arms' names, and do nothing else.")] = False,
) -> None:
    """What synthetic NG are worth where real ones are scarce: all data, half, half with synthetic NG, and a curve.

    A run that was stopped goes on: the same command again. Each arm trains its own detector, and its generator on
    its own NG; thresholds come from calibration, figures from the test split.
    """
    from kizu.training.recipe import find_dataset, read_recipe
    from kizu.training.study.arms import known_arms
    from kizu.training.study.environment import current_environment
    from kizu.training.study.figures import summary
    from kizu.training.study.findings import findings
    from kizu.training.study.report import write_report
    from kizu.training.study.run import facts_of, run

    settings = dataclasses.replace(
        _settings(quick, seeds, arm, share, most_ok, most_ng, parallel, threads, device),
        ok_alone_epochs=ok_alone_epochs,
    )
    if names:
        for known in known_arms(settings.shares):
            typer.echo(known.name)
        return
    if recipe is None:
        raise UserError("Which recipe?", "kizu bench scarce RECIPE; or --list for the arms' names.")
    wanted = read_recipe(recipe)
    dataset = find_dataset(wanted, recipe)
    if quick:
        wanted = _quickened(wanted, dataset, settings)
    folder = out or (FOLDER.with_name(f"{FOLDER.name}-quick") if quick else FOLDER)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    say = lambda text: console.print(text, markup=False)  # noqa: E731 - a name for one argument
    environment = current_environment().as_dict()
    results = run(wanted, recipe.parent, dataset, settings, folder, say)
    arms = summary(results)
    result = {
        "benchmark": "scarce",
        "command": command_line(recipe.name, settings, quick),
        "environment": environment,
        "settings": {**dataclasses.asdict(settings), "quick": quick},
        "recipe": wanted.model_dump(mode="json", exclude_unset=True) | {"dataset": dataset.resolve().name},
        "facts": facts_of(wanted, dataset, settings, folder),
        "results": results,
        "arms": arms,
    }
    (folder / RESULT_FILE).write_text(json.dumps(result, allow_nan=False, indent=1), encoding="utf-8")
    if report is not None:
        write_report(result, report)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
        return
    shown = Console(highlight=False, soft_wrap=True)
    for sentence in findings(arms):
        shown.print(f"- {sentence}", markup=False)


def command_line(name: str, settings: Settings, quick: bool) -> str:
    """The command that repeats the run; the recipe by its name alone."""
    words = ["kizu bench scarce", shlex.quote(name), *(["--quick"] if quick else [])]
    words.append(f"--seeds {len(settings.seeds)}")
    words += [f"--arm {shlex.quote(arm)}" for arm in settings.arms]
    words += [f"--share {share:g}" for share in settings.shares]
    for key in ("most_ok", "most_ng", "ok_alone_epochs", "parallel", "threads", "device"):
        if (value := getattr(settings, key)) is not None:
            words.append(f"--{key.replace('_', '-')} {value}")
    return " ".join(words)


def _settings(
    quick: bool,
    seeds: int | None,
    arms: list[str] | None,
    shares: list[float] | None,
    most_ok: int | None,
    most_ng: int | None,
    parallel: int | None,
    threads: int | None,
    device: str,
) -> Settings:
    """What was asked for; what was not, as `--quick` or as the module has it."""
    from kizu.training.study import arms as scarce_arms
    from kizu.training.study.environment import usable_cores
    from kizu.training.study.run import Settings

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"There is no device '{device}'.", "Choose auto, cpu or cuda.")
    defaults = Settings()
    chosen, fractions = tuple(arms or ()), tuple(shares or ())
    if quick:
        fractions = fractions or scarce_arms.QUICK_SHARES
        chosen = chosen or (*scarce_arms.QUICK, "curve")
        most_ok, most_ng, seeds = most_ok or QUICK_OK, most_ng or QUICK_NG, seeds or QUICK_SEEDS
    at_once = parallel or usable_cores()
    return Settings(
        seeds=tuple(range(seeds or len(defaults.seeds))),
        arms=chosen,
        shares=fractions or defaults.shares,
        most_ok=most_ok,
        most_ng=most_ng,
        threads=threads or max(1, usable_cores() // at_once),
        parallel=at_once,
        device=device,
    )


def _quickened(recipe: Recipe, dataset: Path, settings: Settings) -> Recipe:
    from kizu.training.data.manifest import Manifest
    from kizu.training.study.arms import quickened
    from kizu.training.study.run import base_splits

    return quickened(recipe, len(base_splits(Manifest.read(dataset), recipe, settings).train))
