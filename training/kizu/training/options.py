"""From a recipe's free options to the dataclasses that networks and methods are configured by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from kizu.errors import UserError

Config = TypeVar("Config")

_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a name"),
    "bool": ((bool,), "true or false"),
}


def preset(presets: Mapping[str, Mapping[str, Any]], name: str, what: str) -> Mapping[str, Any]:
    """The preset of this name.

    Raises:
        UserError: there is none; `what` names whose presets these are.
    """
    if name not in presets:
        raise UserError(f"Unknown preset '{name}' of {what}.", f"Known presets: {', '.join(presets)}.")
    return presets[name]


def known_options(config: type, *fixed: str) -> list[str]:
    """The fields of a configuration that a recipe may set: all but the fixed ones."""
    return sorted(f.name for f in dataclasses.fields(config) if f.name not in fixed)


def check_names(options: Mapping[str, Any], known: list[str], where: str, what: str) -> None:
    """Raise UserError for options that nobody knows."""
    if unknown := sorted(set(options) - set(known)):
        raise UserError(f"Unknown option {', '.join(unknown)} in [{where}].", f"Options of {what}: {', '.join(known)}.")


def configure(
    config: type[Config], fixed: Mapping[str, Any], options: Mapping[str, Any], where: str, least: int = 0
) -> Config:
    """A configuration with these values; options that it has no field for are left alone.

    Whole numbers must be at least `least`.

    Raises:
        UserError: a value of the wrong type, or one that the configuration refuses.
    """
    values = dict(fixed)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.name in options:
            values[field.name] = _checked(field, options[field.name], where, least)
    try:
        return config(**values)
    except ValueError as error:
        raise UserError(f"[{where}]: {error}.") from error


def _checked(field: dataclasses.Field[Any], value: Any, where: str, least: int) -> Any:
    kinds = str(field.type).split(" | ")
    accepted, spoken = _TYPES[kinds[0]]
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise UserError(f"{where}.{field.name} must be {spoken}, not {value!r}.")
    if isinstance(value, int) and kinds[0] == "int" and value < least:
        raise UserError(f"{where}.{field.name} must be at least {least}, not {value}.")
    return value
