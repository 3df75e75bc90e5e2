"""Recipes: what they accept, and how they refuse."""

import pytest

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.recipe import find_dataset, parse_recipe, read_recipe

SMALLEST = {"name": "r", "dataset": "d", "detector": {"kind": "ganomaly"}}


def test_everything_but_name_dataset_and_detector_has_a_default():
    recipe = parse_recipe(SMALLEST, "recipe.toml")
    assert recipe.image.geometry == InputGeometry(height=64, width=64, channels=3)
    assert recipe.splits.fractions == (0.6, 0.2, 0.2)
    assert recipe.generator is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_fn": 0.1}, "unknown key 'target_fn': did you mean 'target_fnr'"),
        ({"image": {"sizes": 64}}, "unknown key 'image.sizes': did you mean 'size'"),
        ({"detector": {"kind": "ganomaly", "epoch": 3}}, "unknown key 'detector.epoch': did you mean 'epochs'"),
        ({"target_fnr": 0}, "'target_fnr'"),
        ({"target_fnr": 1.5}, "'target_fnr'"),
        ({"image": {"size": 16}}, "'image.size'"),
        ({"image": {"channels": 2}}, "'image.channels'"),
        ({"image": {"stride": 8}}, "stride needs tile"),
        ({"image": {"tile": 32, "stride": 48}}, "leaves gaps"),
        ({"splits": {"train": 0.9}}, "must sum to 1"),
        ({"name": "a/b"}, "'name'"),
        ({"detector": {}}, "'detector.kind' is missing"),
    ],
)
def test_a_fault_is_named_with_its_key(change, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(SMALLEST | change, "recipe.toml")


def test_size_is_a_side_or_height_and_width():
    geometry = parse_recipe(SMALLEST | {"image": {"size": [48, 96], "channels": 1}}, "r").image.geometry
    assert (geometry.height, geometry.width) == (48, 96)


def test_tiles_overlap_by_a_quarter_unless_told_otherwise():
    assert parse_recipe(SMALLEST | {"image": {"tile": 64}}, "r").image.geometry.stride == 48
    assert parse_recipe(SMALLEST | {"image": {"tile": 64, "stride": 64}}, "r").image.geometry.stride == 64


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.toml"):
        read_recipe(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(UserError, match=r"broken\.toml is not a TOML file"):
        read_recipe(broken)


def test_a_data_set_is_found_beside_the_recipe_or_in_the_working_directory(tmp_path, monkeypatch):
    recipe = parse_recipe(SMALLEST, "r")
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes" / "r.toml"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="data set 'd'"):
        find_dataset(recipe, path)
    (tmp_path / "d").mkdir()
    assert find_dataset(recipe, path).resolve() == tmp_path / "d"
    (tmp_path / "recipes" / "d").mkdir()
    assert find_dataset(recipe, path) == tmp_path / "recipes" / "d"
