from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from kizu.models.bundle import Bundle, DatasetReference, InputGeometry, Parity, new_manifest, write_bundle
from kizu.models.calibration import CalibrationScores
from kizu.models.operating_point import OperatingPoint, choose_operating_point
from kizu.training.data.manifest import Box, Manifest, Row
from kizu.training.data.splits import assign_splits

GEOMETRY = InputGeometry(height=32, width=32, channels=1)


def brightness(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The scorer of these tests: heatmap = brightest channel in [0, 1], score = its maximum."""
    heatmap = images.max(axis=-1).astype(np.float32) / np.float32(255)
    return heatmap.max(axis=(1, 2)), heatmap


def brightness_model() -> bytes:
    """`brightness` as a graph."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", "C"])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])
    heatmap = helper.make_tensor_value_info("heatmap", TensorProto.FLOAT, ["N", "h", "w"])
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["values", "full"], ["scaled"]),
        helper.make_node("ReduceMax", ["scaled", "channel"], ["heatmap"], keepdims=0),
        helper.make_node("ReduceMax", ["heatmap", "plane"], ["score"], keepdims=0),
    ]
    constants = [
        helper.make_tensor("full", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("channel", TensorProto.INT64, [1], [3]),
        helper.make_tensor("plane", TensorProto.INT64, [2], [1, 2]),
    ]
    graph = helper.make_graph(nodes, "brightness", [image], [score, heatmap], constants)
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


MakeData = Callable[..., Manifest]


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """A data set of grey noise, where each NG has a bright square with a mask (or, every third, boxes)."""

    def make(ok: int = 12, ng: int = 9, *, name: str = "data", size: int = 40, split: str = "") -> Manifest:
        root = tmp_path / name
        root.mkdir()
        rng = np.random.default_rng(len(name))
        rows = []
        for i in range(ok + ng):
            image = rng.integers(40, 120, (size, size)).astype(np.uint8)
            row = Row(f"{i:03d}.png", "OK", split=split)
            if i >= ok:
                x, y = rng.integers(2, size - 12, 2)
                image[y : y + 8, x : x + 6] = 140 + 5 * (i - ok)
                defect = ("scratch", "dent")[i % 2]
                if i % 3:
                    mask = np.zeros((size, size), dtype=np.uint8)
                    mask[y : y + 8, x : x + 6] = 255
                    Image.fromarray(mask).save(root / f"mask_{i:03d}.png")
                    row = Row(row.path, "NG", defect, split=split, mask=f"mask_{i:03d}.png")
                else:
                    box = Box(float(x), float(y), float(x + 6), float(y + 8), defect)
                    row = Row(row.path, "NG", defect, split=split, boxes=(box,))
            Image.fromarray(image).save(root / row.path)
            rows.append(row)
        manifest = Manifest(root, rows)
        manifest.write()
        return Manifest.read(root)

    return make


def point(threshold: float = 0.5, review: float | None = None) -> OperatingPoint:
    chosen = choose_operating_point(np.full(60, threshold, dtype=np.float32), [0.1, 0.2], target_fnr=0.05)
    return chosen.model_copy(update={"review_threshold": threshold if review is None else review})


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """A bundle around `brightness`, trained, so it says, on `manifest`."""

    def make(manifest: Manifest, **recipe: object) -> Bundle:
        model = brightness_model()
        shares = recipe.get("splits", {"train": 0.6, "calibration": 0.2, "test": 0.2})
        assert isinstance(shares, dict)
        splits = assign_splits(manifest, 3, (shares["train"], shares["calibration"], shares["test"]))
        fields = new_manifest(
            model,
            CalibrationScores(),
            recipe={"name": "plates", "seed": 3, **recipe},
            geometry=GEOMETRY,
            operating_point=point(),
            dataset=DatasetReference(
                fingerprint=manifest.fingerprint(), split_fingerprint=splits.fingerprint, counts=splits.counts
            ),
            metrics={},
            parity=Parity(images=5, score=1e-7, heatmap=2e-7, verdicts_differing=0),
        )
        return write_bundle(tmp_path / "bundle", model, CalibrationScores(), fields, "<p>report</p>")

    return make
