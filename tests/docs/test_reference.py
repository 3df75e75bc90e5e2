"""The pages' tables of settings, routes and commands are those of the code."""

import typer.main
from pydantic_core import PydanticUndefined

from kizu.cli import build_app
from kizu.service.app import create_app
from kizu.service.settings import MIB, Settings

from .tables import code, rows


def shown(name: str, value: object) -> str:
    """Return a default as the page writes it."""
    if value is None:
        return "none"
    if isinstance(value, int) and value >= MIB and name.endswith("bytes"):
        return f"{value // MIB} MiB"
    if isinstance(value, int | float):
        text = f"{value:,}" if value >= 10_000 else f"{value}"
        return text.replace(",", " ").removesuffix(".0")
    return f"`{value}`"


def test_every_setting_is_documented_with_its_default():
    documented = {code(variable)[0]: default for variable, default, _ in rows("docs/service.md", "variable")}
    defaults = {
        f"KIZU_{name.upper()}": "all cores" if field.default is PydanticUndefined else shown(name, field.default)
        for name, field in Settings.model_fields.items()
    }
    assert documented == defaults


def test_every_route_is_documented():
    documented = {code(cell)[0] for cell, _ in rows("docs/service.md", "route")}
    paths = create_app().openapi()["paths"]
    assert documented == {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def commands(group, name):
    """Yield (name, options) of every command below `group`."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", {option for parameter in command.params for option in parameter.opts[:1]}


def test_every_command_is_documented_with_its_options():
    documented = {}
    for usage, options, _ in rows("docs/cli.md", "command"):
        words = code(usage)[0].split()
        name = " ".join(word for word in words if word.islower())
        documented[name] = set(code(options))
    tree = dict(commands(typer.main.get_command(build_app()), "kizu"))
    given = {name: {option for option in options if option.startswith("-")} for name, options in tree.items()}
    assert documented == given
