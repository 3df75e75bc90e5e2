"""What a run asks of recipe and data before anything trains, and what it makes of data that are not uniform."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kizu.errors import UserError
from kizu.training.data.manifest import NG, Manifest
from kizu.training.data.splits import assign_splits
from kizu.training.evaluation.evaluate import evaluate_bundle
from kizu.training.pipeline import train

from .conftest import CLASSIFIER, GENERATOR, RECIPE, train_bundle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kimg = 0.1", "kimg = 0.1\ncrop = 16"), "the detector sees whole images"),
        (("kimg = 0.1", "kimg = 0.1\nsize = [32, 64]"), "generator.size"),
        (('kind = "classifier"', 'kind = "ganomaly"'), "takes its images as they are"),
    ],
)
def test_synthetic_ng_that_show_something_else_are_refused_before_anything_trains(small_run, tmp_path, change, message):
    recipe = tmp_path / "recipe.toml"
    text = CLASSIFIER.format(dataset=small_run.dataset) + GENERATOR + "\n[augment]\nnoise = 0.02\n"
    recipe.write_text(text.replace(*change))
    with pytest.raises(UserError, match=message):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "generator").exists()


FEATURES, LATENT = {"features = 4": "featurs = 4"}, {"latent = 8": "latnt = 8"}
CROPS = {"kimg = 0.1": "kimg = 0.1\ncrop = 16"}
"""Crops of a part cannot stand for whole images."""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (FEATURES | CROPS, ["detector.options.featurs"]),
        (LATENT | {'kind = "classifier"': 'kind = "ganomaly"'}, ["generator.options.latnt"]),  # and [augment] is idle
        (FEATURES | LATENT | CROPS, ["detector.options.featurs", "generator.options.latnt"]),
    ],
)
def test_slips_in_options_are_told_together_and_before_what_does_not_go_together(small_run, tmp_path, changes, told):
    text = CLASSIFIER.format(dataset=small_run.dataset) + GENERATOR + "\n[augment]\nnoise = 0.02\n"
    for right, wrong in changes.items():
        text = text.replace(right, wrong)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    with pytest.raises(UserError) as caught:
        train(recipe, tmp_path / "run", quiet=True)
    assert sorted(re.findall(r"unknown key '([\w.]+)'", caught.value.problem)) == told
    assert len(caught.value.problem.splitlines()) == len(told)


def test_all_that_does_not_go_together_is_told_at_once(small_run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    memory = '[[detector]]\nkind = "memory"\npreset = "discriminator"\n'
    text = CLASSIFIER.format(dataset=small_run.dataset).replace("[detector]", "[[detector]]")
    text = text.replace("[detector.options]\nfeatures = 4\n", memory)
    recipe.write_text(text + GENERATOR.replace("kimg = 0.1", "kimg = 0.1\nsize = 64\ncrop = 16"))
    with pytest.raises(UserError) as caught:
        train(recipe, tmp_path / "run", quiet=True)
    first, second = caught.value.problem.splitlines()
    assert "the discriminator would judge 64×64 pixels" in first
    assert "the detector sees whole images" in second


def test_images_that_cannot_be_inspected_are_all_named_before_the_generator(small_run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset=small_run.dataset).replace("size = 32", "size = 80") + GENERATOR)
    with pytest.raises(UserError, match=r"440 images are too small\. At least 40×40") as caught:
        train(recipe, tmp_path / "run", quiet=True)
    assert len(caught.value.details) == len(small_run.manifest)
    assert not (tmp_path / "run" / "generator").exists()


def test_enlarged_images_train_and_log_report_and_evaluation_say_how_many(small_run, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        RECIPE.replace('"boards"', f'"{small_run.dataset}"').replace("size = 32", "size = 51").replace("= 50", "= 1")
    )
    bundle = train_bundle(recipe, tmp_path / "run", quiet=False)
    note = "440 of 440 images are enlarged, up to 1.6×"
    assert note in " ".join(capsys.readouterr().err.split())
    assert note in bundle.report.read_text()
    assert bundle.manifest.geometry.enlarge == 2
    score, heatmap = bundle.open("cpu").score(np.zeros((1, 26, 30, 1), np.uint8))
    assert score.shape == (1,)
    assert heatmap.shape == (1, 51, 51)
    found = evaluate_bundle(bundle, small_run.manifest, device="cpu")
    assert any(re.match(r"\d+ of \d+ images are enlarged, up to 1\.6×", text) for text in found.notes)


@pytest.fixture
def messy(small_run, tmp_path):
    """The boards without boxes, and two rows of the train split that are NG."""
    root = tmp_path / "messy"
    shutil.copytree(small_run.dataset, root)
    manifest = Manifest(root, [replace(row, boxes=()) for row in small_run.manifest.rows])
    manifest.write()
    return manifest, [row for row in assign_splits(manifest, 0).train if row.label == NG][:2]


NG_PATCHES = """
[generator]
kind = "poisson"
count = 8
options = { patches = "ng" }
"""


def test_ng_with_an_empty_mask_train_by_their_label_and_are_named(messy, tmp_path, capsys):
    manifest, rows = messy
    for row in rows:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(manifest.root / row.mask)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset=manifest.root) + NG_PATCHES)
    bundle = train_bundle(recipe, tmp_path / "run", quiet=False)
    note = f"2 NG images have an empty mask, and count by the label alone: {rows[0].path}, {rows[1].path}."
    said = " ".join(capsys.readouterr().err.split())
    assert note in said
    assert note in bundle.report.read_text()
    # The data set is the one on disk, whatever becomes of its masks.
    assert bundle.manifest.dataset.fingerprint == manifest.fingerprint()
    counts = re.search(r"(\d+) NG and 8 synthetic NG images \((\d+) NG with their defects located", said)
    assert counts is not None
    assert int(counts[2]) == int(counts[1]) + 8 - len(rows)


def test_masks_of_another_size_are_all_named_before_the_generator(messy, tmp_path):
    manifest, rows = messy
    for row in rows:
        Image.fromarray(np.full((16, 32), 255, np.uint8)).save(manifest.root / row.mask)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset=manifest.root) + NG_PATCHES)
    with pytest.raises(UserError, match="2 masks have another size than their images") as caught:
        train(recipe, tmp_path / "run", quiet=True)
    assert [line.split(":")[0] for line in caught.value.details] == [row.mask for row in rows]
    assert not (tmp_path / "run" / "generator").exists()


@pytest.fixture
def oblong(small_run, tmp_path):
    """Every fourth of the boards' images, squeezed to 20×32 or 32×20 pixels in turn."""
    root, rows = tmp_path / "oblong", small_run.manifest.rows[::4]
    for number, row in enumerate(rows):
        for name in filter(None, (row.path, row.mask)):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            with Image.open(small_run.dataset / name) as picture:
                picture.resize(((20, 32), (32, 20))[number % 2], Image.Resampling.NEAREST).save(root / name)
    manifest = Manifest(root, [replace(row, boxes=()) for row in rows])
    manifest.write()
    return manifest


def test_images_of_several_shapes_are_letterboxed_with_their_masks(oblong, tmp_path):
    recipe = tmp_path / "recipe.toml"
    text = CLASSIFIER.format(dataset=oblong.root).replace("size = 32", 'size = 32\nfit = "letterbox"')
    recipe.write_text(text + '\n[generator]\nkind = "cutpaste"\ncount = 8\n')
    bundle = train_bundle(recipe, tmp_path / "run")
    assert bundle.manifest.geometry.fit == "letterbox"
    assert bundle.manifest.dataset.synthetic_ng == 8
    assert bundle.manifest.metrics["pixels"]["masked_images"] > 0
    for shape in ((1, 20, 32, 1), (2, 32, 20, 3), (1, 90, 16, 1)):
        assert bundle.open("cpu").score(np.zeros(shape, np.uint8))[1].shape == (shape[0], 32, 32)
