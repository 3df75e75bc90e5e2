"""From `[detector]` to a network family's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from kizu.models.bundle import InputGeometry
from kizu.training import options
from kizu.training.recipe import DetectorSection

Config = TypeVar("Config")


def configure(
    config: type[Config], presets: Mapping[str, Mapping[str, Any]], geometry: InputGeometry, section: DetectorSection
) -> Config:
    """A configuration of the family's size, with the preset's values under the recipe's options.

    Raises:
        UserError: unknown preset or option.
    """
    size = {"height": geometry.height, "width": geometry.width, "channels": geometry.channels}
    values = {**options.preset(presets, section.preset, f"detector '{section.kind}'"), **section.options}
    known = options.known_options(config, *size)
    options.check_names(section.options, known, "detector.options", f"'{section.kind}'")
    return options.configure(config, size, values, "detector.options", least=1)
