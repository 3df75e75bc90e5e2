"""`kizu bench`: measurements on the user's own data. Heavy modules are imported inside the commands."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from kizu.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kizu.training.study.results import ArmResult, ArmSummary
    from kizu.training.study.run import Study, StudySettings

RESULT_FILE = "result.json"
FOLDER = Path("var/bench/scarce")
QUICK_OK, QUICK_NG, QUICK_SEEDS = 1200, 400, 2


def bench_app() -> typer.Typer:
    """The command group."""
    group = typer.Typer(no_args_is_help=True, help="Measure on your own data.")

    @group.callback()
    def bench() -> None:
        """Keeps `scarce` a subcommand of its own while it is the only one."""

    group.command("scarce")(_scarce)
    return group


def _scarce(
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
        Path | None,
        typer.Option(metavar="FILE.md", help="Write a Markdown page here, its plot in a folder of its name."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
    leave_out: Annotated[
        bool,
        typer.Option(
            "--leave-out",
            help="Instead: leave each class of defect out of training, and look for it; beside the memory.",
        ),
    ] = False,
    names: Annotated[bool, typer.Option("--list", help="Print the arms' names, and do nothing else.")] = False,
) -> None:
    """What synthetic NG are worth where real ones are scarce: all data, half, half with synthetic NG, and a curve.

    A run that was stopped goes on: the same command again. Each arm trains its own detector, and its generator on
    its own NG; thresholds come from calibration, figures from the test split.
    """
    from kizu.training.study.arms import known_arms
    from kizu.training.study.report import write_report
    from kizu.training.study.results import summary
    from kizu.training.study.run import run

    settings = dataclasses.replace(
        _settings(quick, seeds, arm, share, most_ok, most_ng, parallel, threads, device),
        ok_alone_epochs=ok_alone_epochs,
    )
    if names:
        for known in known_arms(settings.shares):
            typer.echo(known.label)
        return
    if recipe is None:
        raise UserError("Which recipe?", "kizu bench scarce RECIPE; or --list for the arms' names.")
    folder = out or (_folder(quick, leave_out))
    study = _study(recipe, settings, folder, quick)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if leave_out:
        _leave_out(study, recipe.name, report, as_json=as_json)
        return
    facts = _what_runs(study, recipe.name, quick)
    results = run(study, lambda text: console.print(text, markup=False))
    arms = summary(results)
    result = _result(study, facts, results, arms)
    (folder / RESULT_FILE).write_text(json.dumps(result, allow_nan=False, indent=1), encoding="utf-8")
    if report is not None:
        write_report(result, arms, report)
    if as_json:
        typer.echo(json.dumps(result, allow_nan=False))
    else:
        _print_findings(arms)


def _leave_out(study: Study, recipe_name: str, report: Path | None, *, as_json: bool) -> None:
    """Run `--leave-out`."""
    from kizu.training.study import leave_out
    from kizu.training.study.environment import current_environment, environment_lines
    from kizu.training.study.tables import rich_table

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    environment = current_environment().as_dict()
    found = leave_out.run(study, lambda text: console.print(text, markup=False))
    command = f"kizu bench scarce {shlex.quote(recipe_name)} --leave-out --seeds {len(study.settings.seeds)}"
    if report is not None:
        facts = [f"- `{command}`, {study.dataset.resolve().name}", *environment_lines(environment)]
        leave_out.write_page(found, facts, report)
    if as_json:
        result = {"benchmark": "leave-out", "command": command, "environment": environment}
        typer.echo(json.dumps({**result, "classes": leave_out.as_dicts(found)}, allow_nan=False))
        return
    shown = Console(highlight=False, soft_wrap=True)
    shown.print(rich_table(leave_out.unseen_table(found)))
    shown.print(leave_out.verdict(found), markup=False)


def command_line(name: str, settings: StudySettings, quick: bool) -> str:
    """Return the command that repeats the run; the recipe by its name alone."""
    from kizu.training.study.arms import label_of

    words = ["kizu bench scarce", shlex.quote(name), *(["--quick"] if quick else [])]
    words.append(f"--seeds {len(settings.seeds)}")
    words += [f"--arm {shlex.quote(label_of(choice))}" for choice in settings.arms]
    words += [f"--share {share:g}" for share in settings.shares]
    for key in ("most_ok", "most_ng", "ok_alone_epochs", "parallel", "threads", "device"):
        if (value := getattr(settings, key)) is not None:
            words.append(f"--{key.replace('_', '-')} {value}")
    return " ".join(words)


def _folder(quick: bool, leave_out: bool) -> Path:
    suffix = ("-leave-out" if leave_out else "") + ("-quick" if quick else "")
    return FOLDER.with_name(f"{FOLDER.name}{suffix}")


def _study(recipe: Path, settings: StudySettings, folder: Path, quick: bool) -> Study:
    from kizu.training.data.manifest import Manifest
    from kizu.training.recipe import find_dataset, read_recipe
    from kizu.training.study.recipes import quick_recipe
    from kizu.training.study.run import Study, base_splits

    wanted = read_recipe(recipe)
    dataset = find_dataset(wanted, recipe)
    if quick:
        wanted = quick_recipe(wanted, len(base_splits(Manifest.read(dataset), wanted, settings).train))
    return Study(wanted, recipe.parent, dataset, settings, folder)


def _what_runs(study: Study, recipe_name: str, quick: bool) -> dict[str, Any]:
    """Machine, command, settings and recipe, JSON-able, before the run."""
    from kizu.training.study.arms import label_of
    from kizu.training.study.environment import current_environment

    settings = study.settings
    labels = [label_of(choice) for choice in settings.arms]
    return {
        "benchmark": "scarce",
        "command": command_line(recipe_name, settings, quick),
        "environment": current_environment().as_dict(),
        "settings": {**dataclasses.asdict(settings), "arms": labels, "quick": quick},
        "recipe": study.recipe.model_dump(mode="json", exclude_unset=True) | {"dataset": study.dataset.resolve().name},
    }


def _result(
    study: Study, facts: dict[str, Any], results: Sequence[ArmResult], arms: Sequence[ArmSummary]
) -> dict[str, Any]:
    """Everything that is known after the run, JSON-able, without paths."""
    from kizu.training.study.run import facts_of

    return {
        **facts,
        "facts": facts_of(study),
        "results": [result.as_dict() for result in results],
        "arms": [found.as_dict() for found in arms],
    }


def _print_findings(arms: Sequence[ArmSummary]) -> None:
    from kizu.training.study.findings import findings_table, sentences
    from kizu.training.study.tables import rich_table

    console = Console(highlight=False, soft_wrap=True)
    table = findings_table(arms)
    if table.rows:
        if not console.is_terminal:
            console.width = 240
        console.print(rich_table(table))
    for sentence in sentences(arms):
        console.print(f"- {sentence}", markup=False)


def _settings(
    quick: bool,
    seeds: int | None,
    names: list[str] | None,
    shares: list[float] | None,
    most_ok: int | None,
    most_ng: int | None,
    parallel: int | None,
    threads: int | None,
    device: str,
) -> StudySettings:
    """The settings of the options; where one was omitted, those of `--quick` or the defaults."""
    from kizu.training.study import arms
    from kizu.training.study.environment import usable_cores
    from kizu.training.study.run import StudySettings

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"There is no device '{device}'.", "Choose auto, cpu or cuda.")
    defaults = StudySettings()
    fractions = tuple(shares or (arms.QUICK_SHARES if quick else defaults.shares))
    choices = arms.parse_choices(names or (), fractions)
    if quick:
        choices = choices or arms.QUICK
        most_ok, most_ng, seeds = most_ok or QUICK_OK, most_ng or QUICK_NG, seeds or QUICK_SEEDS
    at_once = parallel or usable_cores()
    return StudySettings(
        seeds=tuple(range(seeds or len(defaults.seeds))),
        arms=choices,
        shares=fractions,
        most_ok=most_ok,
        most_ng=most_ng,
        threads=threads or max(1, usable_cores() // at_once),
        parallel=at_once,
        device=device,
    )
