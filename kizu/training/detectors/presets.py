"""From `[detector]` to a network family's configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.recipe import DetectorSection

Config = TypeVar("Config")

_SPOKEN = {int: "a whole number", float: "a number", str: "a name"}


def configure(
    config: type[Config], presets: Mapping[str, Mapping[str, Any]], geometry: InputGeometry, section: DetectorSection
) -> Config:
    """A configuration of the family's size, with the preset's values under the recipe's options.

    Raises:
        UserError: unknown preset or option.
    """
    if section.preset not in presets:
        raise UserError(
            f"Unknown preset '{section.preset}' of detector '{section.kind}'.", f"Known presets: {', '.join(presets)}."
        )
    size = {"height": geometry.height, "width": geometry.width, "channels": geometry.channels}
    tunable = {f.name for f in dataclasses.fields(config)} - set(size)  # type: ignore[arg-type]
    if unknown := set(section.options) - tunable:
        raise UserError(
            f"Unknown option {', '.join(sorted(unknown))} in [detector.options].",
            f"Options of '{section.kind}': {', '.join(sorted(tunable))}.",
        )
    values = {**presets[section.preset], **section.options}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        wanted = float if field.type == "float" else int if field.type == "int" else str
        value = values.get(field.name)
        if value is not None and not isinstance(value, (int, float) if wanted is float else wanted):
            raise UserError(f"detector.options.{field.name} must be {_SPOKEN[wanted]}, not {value!r}.")
        if wanted is int and isinstance(value, int) and value < 1:
            raise UserError(f"detector.options.{field.name} must be at least 1, not {value}.")
    try:
        return config(**size, **values)
    except ValueError as error:
        raise UserError(f"[detector.options] of '{section.kind}': {error}.") from error
