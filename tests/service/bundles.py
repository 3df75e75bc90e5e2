"""Real, small bundles: the score is the brightest pixel's value in [0, 1], the heatmap each pixel's.

The largest value, rather than a mean, so that scores are exact in any batch.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image

from kizu.models.bundle import (
    CALIBRATION_FILE,
    MANIFEST_FILE,
    Bundle,
    DatasetReference,
    InputGeometry,
    Parity,
    new_manifest,
    write_bundle,
)
from kizu.models.calibration import CalibrationScore, CalibrationScores
from kizu.models.operating_point import VERDICT_MARGIN, CertifyingSplit, OperatingPoint, choose_operating_point

THRESHOLD = 0.5
SIDE = 16


def brightness_graph(not_a_number_from: float = 9.0, *, embeds: bool = False) -> bytes:
    """score = max over pixels of mean over channels, / 255; NaN where that is above `not_a_number_from`.

    The embedding, where it has one, is the least and the mean of the heatmap.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Constant", [], ["white"], value_float=255.0),
        helper.make_node("Div", ["pixels", "white"], ["unit"]),
        helper.make_node("ReduceMean", ["unit"], ["heatmap"], axes=[3], keepdims=0),
        helper.make_node("ReduceMax", ["heatmap"], ["largest"], axes=[1, 2], keepdims=0),
        helper.make_node("Constant", [], ["limit"], value_float=not_a_number_from),
        helper.make_node("Greater", ["largest", "limit"], ["beyond"]),
        helper.make_node("Constant", [], ["nan"], value_float=float("nan")),
        helper.make_node("Where", ["beyond", "nan", "largest"], ["score"]),
    ]
    outputs = [
        helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["N", "h", "w"]),
    ]
    if embeds:
        nodes += [
            helper.make_node("ReduceMin", ["heatmap"], ["least"], axes=[1, 2], keepdims=0),
            helper.make_node("ReduceMean", ["heatmap"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Constant", [], ["second"], value_ints=[1]),
            helper.make_node("Unsqueeze", ["least", "second"], ["column 1"]),
            helper.make_node("Unsqueeze", ["mean", "second"], ["column 2"]),
            helper.make_node("Concat", ["column 1", "column 2"], ["embedding"], axis=1),
        ]
        outputs.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["N", 2]))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", "C"])
    graph = helper.make_graph(nodes, "brightness", [image], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def calibration(threshold: float = THRESHOLD) -> CalibrationScores:
    """100 NG that all score exactly `threshold`, and 50 OK below."""
    ng, ok = np.full(100, threshold, np.float32), np.linspace(0, threshold * 0.9, 50, dtype=np.float32)
    rows = [("NG", score) for score in ng.tolist()] + [("OK", score) for score in ok.tolist()]
    return CalibrationScores(tuple(CalibrationScore("calibration", label, "", score) for label, score in rows))


def operating_point(threshold: float = THRESHOLD, review_threshold: float | None = None) -> OperatingPoint:
    """Certified on `calibration`."""
    scores = calibration(threshold)
    chosen = choose_operating_point(scores.ng, scores.ok, target_fnr=0.05, confidence=0.95)
    return chosen.model_copy(update={"review_threshold": review_threshold or chosen.threshold})


def certified_on(scores: CalibrationScores, target_fnr: float = 0.05) -> OperatingPoint:
    """The operating point that a run would choose from these scores."""
    split: CertifyingSplit = "certification" if scores.of("certification").rows else "calibration"
    certifying = scores.of(split)
    return choose_operating_point(
        certifying.ng,
        certifying.ok,
        target_fnr=target_fnr,
        tolerance=VERDICT_MARGIN,
        ng_groups=certifying.ng_groups,
        draw_key="f" * 64,
        certified_on=split,
        other_scores=[row.score for row in scores.rows],
    )


def make_bundle(
    path: Path,
    recipe: str = "boards",
    *,
    threshold: float = THRESHOLD,
    review_threshold: float | None = None,
    geometry: InputGeometry | None = None,
    graph: bytes | None = None,
    metrics: dict[str, object] | None = None,
    scores: CalibrationScores | None = None,
) -> Bundle:
    """A bundle on disk, its operating point from `scores` if given, else at `threshold`."""
    model = graph or brightness_graph()
    kept = calibration(threshold) if scores is None else scores
    manifest = new_manifest(
        model,
        kept,
        recipe={"name": recipe, "detector": {"kind": "brightness"}},
        geometry=geometry or InputGeometry(height=SIDE, width=SIDE, channels=1),
        operating_point=operating_point(threshold, review_threshold) if scores is None else certified_on(scores),
        dataset=DatasetReference(fingerprint="f" * 64, split_fingerprint="e" * 64, counts={}),
        metrics=metrics or {"auroc": 1.0},
        parity=Parity(images=1, score=0.0, heatmap=0.0, verdicts_differing=0),
    )
    return write_bundle(path, model, kept, manifest, "<html></html>")


def picture(
    value: int = 0, *, size: tuple[int, int] = (SIDE, SIDE), kind: str = "PNG", mode: str = "L", seed: int | None = None
) -> bytes:
    """An image file whose brightest pixel is `value`; with a seed, no two are alike."""
    width, height = size
    pixels = np.zeros((height, width), np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, max(value, 1), (height, width), dtype=np.uint8)
    pixels[height // 2, width // 2] = value
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


def as_schema_1(path: Path) -> Path:
    """Rewrite a bundle as Kizu 0.1 wrote it: without calibration scores and the fields that came with them."""
    content = json.loads((path / MANIFEST_FILE).read_bytes())
    for later in ("digest", "calibration_sha256", "pretrained"):
        content.pop(later)
    content["schema_version"] = 1
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(canonical).hexdigest()
    (path / MANIFEST_FILE).write_text(json.dumps(content | {"digest": digest}, indent=2))
    (path / CALIBRATION_FILE).unlink()
    return path
