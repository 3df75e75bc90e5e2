"""`kizu`: the commands of the installed parts, and the report of a user's error."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys

import typer
from rich.console import Console

from kizu.errors import UserError, shortened
from kizu.version import __version__

# part → (module with its `register(app)`, a package that only its extra brings)
PARTS = {"training": ("kizu.training.cli", "torch"), "service": ("kizu.service.cli", "fastapi")}


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


def build_app() -> typer.Typer:
    """Build the command tree; a part whose extra is missing is left out, and the help says how to install it."""
    missing = [part for part, needs in PARTS.items() if not all(map(_is_installed, needs))]
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Automated optical inspection where good parts are plenty and defects scarce."
        + "".join(_escaped(f" (For the {part} commands: pip install 'kizu[{part}]'.)") for part in missing),
    )

    @app.callback()
    def root(
        version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    ) -> None:
        del version

    for part, (module, _) in PARTS.items():
        if part not in missing:
            importlib.import_module(module).register(app)
    if not missing:
        importlib.import_module("kizu.demo").register(app)
    return app


def main() -> None:
    """Entry point: a UserError becomes one clear message on stderr and its exit code.

    Where it lists many things, --json prints all of them to stdout.
    """
    try:
        build_app()()
    except UserError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"[bold red]error:[/] {_escaped(error.problem)}", highlight=False)
        for line in shortened(error.details):
            console.print(f"  {_escaped(line)}", highlight=False)
        if error.remedy:
            console.print(f"[bold]remedy:[/] {_escaped(error.remedy)}", highlight=False)
        if error.details and "--json" in sys.argv:
            refused = {"error": error.problem, "remedy": error.remedy, "details": error.details}
            typer.echo(json.dumps(refused, ensure_ascii=False))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that should hold it
        return False


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
