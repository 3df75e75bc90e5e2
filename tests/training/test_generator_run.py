"""A recipe with a generator: what the run leaves behind, what `kizu synthesize` draws from it, and how both refuse."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from kizu.errors import UserError
from kizu.training.checkpoint import load as load_checkpoint
from kizu.training.data.manifest import NG, Manifest
from kizu.training.data.splits import assign_splits
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.pipeline import train

RECIPE = """\
name = "few-ng"
dataset = "{dataset}"
target_fnr = 0.10

[image]
size = 32
channels = 1

[generator]
kind = "stylegan2-ada"
preset = "demo"
kimg = 0.2
count = 24
batch_size = 8
measurements = 2

[generator.options]
capacity = 128
latent = 16

[detector]
kind = "ganomaly"
epochs = 1

[detector.options]
features = 4
latent = 8
"""


@pytest.fixture(scope="module")
def recipe(small_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("few") / "recipe.toml"
    path.write_text(RECIPE.format(dataset=small_run.dataset))
    return path


@pytest.fixture(scope="module")
def run(recipe):
    train(recipe, recipe.parent / "run", quiet=True)
    return recipe.parent / "run"


def test_the_synthetic_ng_are_a_data_set_that_says_what_it_is(run):
    drawn = Manifest.read(run / "synthetic")
    assert drawn.counts()["synthetic"] == 24
    generator = TrainedGenerator.load(run / "generator")
    assert all(row.synthetic and row.origin.startswith(f"stylegan2-ada:{generator.run}:") for row in drawn.rows)
    assert {row.defect for row in drawn.rows} <= set(generator.classes)
    assert drawn.image(drawn.rows[0]).shape == (32, 32, 1)


def test_the_generator_learned_from_the_train_split_alone(run, small_run):
    train_ng = [row for row in assign_splits(small_run.manifest, 0).train if row.label == NG]
    generator = TrainedGenerator.load(run / "generator")
    # One crop for each board image: its defects lie in one window of the image's size.
    assert sum(generator.counts) <= sum(max(1, len(row.boxes)) for row in train_ng)
    assert generator.conditional
    assert set(generator.classes) <= {name for row in train_ng for name in row.defects}


def test_the_run_shows_what_the_generator_learned(run):
    folder = run / "generator"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["kimg"] for line in lines] == pytest.approx([0.104, 0.2])
    assert all(line["kid"]["lower"] <= line["kid"]["value"] <= line["kid"]["upper"] for line in lines)
    assert all(line["extractor"] == "kizu-contrastive-v1" and line["fid"] is None for line in lines)
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    with Image.open(folder / "grid.png") as grid, Image.open(folder / "interpolation.png") as strip:
        assert grid.size == (12 * 32, 4 * 32)
        assert strip.size == (8 * 32, 4 * 32)


def test_a_resumed_run_neither_trains_nor_draws_again(run, recipe):
    weights = (run / "generator" / "generator.pt").stat().st_mtime_ns
    picture = next((run / "synthetic").glob("ng/*/*.png"))
    drawn = picture.stat().st_mtime_ns
    train(recipe, run, resume=True, quiet=True)
    assert (run / "generator" / "generator.pt").stat().st_mtime_ns == weights
    assert picture.stat().st_mtime_ns == drawn


def test_the_weights_that_ship_are_the_average_of_the_checkpoint(run):
    state = load_checkpoint(run / "generator")
    assert state is not None
    average = state["averages"]["0/0"]
    shipped = TrainedGenerator.load(run / "generator").network.state_dict()
    assert all(torch.equal(average[name], shipped[name]) for name in shipped)


def test_synthesize_draws_a_class_and_repeats_itself(kizu, run, tmp_path):
    generator = TrainedGenerator.load(run / "generator")
    wanted = generator.classes[-1]
    options = ("--count", 6, "--class", wanted, "--truncation", 0.5, "--seed", 40)
    answer = kizu("synthesize", run, "--out", tmp_path / "one", *options, "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["defects"] == {wanted: 6}
    assert kizu("synthesize", run, "--out", tmp_path / "two", *options).returncode == 0
    one, two = Manifest.read(tmp_path / "one"), Manifest.read(tmp_path / "two")
    assert [row.origin.rpartition(":")[2] for row in one.rows] == ["40", "41", "42", "43", "44", "45"]
    assert one.rows == two.rows
    assert all(np.array_equal(one.image(row), two.image(row)) for row in one.rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--class", "no-such"), "never saw the defect class 'no-such'"),
        (("--device", "tpu"), "no device 'tpu'"),
    ],
)
def test_synthesize_refuses_in_one_sentence(kizu, run, tmp_path, arguments, said):
    answer = kizu("synthesize", run, "--count", 2, "--out", tmp_path / "out", *arguments)
    assert answer.returncode == 2
    assert said in " ".join(answer.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_generator_cannot_synthesize(kizu, small_run, tmp_path):
    answer = kizu("synthesize", small_run.folder, "--count", 2, "--out", tmp_path / "out")
    assert answer.returncode == 2
    assert "holds no trained generator" in answer.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('kind = "stylegan2-ada"', 'kind = "stylegan9"'), "Unknown generator 'stylegan9'"),
        (('preset = "demo"', 'preset = "huge"'), "Unknown preset 'huge'"),
        (("capacity = 128", "capcity = 128"), "unknown key 'generator.options.capcity': did you mean 'capacity'"),
        (("latent = 16", "loss = 'least'"), "loss must be 'non-saturating'"),
        (("kimg = 0.2", "kmg = 0.2"), "did you mean 'kimg'"),
        (("kimg = 0.2", 'kimg = 0.2\nstart_from = "nowhere"'), "there is no nowhere"),
    ],
)
def test_a_slip_in_the_generator_section_is_named(recipe, tmp_path, change, said):
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.read_text().replace(*change))
    with pytest.raises(UserError, match=said):
        train(path, tmp_path / "run", quiet=True)
