"""Recipe in, bundle out: what a run leaves behind, and how it refuses."""

import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

from kizu.errors import UserError
from kizu.models.bundle import Bundle, BundleError
from kizu.models.ensemble import RankScale
from kizu.models.operating_point import VERDICT_MARGIN, choose_operating_point, draw_independent
from kizu.training import shipping
from kizu.training.data.labelled import hold_out_ok
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.render import render_boards
from kizu.training.data.splits import assign_splits, read_split
from kizu.training.evaluation.evaluate import evaluate_bundle
from kizu.training.pipeline import train
from kizu.training.progress import RunLog
from kizu.training.recipe import read_recipe
from kizu.training.run import open_run

from .conftest import CLASSIFIER, GENERATOR, train_bundle


def process(*arguments):
    """Run `kizu` as a process of its own."""
    command = [sys.executable, "-m", "kizu", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_bundle_tells_where_it_comes_from(small_run):
    manifest = small_run.bundle.manifest
    splits = assign_splits(small_run.manifest, 0)
    assert manifest.recipe_name == "small-boards"
    assert manifest.recipe["detector"][0]["options"] == {"features": 16, "score": "peak"}
    assert manifest.dataset.fingerprint == small_run.manifest.fingerprint()
    assert manifest.dataset.split_fingerprint == splits.fingerprint
    assert manifest.dataset.counts == splits.counts
    assert read_split(small_run.folder / "splits.csv", "test") == {row.path for row in splits.test}


def test_the_exported_graph_agreed_with_torch_on_every_calibration_image(small_run):
    parity = small_run.bundle.manifest.parity
    calibration = [row for row in assign_splits(small_run.manifest, 0).calibration if row.label]
    assert parity.images == len(calibration)
    assert parity.score <= 1e-4
    assert parity.heatmap <= 1e-4
    assert parity.verdicts_differing == 0


def test_the_operating_point_rests_on_calibration_ng_alone(small_run):
    point = small_run.bundle.manifest.operating_point
    splits = assign_splits(small_run.manifest, 0)
    calibration = [row for row in splits.calibration if row.label == NG]
    assert point.n_ng == len(calibration)
    assert point.n_ng_groups == len({row.group for row in calibration})
    session = small_run.bundle.open("cpu")
    images = np.stack([small_run.manifest.image(row) for row in calibration])
    scores = np.sort(session.score(images)[0])
    assert point.rank is not None
    assert point.threshold <= scores[(point.groups_only_rank or point.rank) - 1]
    assert (scores < point.threshold).sum() <= (point.groups_only_rank or point.rank) - 1


def test_a_minute_of_training_on_ok_parts_separates_rendered_defects(small_run):
    auroc = small_run.bundle.manifest.metrics["auroc"]
    assert auroc["lower"] > 0.6, auroc


def test_evaluate_finds_the_test_split_again_and_repeats_the_bundles_figures(small_run):
    found = evaluate_bundle(small_run.bundle, small_run.manifest, device="cpu", batch_size=7)
    assert found.evaluated == "test split"
    ours, theirs = found.metrics.as_dict(), dict(small_run.bundle.manifest.metrics)
    cold, hot = theirs.pop("heatmap_range")
    assert cold < hot
    for figures in (ours, theirs):
        figures.pop("images_per_second")
    assert json.loads(json.dumps(ours), parse_float=lambda x: round(float(x), 4)) == json.loads(
        json.dumps(theirs), parse_float=lambda x: round(float(x), 4)
    )


def test_scores_do_not_depend_on_batch_order_or_neighbours_after_export(small_run):
    session = small_run.bundle.open("cpu")
    rows = [row for row in small_run.manifest.rows if row.label == OK][:12]
    images = np.stack([small_run.manifest.image(row) for row in rows])
    together, maps = session.score(images)
    alone = np.concatenate([session.score(image[None])[0] for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    order = np.random.default_rng(0).permutation(12)
    shuffled, shuffled_maps = session.score(images[order])
    np.testing.assert_allclose(together[order], shuffled, rtol=1e-5)
    np.testing.assert_allclose(maps[order], shuffled_maps, rtol=1e-4, atol=1e-6)


def test_the_run_folder_holds_the_score_of_every_image_that_calibrated_or_tested(small_run):
    with (small_run.folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    splits = assign_splits(small_run.manifest, 0)
    for name in ("calibration", "test"):
        rows = [row for row in getattr(splits, name) if row.label]
        assert [line["path"] for line in lines if line["set"] == name] == [row.path for row in rows]
    session, shown = small_run.bundle.open("cpu"), lines[::40]
    images = np.stack([small_run.manifest.image(Row(line["path"], line["label"])) for line in shown])
    assert [float(line["score"]) for line in shown] == pytest.approx(session.score(images)[0], rel=1e-5)


def test_the_bundle_holds_every_score_that_the_threshold_was_chosen_from(small_run):
    point, kept = small_run.bundle.manifest.operating_point, small_run.bundle.calibration
    assert kept is not None
    with (small_run.folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["set"] == "calibration"]
    expected = sorted(("calibration", line["label"], line["group"], float(line["score"])) for line in lines)
    assert list(kept.rows) == expected
    recalibrated = choose_operating_point(
        kept.ng,
        kept.ok,
        target_fnr=0.1,
        review_band=small_run.bundle.manifest.recipe["review_band"],
        tolerance=VERDICT_MARGIN,
        ng_groups=kept.ng_groups,
        draw_key=small_run.bundle.manifest.dataset.fingerprint,
    )
    assert recalibrated == point


def test_the_run_folder_shows_how_training_went(small_run):
    assert list((small_run.folder / "tensorboard").glob("events*"))
    assert list((small_run.folder / "samples").glob("ganomaly_*.png"))
    assert small_run.bundle.report.read_text().startswith("<!doctype html>")


def test_resuming_a_finished_run_exports_the_same_scores(small_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(small_run.folder, copy)
    shutil.rmtree(copy / "bundle")
    again = train_bundle(small_run.recipe, copy, resume=True)
    assert again.manifest.operating_point == small_run.bundle.manifest.operating_point
    assert again.manifest.model_sha256 == small_run.bundle.manifest.model_sha256


def test_a_folder_that_holds_a_run_is_not_overwritten(small_run):
    with pytest.raises(UserError, match="already holds a run"):
        train(small_run.recipe, small_run.folder, quiet=True)


def test_two_processes_do_not_train_in_one_folder(small_run, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="Another process is training"):
        train(small_run.recipe, tmp_path, quiet=True)


def test_a_changed_recipe_does_not_continue_a_run(small_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(small_run.folder, copy)
    changed = small_run.recipe.with_name("changed.toml")
    changed.write_text(small_run.recipe.read_text().replace("features = 16", "features = 8"))
    with pytest.raises(UserError, match="another recipe or data set"):
        train(changed, copy, resume=True, quiet=True)


def test_without_any_ng_the_threshold_keeps_specificity_and_the_fnr_is_said_to_be_unknown(tmp_path):
    render_boards(tmp_path / "boards", boards=12, count_ok=120, count_ng=0, size=32, channels=1)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "ok-only"\ndataset = "boards"\ntarget_specificity = 0.9\n'
        "[image]\nsize = 32\nchannels = 1\n"
        '[detector]\nkind = "ganomaly"\nepochs = 1\n[detector.options]\nfeatures = 4\n'
    )
    point = train_bundle(recipe, tmp_path / "run").manifest.operating_point
    assert point.basis == "specificity"
    assert point.certified_fnr is None
    assert point.passed_ok / point.n_ok >= 0.9
    assert "FNR unknown" in point.statement()


@pytest.mark.parametrize("kind", ["ganomaly", "fanogan", "classifier"])
def test_large_images_are_inspected_in_tiles(tmp_path, kind):
    render_boards(tmp_path / "boards", boards=12, count_ok=30, count_ng=14, size=96, channels=3)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'name = "tiles"\ndataset = "boards"\n'
        "[image]\nsize = 32\nchannels = 1\ntile = 48\nstride = 40\n"
        f'[detector]\nkind = "{kind}"\nepochs = 1\n[detector.options]\nfeatures = 4\n'
        + ("" if kind == "classifier" else "latent = 8\n")
    )
    bundle = train_bundle(recipe, tmp_path / "run")
    score, heatmap = bundle.open("cpu").score(np.zeros((2, 101, 96, 3), np.uint8))
    assert score.shape == (2,)
    assert heatmap.shape == (2, 101, 96)
    assert bundle.manifest.metrics["pixels"] is not None


def test_a_damaged_bundle_is_refused(small_run, tmp_path):
    for name, damage in {
        "model.onnx": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "calibration.csv": lambda data: data.replace(b",NG,", b",OK,", 1),
        "bundle.json": lambda data: data.replace(b'"target_fnr": 0.1,', b'"target_fnr": 0.2,', 1),
    }.items():
        copy = tmp_path / name
        shutil.copytree(small_run.bundle.path, copy)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(damage(content))
        assert (copy / name).read_bytes() != content
        with pytest.raises(BundleError, match=name):
            Bundle.read(copy)


def test_evaluate_prints_json_and_nothing_else_to_stdout(small_run, tmp_path):
    report = tmp_path / "report.html"
    done = process("evaluate", small_run.bundle.path, small_run.dataset, "--json", "--report", report)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["evaluated"] == "test split"
    assert found["metrics"]["n_ng"] > 0
    assert "<svg" in report.read_text()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ('name = "x"\ndataset = "nowhere"\n[detector]\nkind = "ganomaly"\n', "data set 'nowhere'"),
        ('name = "x"\ndataset = "boards"\n[detector]\nkind = "gandalf"\n', "Unknown detector 'gandalf'"),
        (
            'name = "x"\ndataset = "boards"\n[image]\nsize = 65\n[detector]\nkind = "ganomaly"\n',
            "440 images are too small. At least 33×33",
        ),
        ('name = "x"\ndataset = "boards"\n[detector]\nkind = "ganomaly"\nepoch = 1\n', "did you mean 'epochs'"),
    ],
)
def test_a_fault_in_the_recipe_is_one_clear_message_and_exit_code_2(kizu, small_run, tmp_path, recipe, message):
    path = small_run.recipe.with_name(f"{abs(hash(recipe))}.toml")
    path.write_text(recipe)
    done = kizu("train", path, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_a_classifier_trains_on_real_and_synthetic_ng_and_says_how_many(small_run, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset=small_run.dataset) + GENERATOR)
    manifest = train_bundle(recipe, tmp_path / "run", quiet=False).manifest
    assert manifest.dataset.synthetic_ng == 20
    splits = assign_splits(small_run.manifest, 0)
    assert manifest.operating_point.n_ng == sum(row.label == NG for row in splits.calibration)
    said = " ".join(capsys.readouterr().err.split())
    assert "and 20 synthetic NG images" in said
    assert "held out of training to calibrate scores" in said
    ratio = recipe.read_text().replace("features = 4", "features = 4\nsynthetic_ratio = 0")
    recipe.write_text(ratio)
    shutil.rmtree(tmp_path / "run" / "bundle")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    without = train_bundle(recipe, tmp_path / "run", resume=True).manifest
    assert without.dataset.synthetic_ng == 0
    assert without.model_sha256 != manifest.model_sha256


def test_synthetic_rows_of_the_data_set_train_a_classifier(small_run, tmp_path):
    copy = tmp_path / "boards"
    shutil.copytree(small_run.dataset, copy)
    lines = (copy / "manifest.csv").read_text().splitlines()
    first = next(row for row in small_run.manifest.rows if row.label == NG)
    shutil.copy(copy / first.path, copy / "drawn.png")
    commas = "," * (lines[0].count(",") - 1)
    extended = [lines[0] + ",origin", *(line + "," for line in lines[1:]), f"drawn.png,NG{commas},a:b:1"]
    (copy / "manifest.csv").write_text("\n".join(extended) + "\n")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset=copy))
    assert train_bundle(recipe, tmp_path / "run").manifest.dataset.synthetic_ng == 1


def test_a_classifier_without_ng_is_refused(tmp_path):
    render_boards(tmp_path / "boards", boards=12, count_ok=40, count_ng=0, size=32, channels=1)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset="boards"))
    with pytest.raises(UserError, match="has no NG, and 'classifier' learns from them"):
        train(recipe, tmp_path / "run", quiet=True)


RESERVED = """
[generator]
kind = "cutpaste"
count = 12

[splits]
train = 0.4
certification = 0.2
"""


def test_a_certification_split_is_read_once_and_by_the_certificate_alone(small_run, tmp_path, monkeypatch):
    reads: Counter[str] = Counter()
    image = Manifest.image

    def read(manifest, row):
        reads[row.path] += 1
        return image(manifest, row)

    asked: dict[str, Any] = {}

    def choose(*scores, **options):
        asked.update(options, ng=scores[0], ok=scores[1])
        return choose_operating_point(*scores, **options)

    monkeypatch.setattr(Manifest, "image", read)
    monkeypatch.setattr(shipping, "choose_operating_point", choose)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(CLASSIFIER.format(dataset=small_run.dataset) + RESERVED)
    bundle = train_bundle(recipe, tmp_path / "run")
    point, dataset = bundle.manifest.operating_point, bundle.manifest.dataset
    splits = assign_splits(small_run.manifest, 0, (0.4, 0.2, 0.2), 0.2)
    assert dataset.split_fingerprint == splits.fingerprint
    assert dataset.counts == splits.counts
    reserved = {row.path for row in splits.certification}
    assert {path: reads[path] for path in reserved} == dict.fromkeys(reserved, 1)
    assert asked["draw_key"] == dataset.fingerprint
    assert asked["ng_groups"] == [row.group for row in splits.certification if row.label == NG]
    assert point.certified_on == "certification"
    assert point.n_ng == sum(row.label == NG for row in splits.certification)
    assert point.n_ok == sum(row.label == OK for row in splits.certification)
    assert "nothing else has read them" in point.statement()
    assert bundle.calibration is not None
    kept = bundle.calibration.of("certification")
    assert sorted(kept.ng) == sorted(asked["ng"])
    assert sorted(kept.ok) == sorted(asked["ok"])
    assert sorted(kept.ng_groups) == sorted(asked["ng_groups"])
    with (tmp_path / "run" / "scores.csv").open(newline="", encoding="utf-8") as file:
        shown = {line["path"] for line in csv.DictReader(file)}
    assert not shown & reserved
    whole = evaluate_bundle(bundle, small_run.manifest, split="all", device="cpu").scored.rows
    assert {row.path for row in whole} == {row.path for row in small_run.manifest.rows if row.label} - reserved


def test_without_a_certification_split_the_statement_says_what_the_ng_were_used_for(small_run):
    assert small_run.bundle.manifest.operating_point.certified_on == "calibration"
    assert "also looked at" in small_run.bundle.manifest.operating_point.statement()


def test_the_certificate_rests_on_one_ng_of_each_board(small_run):
    point = small_run.bundle.manifest.operating_point
    rows = [row for row in assign_splits(small_run.manifest, 0).calibration if row.label == NG]
    assert point.independence == "groups"
    assert point.n_independent == len({row.group for row in rows}) < point.n_ng
    session = small_run.bundle.open("cpu")
    scores = session.score(np.stack([small_run.manifest.image(row) for row in rows]))[0]
    drawn = draw_independent(scores, [row.group for row in rows], small_run.bundle.manifest.dataset.fingerprint)
    assert point.threshold <= drawn[(point.rank or 0) - 1]


SEVERAL = """\
name = "two"
dataset = "boards"
target_fnr = 0.10
combine = "max"

[image]
size = 32
channels = 1

[[detector]]
kind = "ganomaly"
epochs = 1
options = { features = 8, score = "peak" }

[[detector]]
kind = "classifier"
epochs = 1
options = { features = 8, blocks = 1 }
"""


def test_several_detectors_make_one_bundle_whose_scores_are_combined_ranks(small_run, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(SEVERAL.replace('"boards"', f'"{small_run.dataset}"'))
    bundle = train_bundle(recipe, tmp_path / "run")
    splits = assign_splits(small_run.manifest, 0)
    # One of the two has learned from the train split's NG, so only calibration's are unseen.
    assert bundle.manifest.operating_point.n_ng == sum(row.label == NG for row in splits.calibration)
    assert bundle.manifest.parity.score <= 1e-4
    assert [d["kind"] for d in bundle.manifest.recipe["detector"]] == ["ganomaly", "classifier"]
    assert (tmp_path / "run" / "detector-1" / "checkpoint.pt").exists()
    held = hold_out_ok(splits.train, 0)
    assert len(held) == 20
    scores = bundle.open("cpu").score(np.stack([small_run.manifest.image(row) for row in held]))[0]
    # The larger of two ranks: half of the images or fewer lie under rank 1/2, all ranks of OK images end at 1.
    assert scores.max() == pytest.approx(1.0, abs=1e-3)
    assert (scores < 0.5).mean() <= 0.5
    shutil.rmtree(tmp_path / "run" / "bundle")
    assert train_bundle(recipe, tmp_path / "run", resume=True).manifest.model_sha256 == bundle.manifest.model_sha256


def test_detectors_alike_start_apart_whatever_their_number(small_run, tmp_path):
    section = SEVERAL[SEVERAL.rindex("[[detector]]") :]
    text = SEVERAL[: SEVERAL.index("[[detector]]")].replace('"boards"', f'"{small_run.dataset}"')
    weights = {}
    for name, sections in (("twice", 2), ("thrice", 3)):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(text + section * sections)
        train(recipe, tmp_path / name, quiet=True)
        for found in (tmp_path / name).rglob("checkpoint.pt"):
            state = torch.load(found, weights_only=True)
            weights[f"{name}/{found.parent.name}"] = state["networks"]["average.head.weight"]
    assert torch.equal(weights["thrice/detector-1"], weights["twice/detector-1"])
    assert not torch.equal(weights["twice/detector-2"], weights["twice/detector-1"])


def test_what_ranks_are_fitted_on_trains_no_detector_and_no_generator(small_run, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.toml"
    text = SEVERAL.replace('"boards"', f'"{small_run.dataset}"') + '[generator]\nkind = "cutpaste"\ncount = 8\n'
    recipe.write_text(text)
    run = open_run(read_recipe(recipe), small_run.manifest, tmp_path / "run", tmp_path, RunLog(None, quiet=True))
    held = {row.path for row in run.ranking}
    assert held < {row.path for row in run.splits.train if row.label == OK}
    reads: Counter[str] = Counter()
    image, fitted = Manifest.image, RankScale.fitted
    before_ranks: list[Counter[str]] = []

    def read(manifest, row):
        reads[row.path] += 1
        return image(manifest, row)

    def fit(scores):
        before_ranks.append(Counter(reads))
        return fitted(scores)

    monkeypatch.setattr(Manifest, "image", read)
    monkeypatch.setattr(RankScale, "fitted", fit)
    train_bundle(recipe, tmp_path / "run")
    # Scored once by each detector by then, and read for nothing else.
    assert [{path: read[path] for path in held} for read in before_ranks] == [
        dict.fromkeys(held, 1),
        dict.fromkeys(held, 2),
    ]
    assert {path: reads[path] for path in held} == dict.fromkeys(held, 2)
