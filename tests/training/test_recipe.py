"""Recipes: what they accept, and how they refuse."""

import json

import pytest

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.recipe import find_dataset, parse_recipe, read_recipe

SMALLEST = {"name": "r", "dataset": "d", "detector": {"kind": "ganomaly"}}


def test_everything_but_name_dataset_and_detector_has_a_default():
    recipe = parse_recipe(SMALLEST, "recipe.toml")
    assert recipe.image.geometry == InputGeometry(height=64, width=64, channels=3, enlarge=2)
    assert recipe.splits.fractions == (0.6, 0.2, 0.2)
    assert recipe.splits.certification == 0
    assert recipe.generator is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_fn": 0.1}, "unknown key 'target_fn': did you mean 'target_fnr'"),
        ({"image": {"sizes": 64}}, "unknown key 'image.sizes': did you mean 'size'"),
        ({"detector": {"kind": "ganomaly", "epoch": 3}}, "unknown key 'detector.epoch': did you mean 'epochs'"),
        ({"target_fnr": 0}, "target_fnr must be greater than 0, not 0"),
        ({"target_fnr": 1.5}, "target_fnr must be less than 1, not 1.5"),
        ({"target_fnr": "1%"}, "target_fnr must be a number, not '1%'"),
        ({"seed": 2**31}, "seed must be less than 2147483648, not 2147483648"),
        ({"seed": True}, "seed must be a whole number, not True"),
        ({"seed": "3"}, "seed must be a whole number, not '3'"),
        ({"image": {"size": 16}}, "image.size must be at least 32 or a list, not 16"),
        ({"image": {"size": [64, 2048]}}, "image.size must be at most 1024, not 2048"),
        ({"image": 64}, "image must be a table, not 64"),
        ({"image": {"channels": 2}}, "image.channels must be 1 or 3, not 2"),
        ({"image": {"channels": True}}, "image.channels must be a whole number, not True"),
        ({"image": {"stride": 8}}, "image: stride needs tile"),
        ({"image": {"tile": 32, "stride": 48}}, "leaves gaps"),
        ({"image": {"tile": 32, "fit": "letterbox"}}, "for whole images"),
        ({"splits": {"train": 0.9}}, "must sum to 1"),
        ({"splits": {"certification": 0.2}}, "must sum to 1"),
        ({"splits": {"train": 0.9, "certification": -0.3}}, "splits.certification must be at least 0"),
        ({"name": "a/b"}, r"name must be a text like \^.*, not 'a/b'"),
        ({"detector": []}, "detector must be a list of 1 at least"),
        ({"detector": {"kind": "a", "options": {"b": [1]}}}, r"detector.options.b must be .* or a text, not \[1\]"),
        (
            {"generator": {"kind": "a", "augmentations": {"hue": 1}}},
            "generator.augmentations.hue must be true or false",
        ),
    ],
)
def test_a_fault_is_named_with_its_key(change, message):
    with pytest.raises(UserError, match=message):
        parse_recipe(SMALLEST | change, "recipe.toml")


def test_a_true_option_is_no_number():
    """Which option takes which is for the detector to say; nothing is converted before."""
    detector = {"kind": "ganomaly", "options": {"latent": True, "features": 4, "kappa": 1.0, "score": "1"}}
    given = parse_recipe(SMALLEST | {"detector": detector}, "r").detector[0].options
    assert {name: type(value) for name, value in given.items()} == {
        "latent": bool,
        "features": int,
        "kappa": float,
        "score": str,
    }


def test_a_recipe_survives_json():
    recipe = parse_recipe(SMALLEST | {"image": {"size": [48, 96]}, "confidence": 0.9}, "r")
    assert parse_recipe(json.loads(recipe.model_dump_json()), "r") == recipe


def test_size_is_a_side_or_height_and_width():
    geometry = parse_recipe(SMALLEST | {"image": {"size": [48, 96], "channels": 1}}, "r").image.geometry
    assert (geometry.height, geometry.width) == (48, 96)


def test_tiles_overlap_by_a_quarter_unless_told_otherwise():
    assert parse_recipe(SMALLEST | {"image": {"tile": 64}}, "r").image.geometry.stride == 48
    assert parse_recipe(SMALLEST | {"image": {"tile": 64, "stride": 64}}, "r").image.geometry.stride == 64


def test_images_are_stretched_unless_the_recipe_letterboxes_them():
    fits = [parse_recipe(SMALLEST | {"image": image}, "r").image.geometry.fit for image in ({}, {"fit": "letterbox"})]
    assert fits == ["stretch", "letterbox"]


def test_whole_images_are_enlarged_to_twice_their_size_and_tiles_are_not():
    whole = parse_recipe(SMALLEST | {"image": {"size": [48, 97]}}, "r").image.geometry
    assert (whole.min_height, whole.min_width) == (24, 49)
    tiled = parse_recipe(SMALLEST | {"image": {"size": 32, "tile": 64}}, "r").image.geometry
    assert (tiled.min_height, tiled.min_width) == (64, 64)


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
