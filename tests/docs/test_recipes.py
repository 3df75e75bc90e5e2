"""The recipes of `recipes/` are valid, and say how their data set is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kizu.training.auto import resolve
from kizu.training.data.manifest import NG, Row
from kizu.training.detectors import create_detector
from kizu.training.generators import check_keys
from kizu.training.recipe import read_recipe

from .tables import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_and_its_methods_take_its_options(path: Path) -> None:
    recipe, _ = resolve(read_recipe(path), [Row(path="some.png", label=NG)])
    methods = [create_detector(recipe.image.geometry, section, recipe.augment) for section in recipe.detector]
    assert recipe.augment is None or any(method.augment is recipe.augment for method in methods)
    if recipe.generator is not None:
        check_keys(recipe.generator)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_names_the_command_that_makes_its_data_set(path: Path) -> None:
    commands = re.findall(r"`kizu (?:import|data render) ([^`]*)`", path.read_text(encoding="utf-8"))
    assert any(read_recipe(path).dataset in command.split() for command in commands)


def test_no_two_recipes_go_by_one_name() -> None:
    names = [read_recipe(path).name for path in RECIPES]
    assert len(set(names)) == len(names)
