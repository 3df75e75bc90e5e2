"""int8 graphs: what is rounded and what is not, and that threshold and certificate are of the graph that ships."""

from __future__ import annotations

import csv
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from kizu.errors import UserError
from kizu.models.backbones import BackboneConfig, FeatureDetector, PretrainedBackbone
from kizu.models.bundle import Bundle, InputGeometry, Session
from kizu.models.inspector import Inspector
from kizu.models.operating_point import VERDICT_MARGIN, choose_operating_point
from kizu.training import shipping
from kizu.training.data.manifest import NG, OK, Manifest
from kizu.training.data.render import render_boards
from kizu.training.data.splits import assign_splits
from kizu.training.evaluation.evaluate import evaluate_bundle
from kizu.training.evaluation.ranking import auroc
from kizu.training.evaluation.scoring import score_rows
from kizu.training.export import export_onnx, one_by_one
from kizu.training.progress import RunLog
from kizu.training.quantisation import backbone_names, fold_batch_norms, plain_scorer, quantise
from kizu.training.recipe import parse_recipe, read_recipe
from kizu.training.run import open_run
from tests.service.conftest import inspected, upload
from tests.service.processes import Server

from .conftest import train_bundle

RECIPE = """\
name = "small-int8"
dataset = "boards"
target_fnr = 0.10

[image]
size = 64
channels = 1

[detector]
kind = "memory"

[detector.options]
memory = 100
least_side = 64

[export]
quantise = "int8"
"""


class Mean(FeatureDetector):
    """A detector that looks at every map, and has a convolution of its own."""

    def __init__(self, backbone):
        super().__init__(backbone)
        self.head = torch.nn.Conv2d(backbone.widths[8], 1, 1)

    def detect(self, levels):
        heat = self.head(levels[8])
        return sum(level.mean((1, 2, 3)) for level in levels.values()) + heat.mean((1, 2, 3)), self.on_image(heat)


@pytest.fixture(scope="module")
def inspector():
    torch.manual_seed(0)
    backbone = PretrainedBackbone(BackboneConfig(64, 64, 1, least_side=64))
    for module in backbone.modules():  # statistics that a folded batch normalisation has to keep
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return Inspector(Mean(backbone), InputGeometry(height=64, width=64, channels=1)).eval()


@pytest.fixture(scope="module")
def images():
    return [np.random.default_rng(i).integers(0, 256, (64, 64, 1), dtype=np.uint8) for i in range(4)]


@pytest.fixture(scope="module")
def model(inspector):
    return export_onnx(inspector)


@pytest.fixture(scope="module")
def quantised(inspector, model, images):
    return quantise(model, backbone_names(inspector), images)


def graph_of(model):
    return onnx.load_model_from_string(model).graph


def producers(graph):
    return {name: node for node in graph.node for name in node.output}


def in_int8(graph):
    """Names of the weights of the convolutions that take 8 bits."""
    made_by = producers(graph)
    return {
        made_by[node.input[1]].input[0]
        for node in graph.node
        if node.op_type == "Conv" and node.input[1] in made_by and made_by[node.input[1]].op_type == "DequantizeLinear"
    }


def test_convolutions_of_the_backbone_take_8_bits_but_the_finest_and_the_head(quantised, model):
    graph = graph_of(quantised.model)
    rounded = in_int8(graph)
    assert len(rounded) == quantised.convolutions == quantised.of - 4
    assert sum(node.op_type == "Conv" for node in graph_of(model).node) == quantised.of + 1
    assert not any("head" in name or "conv_stem" in name or "blocks.0.0" in name for name in rounded)
    assert any("blocks.6.0" in name for name in rounded)


def test_the_graph_stays_one_standard_file_that_takes_pixels_and_gives_floats(quantised):
    proto = onnx.load_model_from_string(quantised.model)
    assert {node.domain for node in proto.graph.node} == {opset.domain for opset in proto.opset_import} == {""}
    assert not proto.metadata_props
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {output.type.tensor_type.elem_type for output in proto.graph.output} == {onnx.TensorProto.FLOAT}
    assert [output.name for output in proto.graph.output] == ["score", "heatmap", "embedding"]
    onnx.checker.check_model(proto, full_check=True)


def test_the_same_images_give_the_same_file(inspector, model, images, quantised):
    assert quantise(model, backbone_names(inspector), images).model == quantised.model


def test_scores_stay_near_and_do_not_depend_on_the_batch(quantised, model, images):
    batch = np.stack(images)
    session, floats = Session(quantised.model, "cpu"), Session(model, "cpu")
    scores, heatmaps = session.score(batch)
    alone, heatmaps_alone = one_by_one(session.score)(batch)
    np.testing.assert_allclose(scores, alone, rtol=1e-4)
    np.testing.assert_allclose(heatmaps, heatmaps_alone, rtol=1e-3, atol=1e-4)
    expected, _ = floats.score(batch)
    assert 0 < np.abs(scores - expected).max() < 0.1 * np.abs(expected).max()
    plain, _ = plain_scorer(quantised.model)(batch)
    assert np.abs(scores - plain).max() < 0.1 * np.abs(expected).max()


def test_a_folded_batch_normalisation_changes_no_score(model, images):
    proto = onnx.load_model_from_string(model)
    fold_batch_norms(proto.graph)
    assert not any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    onnx.checker.check_model(proto, full_check=True)
    batch = np.stack(images)
    for folded, own in zip(
        Session(proto.SerializeToString(), "cpu").score(batch), Session(model, "cpu").score(batch), strict=True
    ):
        np.testing.assert_allclose(folded, own, rtol=1e-4, atol=1e-4)


def test_a_graph_without_a_backbone_is_refused(model, images):
    with pytest.raises(ValueError, match="no convolution of a pretrained backbone"):
        quantise(model, (), images)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that ships an int8 graph, its folder and data; however small, whatever the graph loses by it."""
    root = tmp_path_factory.mktemp("int8")
    manifest = render_boards(root / "boards", boards=10, count_ok=80, count_ng=60, size=64, channels=1)
    (root / "recipe.toml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "LARGEST_FALL", 1.0)
        bundle = train_bundle(root / "recipe.toml", root / "run")
    return root, manifest, bundle


def calibrating(manifest):
    """Rows that calibrate a detector that learns from OK alone, in no particular order."""
    splits = assign_splits(manifest, 0)
    return [row for row in splits.calibration if row.label]


def test_threshold_and_certificate_are_of_the_graph_that_ships(run):
    _, manifest, bundle = run
    assert in_int8(graph_of(bundle.model))
    scored = score_rows(bundle.open("cpu").score, bundle.manifest.geometry, manifest, calibrating(manifest))
    point = bundle.manifest.operating_point
    expected = choose_operating_point(
        scored.ng,
        scored.ok,
        target_fnr=0.10,
        confidence=0.95,
        target_specificity=0.99,
        review_band=0.02,
        tolerance=VERDICT_MARGIN,
        ng_groups=[row.group for row in scored.rows if row.label == NG],
        draw_key=manifest.fingerprint(),
        certified_on="calibration",
        other_scores=scored.scores,
    )
    assert point == expected
    assert bundle.calibration is not None
    assert sorted(entry.score for entry in bundle.calibration.rows) == sorted(scored.scores.tolist())


def test_the_bundle_says_how_far_it_is_from_float32(run):
    _, manifest, bundle = run
    found = bundle.manifest.quantisation
    assert found is not None
    assert found.applied
    assert (found.convolutions, found.backbone_convolutions) == (29, 33)  # up to stride 16
    scored = score_rows(bundle.open("cpu").score, bundle.manifest.geometry, manifest, calibrating(manifest))
    ranks = auroc(scored.ng, scored.ok)
    assert ranks is not None
    assert found.auroc == pytest.approx(ranks.value)
    assert found.images == len(scored.rows)
    assert 1e-4 < found.difference < 1
    assert found.batch_difference <= 1e-4
    assert 0 <= found.plain_difference < 1
    assert 0 < found.plain_images <= shipping.PLAIN_IMAGES
    assert bundle.manifest.parity.within(1e-4)  # of the float32 graph with torch
    report = bundle.report.read_text(encoding="utf-8")
    assert found.statement() in report
    assert "before it was quantised" in report


def test_it_can_be_evaluated_and_given_another_threshold(run, kizu, tmp_path):
    root, manifest, bundle = run
    found = evaluate_bundle(bundle, manifest, device="cpu")
    with (root / "run" / "scores.csv").open(newline="", encoding="utf-8") as file:
        tested = {line["path"]: float(line["score"]) for line in csv.DictReader(file) if line["set"] == "test"}
    assert {row.path: score for row, score in zip(found.scored.rows, found.scored.scores.tolist(), strict=True)} == (
        pytest.approx(tested)
    )
    done = kizu("threshold", bundle.path, "--specificity", "0.9", "--out", tmp_path / "other", "--json")
    assert done.returncode == 0, done.stderr
    other = Bundle.read(tmp_path / "other")
    assert other.model == bundle.model
    assert other.manifest.quantisation == bundle.manifest.quantisation


def test_it_stays_on_the_cpu_unless_told_otherwise(run, monkeypatch):
    asked = []

    class Watched(Session):
        def __init__(self, model, device="auto", *others):
            asked.append(device)
            super().__init__(model, "cpu", *others)

    monkeypatch.setattr("kizu.models.bundle.Session", Watched)
    _, _, bundle = run
    bundle.open()
    bundle.open("cuda")
    floats = Bundle(bundle.path, bundle.manifest.model_copy(update={"quantisation": None}), bundle.model, None)
    floats.open()
    assert asked == ["cpu", "cuda", "auto"]


def test_the_service_scores_by_it(run, tmp_path):
    _, manifest, bundle = run
    server = Server(tmp_path)
    try:
        upload(server.start(), bundle.path, promote=True)
        row = next(row for row in manifest.rows if row.label == NG)
        answer = inspected(server, "small-int8", (manifest.root / row.path).read_bytes())
    finally:
        server.stop()
    expected, _ = bundle.open("cpu").score(manifest.image(row)[None])
    assert answer["score"] == pytest.approx(float(expected[0]), rel=1e-4)


def test_reserved_parts_are_read_once_by_the_graph_that_ships(run, tmp_path, monkeypatch):
    root, manifest, _ = run
    reads: Counter[str] = Counter()
    image = Manifest.image

    def read(self, row):
        reads[row.path] += 1
        return image(self, row)

    monkeypatch.setattr(Manifest, "image", read)
    monkeypatch.setattr(shipping, "LARGEST_FALL", 1.0)
    reserving = "\n[splits]\ntrain = 0.4\ncalibration = 0.2\ntest = 0.2\ncertification = 0.2\n"
    (root / "reserving.toml").write_text(RECIPE + reserving)
    bundle = train_bundle(root / "reserving.toml", tmp_path / "run")
    assert bundle.manifest.quantisation is not None
    assert bundle.manifest.quantisation.applied
    reserved = assign_splits(manifest, 0, (0.4, 0.2, 0.2), 0.2).certification
    assert {row.path: reads[row.path] for row in reserved} == {row.path: 1 for row in reserved}
    assert bundle.manifest.operating_point.certified_on == "certification"
    scored = score_rows(bundle.open("cpu").score, bundle.manifest.geometry, manifest, reserved)
    assert bundle.calibration is not None
    kept = bundle.calibration.of("certification")
    assert sorted(kept.ng.tolist()) == pytest.approx(sorted(scored.ng.tolist()), rel=1e-4)


def test_a_graph_that_ranks_worse_does_not_ship(run, tmp_path, monkeypatch):
    root, *_ = run
    shutil.copytree(root / "boards", tmp_path / "boards")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    # Ranges of black images cut off nearly all that others show.
    monkeypatch.setattr(shipping, "_range_images", lambda _: [np.zeros((64, 64, 1), np.uint8)])
    bundle = train_bundle(tmp_path / "recipe.toml", tmp_path / "run")
    assert not in_int8(graph_of(bundle.model))
    found = bundle.manifest.quantisation
    assert found is not None
    assert not found.applied
    assert found.auroc is not None
    assert found.float_auroc is not None
    assert found.float_auroc - found.auroc > shipping.LARGEST_FALL
    assert "its AUROC falls by" in found.statement()
    assert found.statement() in bundle.report.read_text(encoding="utf-8")
    assert bundle.calibration is not None
    manifest = run[1]
    scored = score_rows(bundle.open("cpu").score, bundle.manifest.geometry, manifest, calibrating(manifest))
    assert sorted(entry.score for entry in bundle.calibration.rows) == pytest.approx(sorted(scored.scores.tolist()))


def test_ranges_come_from_ok_images_that_train(run, tmp_path):
    root, manifest, _ = run
    recipe = read_recipe(root / "recipe.toml")
    opened = open_run(recipe, manifest, tmp_path, root, RunLog(None, quiet=True))
    images = {image.tobytes() for image in shipping._range_images(opened)}
    ok = {manifest.image(row).tobytes() for row in opened.splits.train if row.label == OK}
    assert 0 < len(images) <= shipping.RANGE_IMAGES
    assert images <= ok


def test_another_precision_is_refused():
    with pytest.raises(UserError, match=r"export\.quantise"):
        parse_recipe({"name": "part", "dataset": "data", "export": {"quantise": "int4"}}, "here")
    with pytest.raises(UserError, match="quantise"):
        parse_recipe({"name": "part", "dataset": "data", "export": {"quantize": "int8"}}, "here")


def test_a_detector_without_a_pretrained_backbone_is_refused_before_it_trains(run, tmp_path):
    root, *_ = run
    recipe = RECIPE.replace('"memory"', '"ganomaly"').replace("memory = 100\nleast_side = 64", "features = 4")
    (root / "other.toml").write_text(recipe)
    with pytest.raises(UserError, match="is for pretrained backbones, and 'ganomaly' has none"):
        train_bundle(root / "other.toml", tmp_path / "run")
