"""Runs with each way to make synthetic NG: what they leave behind, what they refuse, and that resuming is idle."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.manifest import NG, Manifest
from kizu.training.data.render import render_boards
from kizu.training.data.synthetic import SyntheticBatch, write_synthetic
from kizu.training.execution import Execution
from kizu.training.generators.placing import PlacedGenerator
from kizu.training.generators.sampling import batches
from kizu.training.generators.stored import open_generator
from kizu.training.generators.untrained import UntrainedGenerator
from kizu.training.generators.views import ng_views
from kizu.training.pipeline import train
from kizu.training.progress import RunLog
from kizu.training.recipe import parse_recipe, read_recipe
from kizu.training.run import GENERATOR_FOLDER, PLAN_FILE, SYNTHETIC_FOLDER, Run, open_run
from kizu.training.synthesis import filtering
from kizu.training.synthesis.filtering import classifier_rating
from kizu.training.synthesis.stage import run_generator

RECIPE = """\
name = "few-ng"
dataset = "boards"
target_fnr = 0.10

[image]
size = 32
channels = 1

[generator]
{generator}

[detector]
kind = "classifier"
epochs = 1
"""
GAN = """\
kind = "stylegan2-ada"
preset = "demo"
kimg = 0.16
count = 12
batch_size = 8
measurements = 0
crop = 24
placed = true
filter = "discriminator"

[generator.options]
capacity = 128
latent = 16
candidates = 64
"""
QUIET = RunLog(None, quiet=True)
EXECUTION = Execution(QUIET, torch.device("cpu"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with `boards`: 32-pixel boards whose NG have boxes and no masks."""
    folder = tmp_path_factory.mktemp("stage")
    manifest = render_boards(folder / "boards", boards=10, count_ok=40, count_ng=30, size=32, channels=1)
    manifest.rows = [replace(row, mask="") for row in manifest.rows]
    manifest.write()
    return folder


def prepared(root, folder, generator):
    """A run of a recipe's generator alone."""
    content = {
        "name": "few-ng",
        "dataset": "boards",
        "image": {"size": 32, "channels": 1},
        "generator": generator,
        "detector": {"kind": "classifier"},
    }
    return open_run(parse_recipe(content, "recipe"), Manifest.read(root / "boards"), folder, root, QUIET)


def run_of(root, folder, **generator):
    return synthesised(prepared(root, folder, {"count": 10, **generator}))


def synthesised(run: Run) -> Manifest:
    found = run_generator(run, EXECUTION)
    assert found is not None, "None is for other processes than the main one"
    return found


def written(root, name, generator):
    path = root / f"{name}.toml"
    path.write_text(RECIPE.format(generator=generator))
    return path


@pytest.fixture(scope="module")
def poisson(root):
    recipe = written(root, "poisson", 'kind = "poisson"\ncount = 20\n\n[generator.options]\npatches = "ng"')
    return recipe, root / "poisson", train(recipe, root / "poisson", quiet=True, device="cpu")


@pytest.fixture(scope="module")
def placed(root):
    recipe = written(root, "placed", GAN)
    return recipe, root / "placed", train(recipe, root / "placed", quiet=True, device="cpu")


@pytest.mark.parametrize(("fixture", "kind", "count"), [("poisson", "poisson", 20), ("placed", "stylegan2-ada", 12)])
def test_a_run_ends_in_a_bundle_that_counts_its_synthetic_ng(fixture, kind, count, request):
    _, folder, bundle = request.getfixturevalue(fixture)
    assert bundle.manifest.dataset.synthetic_ng == count
    synthetic = Manifest.read(folder / SYNTHETIC_FOLDER)
    generator = open_generator(folder)
    assert (generator.kind, len(synthetic)) == (kind, count)
    assert all(row.origin.startswith(f"{kind}:{generator.run}:") for row in synthetic.rows)
    assert len({row.defect for row in synthetic.rows}) > 3
    for row in synthetic.rows:
        mask = synthetic.mask(row)
        assert mask is not None
        assert mask.shape == synthetic.image(row).shape[:2] == (32, 32)
        assert 0 < mask.mean() < 0.5
    assert (folder / GENERATOR_FOLDER / "report.html").read_text().startswith("<!doctype html>")
    picture = "placed.png" if kind == "stylegan2-ada" else "grid.png"
    with Image.open(folder / GENERATOR_FOLDER / picture) as grid:
        assert grid.size == (10 * 96, 8 * 96)


@pytest.mark.parametrize("fixture", ["poisson", "placed"])
def test_what_was_sampled_is_what_the_generator_draws_from_its_seeds(fixture, request):
    _, folder, _ = request.getfixturevalue(fixture)
    synthetic, generator = Manifest.read(folder / SYNTHETIC_FOLDER), open_generator(folder)
    classes = {generator.name(n): n for n in generator.class_numbers(200)}
    for row in synthetic.rows[:5]:
        again = generator.sample([int(row.origin.rpartition(":")[2])], [classes[row.defect]])
        difference = np.abs(again.images[0].permute(1, 2, 0).numpy().astype(int) - synthetic.image(row))
        assert difference.max() <= 2, "but for how convolutions round"


@pytest.mark.parametrize("fixture", ["poisson", "placed"])
def test_a_resumed_run_does_not_draw_again_what_it_drew(fixture, request):
    recipe, folder, _ = request.getfixturevalue(fixture)
    data = Manifest.read(recipe.parent / "boards")
    run = open_run(read_recipe(recipe), data, folder, recipe.parent, QUIET)
    files = [next((folder / SYNTHETIC_FOLDER).glob("ng/*/*.png")), *(folder / GENERATOR_FOLDER).glob("*.pt")]
    before = [path.stat().st_mtime_ns for path in files]
    run_generator(run, replace(EXECUTION, resume=True))
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_filter_kept_the_share_of_each_class(placed):
    _, folder, _ = placed
    generator = open_generator(folder)
    assert isinstance(generator, PlacedGenerator)
    rows = Manifest.read(folder / SYNTHETIC_FOLDER).rows
    wanted = [generator.name(n) for n in generator.class_numbers(12)]
    assert sorted(row.defect for row in rows) == sorted(wanted)
    seeds = sorted(int(row.origin.rpartition(":")[2]) for row in rows)
    assert max(seeds) < 24
    assert seeds != list(range(12))
    plan = json.loads((folder / GENERATOR_FOLDER / PLAN_FILE).read_text())
    assert (plan["run"], plan["filter"], plan["count"]) == (generator.run, "discriminator", 12)


def test_a_run_s_folder_is_enough_to_draw_more(poisson, tmp_path):
    _, folder, _ = poisson
    generator = open_generator(folder)
    assert isinstance(generator, UntrainedGenerator)
    wanted = generator.classes[0]
    made = batches(generator, 3, seed=1000, defect_class=wanted)
    synthetic = write_synthetic(tmp_path / "more", made, kind=generator.kind, run=generator.run, total=3)
    assert [row.defect for row in synthetic.rows] == [wanted] * 3


@pytest.mark.parametrize("kind", ["cutpaste", "perlin", "poisson", "classic"])
def test_every_kind_draws_for_whole_images_and_for_tiles(kind, root, tmp_path):
    whole = run_of(root, tmp_path / "whole", kind=kind)
    assert whole.counts()["synthetic"] == 10
    assert whole.image(whole.rows[0]).shape == (32, 32, 1)
    run = prepared(root, tmp_path / "tiles", {"kind": kind, "count": 6})
    image = run.recipe.image.model_copy(update={"tile": 16})
    tiled = replace(run, recipe=run.recipe.model_copy(update={"image": image}))
    synthetic = synthesised(tiled)
    assert synthetic.image(synthetic.rows[0]).shape == (32, 32, 1)
    assert all(row.mask for row in synthetic.rows)


def test_another_number_or_filter_is_drawn_anew(root, tmp_path, monkeypatch):
    monkeypatch.setattr(filtering, "STEPS", 4)
    folder = tmp_path / "run"
    first = run_of(root, folder, kind="cutpaste")
    assert [row.origin for row in run_of(root, folder, kind="cutpaste").rows] == [row.origin for row in first.rows]
    filtered = run_of(root, folder, kind="cutpaste", filter="classifier", keep=0.25)
    seeds = [int(row.origin.rpartition(":")[2]) for row in filtered.rows]
    assert len(seeds) == 10
    assert max(seeds) < 40
    assert seeds != list(range(10))


def test_the_quick_classifier_tells_real_ng_from_ok(root, tmp_path):
    manifest = Manifest.read(root / "boards")
    geometry = InputGeometry(height=32, width=32, channels=1)
    plain = torch.full((60, 1, 32, 32), 100, dtype=torch.uint8)
    ng = ng_views(manifest, [row for row in manifest.rows if row.label == NG], geometry)
    bright = replace(ng, images=torch.where(ng.masks > 0, 250, 100).to(torch.uint8))
    rate = classifier_rating(plain, bright, geometry, tmp_path / "filter", EXECUTION, seed=0, steps=24)
    found = rate(SyntheticBatch(torch.cat([plain[:8], bright.images[:8]]), ["NG"] * 16, list(range(16))), [0] * 16)
    assert found[8:].min() > found[:8].max()


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        ({"kind": "cutpaste", "kimg": 5}, "generator.kimg does not apply to 'cutpaste'"),
        ({"kind": "poisson", "placed": True}, "generator.placed does not apply to 'poisson'"),
        ({"kind": "perlin", "filter": "discriminator"}, "'perlin' has no discriminator"),
        ({"kind": "classic", "keep": 0.5}, "generator.keep says what share a filter keeps"),
        ({"kind": "cutpaste", "options": {"scar": 1.0}}, "unknown key 'generator.options.scar': did you mean 'scars'"),
        ({"kind": "poisson", "options": {"patches": "all"}}, "patches must be 'ok' or 'ng', not 'all'"),
        ({"kind": "stylegan2-ada", "options": {"blend": "poisson"}}, "unknown key 'generator.options.blend'"),
        (
            {"kind": "stylegan2-ada", "placed": True, "options": {"blend": "no"}},
            "blend must be 'feather' or 'poisson', not 'no'",
        ),
        ({"kind": "stylegan2-ada", "placed": True, "crop": 64}, "do not fit"),
        ({"kind": "nothing"}, "Unknown generator 'nothing'"),
    ],
)
def test_a_slip_in_the_generator_section_is_named(root, tmp_path, generator, said):
    with pytest.raises(UserError, match=said):
        run_of(root, tmp_path / "run", **generator)


@pytest.mark.parametrize(
    "generator", [{"kind": "stylegan2-ada", "placed": True}, {"kind": "poisson", "options": {"patches": "ng"}}]
)
def test_defects_that_nobody_located_cannot_be_placed(root, tmp_path, generator):
    run = prepared(root, tmp_path / "run", generator)
    train_rows = [replace(row, boxes=()) for row in run.splits.train]
    bare = replace(run, splits=replace(run.splits, train=train_rows))
    with pytest.raises(UserError, match="boxes or a mask"):
        run_generator(bare, EXECUTION)
