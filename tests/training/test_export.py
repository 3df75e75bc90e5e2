"""The exported graph against torch, for every detector and geometry."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import kizu.models
from kizu.models.bundle import InputGeometry, Session
from kizu.models.inspector import Inspector
from kizu.models.operating_point import choose_operating_point
from kizu.training.detectors import DETECTORS
from kizu.training.export import ParityCheck, ParityError, export_onnx, relative_difference, torch_scorer

GEOMETRIES = {
    "whole-grey": InputGeometry(height=32, width=32, channels=1),
    "whole-oblong-rgb": InputGeometry(height=48, width=80, channels=3, enlarge=2),
    "letterboxed": InputGeometry(height=48, width=80, channels=1, fit="letterbox", enlarge=2),
    "tiles": InputGeometry(height=32, width=32, channels=1, tile=32, stride=24),
    "resized-tiles-rgb": InputGeometry(height=32, width=32, channels=3, tile=50, stride=50),
}


@pytest.fixture(scope="module")
def make_inspector(small_method):
    def make(kind, geometry, score="peak"):
        options = {"score": score} if kind in ("ganomaly", "fanogan") else {}
        return Inspector(small_method(kind, geometry, **options).detector(), geometry).eval()

    return make


# Geometry is the same graph before every detector: one kind meets all of it, the others the two that differ most.
TWO = ("whole-oblong-rgb", "resized-tiles-rgb")
CASES = [("ganomaly", name, "peak") for name in GEOMETRIES]
CASES += [(kind, name, "peak") for kind in DETECTORS if kind != "ganomaly" for name in TWO]
PUBLISHED = {"ganomaly": "latent", "fanogan": "izi_f"}
"""Scores of the papers, which are of other layers than the heatmap and its peak."""
CASES += [(kind, "whole-oblong-rgb", score) for kind, score in PUBLISHED.items()]


@pytest.mark.parametrize(("kind", "name", "score"), CASES)
def test_onnx_and_torch_agree_on_any_number_size_and_colour_of_images(make_inspector, kind, name, score):
    geometry = GEOMETRIES[name]
    inspector = make_inspector(kind, geometry, score)
    exported, reference = Session(export_onnx(inspector), "cpu"), torch_scorer(inspector)
    random = np.random.default_rng(0)
    least = geometry.min_height, geometry.min_width
    own = geometry.min_height * 2, geometry.min_width * 2
    shapes = [(1, *least, 1), (3, least[0] + 1, least[1], 3), (2, *own, 3), (2, 131, 95, 1), (1, 200, 300, 3)]
    shapes += [(1, 7, 500, 1), (2, 500, 7, 3)] if geometry.fit == "letterbox" else []
    for shape in shapes:
        images = random.integers(0, 256, shape, dtype=np.uint8)
        scores, heatmap = exported.score(images)
        expected_scores, expected_heatmap = reference(images)
        assert scores.shape == (shape[0],)
        assert heatmap.shape == expected_heatmap.shape
        assert scores.dtype == heatmap.dtype == np.float32
        assert relative_difference(scores, expected_scores) < 1e-5
        assert relative_difference(heatmap, expected_heatmap) < 1e-4


def test_the_graph_is_one_file_with_standard_operators_and_named_free_axes(make_inspector):
    model = onnx.load_model_from_string(export_onnx(make_inspector("ganomaly", GEOMETRIES["tiles"])))
    assert {node.domain for node in model.graph.node} <= {""}
    (image,) = model.graph.input
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [axis.dim_param for axis in image.type.tensor_type.shape.dim] == ["N", "H", "W", "C"]
    assert [output.name for output in model.graph.output] == ["score", "heatmap"]
    assert not model.functions
    onnx.checker.check_model(model, full_check=True)


def test_the_graph_tells_nothing_of_the_machine_that_exported_it(make_inspector):
    content = export_onnx(make_inspector("memory", GEOMETRIES["tiles"]))
    assert str(Path(kizu.models.__path__[0])).encode() not in content
    assert b"site-packages" not in content
    assert b"Traceback" not in content
    assert b'.py"' not in content
    assert export_onnx(make_inspector("memory", GEOMETRIES["tiles"])) == content


def scorer(offset):
    def score(images):
        scores = images.mean((1, 2, 3), dtype=np.float32) * np.float32(1 + offset)
        return scores, images[..., 0].astype(np.float32)

    return score


def test_a_graph_that_strays_by_more_than_1e_4_is_not_shipped():
    images = np.random.default_rng(0).integers(1, 256, (8, 4, 4, 1), dtype=np.uint8)
    point = choose_operating_point([1e6], [0.0], target_fnr=0.5)
    for offset, fails in ((0.0, False), (5e-5, False), (3e-4, True)):
        check = ParityCheck(scorer(offset), scorer(0))
        check.score(images)
        if fails:
            with pytest.raises(ParityError, match=r"scores by 3\.0e-04"):
                check.result(point)
        else:
            assert check.result(point).score == pytest.approx(offset, abs=2e-6)


def test_a_graph_that_changes_a_single_verdict_is_not_shipped():
    images = np.full((1, 4, 4, 1), 100, dtype=np.uint8)
    point = choose_operating_point([100.0], [0.0], target_fnr=0.5)
    check = ParityCheck(scorer(-5e-5), scorer(0))
    check.score(images)
    with pytest.raises(ParityError, match="1 of 1 verdicts"):
        check.result(point)
