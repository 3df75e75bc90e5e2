"""The docs' tables of recipe keys and options against the code: names, defaults, and nothing else.

A table's first heading says what it lists: `key`, "key of `[section]`" or "option of `kind`".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kizu.models import stylegan2
from kizu.training.augment.ada import AugmentConfig
from kizu.training.auto import AutoOptions
from kizu.training.detectors import DETECTORS
from kizu.training.generators import GAN, UNTRAINED, option_configs
from kizu.training.generators.placing import PlacingConfig
from kizu.training.generators.stylegan2_ada import PRESETS as TRAINING_PRESETS
from kizu.training.options import REQUIRED, OptionInfo, Presets, describe
from kizu.training.recipe import AUTO, SECTIONS, AugmentSection, GeneratorSection, Recipe

DOCS = Path(__file__).resolve().parents[2] / "docs"
PRESET = "the preset's"

Table = dict[str, str]
"""Name → default, as documented."""


def tables() -> dict[str, Table]:
    """Tables of both documents by their first heading."""
    found: dict[str, Table] = {}
    for page in ("recipe.md", "generator.md"):
        for rows in blocks((DOCS / page).read_text(encoding="utf-8")):
            heading, *body = ([cell.strip() for cell in row.strip("|").split(" | ")] for row in rows)
            if heading[1:] == ["default", "what it does"]:
                assert heading[0] not in found, f"two tables of {heading[0]}"
                found[heading[0]] = {cells[0].strip("`"): cells[1] for cells in body[1:] if not cells[0].endswith("…`")}
    return found


def blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines that are a table's."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        yield block.strip().splitlines()


def as_documented(default: object) -> str:
    """How the docs write a default."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, str):
        return f"`{default}`"
    return f"{default:g}" if isinstance(default, int | float) else str(default)


def is_value(text: str) -> bool:
    """True for what `as_documented` may give."""
    return bool(re.fullmatch(r"`.*`|true|false|-?[\d.]+(e-?\d+)?", text))


def assert_documented(name: str, default: object, documented: str) -> None:
    if default is REQUIRED:
        assert documented == "required", name
    elif default is None or isinstance(default, dict):  # what follows from other keys is told in words
        assert documented, name
        assert not is_value(documented), name
    else:
        assert documented == as_documented(default), name


def assert_complete(table: Table, options: list[OptionInfo], presets: Presets | None = None) -> None:
    assert sorted(table) == sorted(option.name for option in options)
    for option in options:
        defaults = [preset.get(option.name, option.default) for preset in (presets or {"": {}}).values()]
        if any(default != defaults[0] for default in defaults):
            assert table[option.name] == PRESET, option.name
        else:
            assert_documented(option.name, defaults[0], table[option.name])


def options_of(configs: tuple[type, ...]) -> list[OptionInfo]:
    return [option for config in configs for option in describe(config)]


def keys(prefix: str, section: type) -> list[OptionInfo]:
    return [
        OptionInfo(f"{prefix}{key.name}", key.type, key.default, key.bounds, key.description)
        for key in describe(section)
    ]


def test_every_recipe_key_is_documented_with_its_default() -> None:
    own = [key for key in describe(Recipe) if key.name not in SECTIONS]
    sections = [key for name in ("image", "splits", "detector", "export") for key in keys(f"{name}.", SECTIONS[name])]
    assert_complete(tables()["key"], [key for key in [*own, *sections] if key.name != "detector.options"])


@pytest.mark.parametrize(("name", "section"), [("generator", GeneratorSection), ("augment", AugmentSection)])
def test_every_key_of_a_section_is_documented_with_its_default(name: str, section: type) -> None:
    assert_complete(tables()[f"key of `[{name}]`"], describe(section))


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_option_of_a_detector_is_documented_with_its_default(kind: str) -> None:
    method = DETECTORS[kind]
    assert_complete(tables()[f"option of `{kind}`"], options_of(method.configs), method.presets)


@pytest.mark.parametrize("kind", UNTRAINED)
def test_every_option_of_a_generator_is_documented_with_its_default(kind: str) -> None:
    assert_complete(tables()[f"option of `{kind}`"], options_of(option_configs(kind)))


def test_every_option_of_the_gan_is_documented_with_its_default() -> None:
    presets: dict[str, Mapping[str, Any]] = {
        name: {**shape, **TRAINING_PRESETS.get(name, {})} for name, shape in stylegan2.PRESETS.items()
    }
    assert_complete(tables()[f"option of `{GAN}`"], options_of(option_configs(GAN)), presets)


def test_every_option_of_placing_is_documented_with_its_default() -> None:
    assert_complete(tables()["option of `placed = true`"], describe(PlacingConfig))


def test_every_augmentation_is_documented_with_its_default() -> None:
    assert_complete(tables()["key of `[generator.augmentations]`"], describe(AugmentConfig))


def test_every_option_of_auto_is_documented_with_its_default() -> None:
    assert_complete(tables()["option of `auto`"], describe(AutoOptions))


def test_no_table_is_of_something_unknown() -> None:
    known = ["key", "key of `[augment]`", "key of `[generator]`", "key of `[generator.augmentations]`"]
    known += [f"option of `{kind}`" for kind in (AUTO, *DETECTORS, *UNTRAINED, GAN, "placed = true")]
    assert sorted(tables()) == sorted(known)


@pytest.mark.parametrize(
    "config",
    [
        *[config for method in DETECTORS.values() for config in method.configs],
        *option_configs(GAN, placed=True),
        *[kind.config for kind in UNTRAINED.values()],
        AugmentConfig,
        Recipe,
        *SECTIONS.values(),
    ],
)
def test_every_option_has_a_description_and_a_type(config: type) -> None:
    assert not [option.name for option in describe(config) if not (option.description and option.type)]
