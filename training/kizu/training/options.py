"""Options of a recipe, validated into the dataclasses that configure networks and methods.

Notable here:
- Pydantic validates; what it finds is put into the recipe's terms here, for recipes and options alike: the key with its
  place, the bound, the value given, the nearest known key.
- A family's options are the fields of its configurations, but for those that are marked as fixed.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from kizu.errors import UserError
from kizu.models.config import Fixed

Config = TypeVar("Config")
Location = tuple[int | str, ...]
Presets = Mapping[str, Mapping[str, Any]]

_TYPES: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_REQUIREMENTS = {
    "bool_type": _TYPES[bool],
    "int_type": _TYPES[int],
    "float_type": _TYPES[float],
    "string_type": _TYPES[str],
    "finite_number": "a finite number",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "greater_than": "greater than {gt:.12g}",
    "greater_than_equal": "at least {ge:.12g}",
    "less_than": "less than {lt:.12g}",
    "less_than_equal": "at most {le:.12g}",
    "literal_error": "{expected}",
    "too_short": "a list of {min_length} at least",
    "too_long": "a list of {max_length} at most",
    "string_pattern_mismatch": "a text like {pattern}",
}
"""Pydantic's type of an error → what the value must be."""
_BRANCHES = ("bool", "int", "float", "str", "constrained-int")
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")


@dataclass(frozen=True)
class OptionInfo:
    """One option of a configuration, or one key of a recipe's section."""

    name: str
    type: str
    default: Any
    """`REQUIRED` where there is none."""
    bounds: str
    """For instance `> 0, ≤ 1`; empty: none."""
    description: str


REQUIRED = object()


@dataclass(frozen=True)
class Options:
    """The options that a recipe gives, over the values of a preset.

    Args:
        where: the section that they stand in, for messages.
    """

    where: str
    given: Mapping[str, Any]
    preset: Mapping[str, Any] = field(default_factory=dict)

    def check(self, *configs: type) -> None:
        """Refuse options that none of the configurations has.

        Raises:
            UserError: names each with the nearest known one.
        """
        known = sorted(name for config in configs for name in option_names(config))
        unknown = [name for name in self.given if name not in known]
        if unknown:
            raise UserError("\n".join(unknown_key(f"{self.where}.{name}", known) for name in unknown))

    def make(self, config: type[Config], **fixed: Any) -> Config:
        """Build a configuration from its own among the options; those that it has no field for are left alone.

        Args:
            fixed: its other fields.

        Raises:
            UserError: a value of the wrong type or out of range, or values that do not go together.
        """
        values = {**self.preset, **self.given}
        chosen = {name: values[name] for name in option_names(config) if name in values}
        try:
            return config(**fixed, **chosen)
        except ValidationError as error:
            raise UserError("\n".join(explain(error, lambda _: option_names(config), self.where))) from error


def preset(presets: Presets, name: str, what: str) -> Mapping[str, Any]:
    """Return the preset of this name.

    Raises:
        UserError: there is none; `what` names whose presets these are.
    """
    if name not in presets:
        raise UserError(f"Unknown preset '{name}' of {what}.", f"Known presets: {', '.join(presets)}.")
    return presets[name]


def option_names(config: type) -> list[str]:
    """Names of the fields that a recipe may set, in order."""
    return [option.name for option in describe(config)]


def describe(config: type) -> list[OptionInfo]:
    """List the options of a configuration, or the keys of a recipe's section, in order."""
    return [_describe(config, name, info) for name, info in _fields(config).items() if not _is_fixed(info)]


def explain(error: ValidationError, known: Callable[[Location], Sequence[str]], where: str = "") -> list[str]:
    """Say in the recipe's terms what pydantic found, one line for each fault.

    Args:
        known: the names that are known at a location.
        where: key that all locations lie under; empty: none.
    """
    lines: list[str] = []
    required: dict[tuple[str, str], list[str]] = {}
    for found in error.errors():
        key, requirement = _key(found["loc"], where), _requirement(found)
        if requirement is None:
            lines.append(_sentence(found, key, known(found["loc"][:-1])))
        else:  # each branch of a union has its own: the value must meet one of them
            value = "" if isinstance(found["input"], dict) else f", not {found['input']!r}"
            required.setdefault((key, value), []).append(requirement)
    lines += [f"{key} must be {' or '.join(phrases)}{value}" for (key, value), phrases in required.items()]
    return list(dict.fromkeys(lines))


def unknown_key(key: str, known: Sequence[str]) -> str:
    """Say that a key is unknown, and which one is nearest to it."""
    nearest = difflib.get_close_matches(key.split(".")[-1], known, n=1, cutoff=0.0)
    meant = f": did you mean '{nearest[0]}'? Known here: {', '.join(known)}" if nearest else ""
    return f"unknown key '{key}'{meant}"


def _key(location: Location, where: str) -> str:
    # Branches of a union have a part of their own, named after their type.
    parts = [part for part in location if isinstance(part, str) and part not in _BRANCHES and "[" not in part]
    return ".".join([where, *parts] if where else parts)


def _sentence(error: ErrorDetails, key: str, known: Sequence[str]) -> str:
    """Describe a fault for which `_requirement` has no words."""
    if error["type"] in _UNKNOWN:
        return unknown_key(key, known)
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    return f"{key}: {message}" if key else message


def _requirement(error: ErrorDetails) -> str | None:
    """Give what the value must be, where a value is at fault."""
    phrase = _REQUIREMENTS.get(error["type"])
    return phrase and phrase.format(**error.get("ctx", {}))


def _describe(config: type, name: str, info: FieldInfo) -> OptionInfo:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = [
        f"{sign} {getattr(mark, attribute):.12g}"
        for mark in info.metadata
        for attribute, sign in signs.items()
        if hasattr(mark, attribute)
    ]
    default = REQUIRED if info.is_required() else info.get_default(call_default_factory=True)
    return OptionInfo(name, _type_text(info.annotation), default, ", ".join(bounds), _description(config, name))


def _description(config: type, name: str) -> str:
    """The field's docstring; a subclass does not inherit it with the field."""
    found = (_fields(base)[name].description for base in config.__mro__ if name in _fields(base))
    return " ".join(next((text for text in found if text), "").split())


def _fields(config: type) -> dict[str, FieldInfo]:
    return dict(getattr(config, "__pydantic_fields__", {}))


def _is_fixed(info: FieldInfo) -> bool:
    return any(isinstance(mark, Fixed) for mark in info.metadata)


def _type_text(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_type_text(part) for part in get_args(annotation) if part is not types.NoneType]
        return " or ".join(parts)
    return _TYPES.get(annotation, getattr(annotation, "__name__", str(annotation)))
