"""Frame of the benchmarks' commands: the Typer app of one command, errors as messages, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import typer
from rich.console import Console
from rich.markup import escape

from kizu.errors import UserError
from kizu.training.study.tables import Table, rich_table


def single_command(function: Callable[..., None]) -> typer.Typer:
    """App whose only command is `function`."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(function)
    return app


def main(app: typer.Typer) -> None:
    """Run an app; a UserError becomes one message on stderr and its exit code."""
    try:
        app()
    except UserError as error:
        console = Console(stderr=True, soft_wrap=True, highlight=False)
        console.print(f"[bold red]error:[/] {escape(error.problem)}")
        if error.remedy:
            console.print(f"[bold]remedy:[/] {escape(error.remedy)}")
        sys.exit(error.exit_code)


def progress() -> Callable[[str], None]:
    """Function that prints a line of progress to stderr."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    return lambda text: console.print(text, markup=False)


def warn_if_busy(load: float, say: Callable[[str], None]) -> None:
    """Print a note where the load average of the last minute makes timings unreliable."""
    if load > 0.5:
        say(f"note: the load average is {load}; timings need a machine that does nothing else")


def check_channels(channels: int) -> Literal[1, 3]:
    """Number of channels, 1 or 3.

    Raises:
        UserError: neither grey nor RGB.
    """
    if channels not in (1, 3):
        raise UserError(f"{channels} channels are neither grey nor RGB.", "Choose --channels 1 or 3.")
    return 3 if channels == 3 else 1


def choose_device(name: str) -> Literal["cpu", "cuda"]:
    """Device for auto, cpu or cuda.

    Raises:
        UserError: an unknown device, or CUDA without a GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"There is no device '{name}'.", "Choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for, but there is no GPU that torch can use.", "Choose --device cpu.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def write_page(page: Path, text: str) -> None:
    """Write a Markdown page, its folder included."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")


def print_tables(tables: list[Table], lines: list[str]) -> None:
    """Print tables and then lines to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    for table in tables:
        console.print(rich_table(table))
    for line in lines:
        console.print(line, markup=False)


def print_json(result: dict[str, Any]) -> None:
    """Print a result to stdout as one line of JSON."""
    typer.echo(json.dumps(result, allow_nan=False))


def method_notes(docstring: str | None) -> list[str]:
    """Bullet list of a module's docstring, as lines of Markdown."""
    return ("- " + (docstring or "").partition(":\n- ")[2]).strip().splitlines()
