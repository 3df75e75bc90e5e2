"""Export from torch to ONNX, with a check that both give the same scores.

Notable here:
- The whole inspector is traced, preprocessing and tiling included, with every size free.
- The same detector gives the same file on every machine: nothing of the exporting machine is in it.
- Parity is checked on real calibration images through the real decoder, down to the verdicts; a bundle that fails it is
  never written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import onnx_ir
import torch
from numpy.typing import NDArray
from torch.export import Dim

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry, Parity, ScoreFunction
from kizu.models.inspector import Inspector
from kizu.models.operating_point import OperatingPoint, median_size

OPSET = 20
RELATIVE_TOLERANCE = 1e-4


class ParityError(UserError):
    """Scores of the exported graph differ from torch's."""

    exit_code = 4


def export_onnx(inspector: Inspector) -> bytes:
    """Export the inspector as one self-contained ONNX file.

    Raises:
        RuntimeError: the exporter met something that it cannot express.
    """
    geometry: InputGeometry = inspector.geometry.geometry
    # Large enough that no free size takes a special value such as "exactly one tile".
    shape = (2, geometry.min_height * 2 + 3, geometry.min_width * 2 + 5, 3)
    example = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inspector = inspector.to("cpu").eval()
    with TemporaryDirectory() as folder, _quiet_exporter():
        path = Path(folder) / "model.onnx"
        program = torch.onnx.export(
            inspector,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["score", "heatmap", "embedding"][: 3 if inspector.embeds else 2],
            dynamic_shapes=(dict.fromkeys(range(4), Dim.DYNAMIC),),
            external_data=False,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("the ONNX exporter returned nothing")
        _name_axes(program.model, geometry)
        _remove_traces(program.model)
        program.save(path, external_data=False)
        return path.read_bytes()


def torch_scorer(inspector: Inspector, device: torch.device | str = "cpu") -> ScoreFunction:
    """Wrap the inspector as a function of arrays, for comparison with the exported graph."""
    inspector = inspector.to(device).eval()

    @torch.no_grad()
    def score(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, heatmaps, *_ = inspector(torch.from_numpy(np.ascontiguousarray(images)).to(device))
        return scores.float().cpu().numpy(), heatmaps.float().cpu().numpy()

    return score


class ParityCheck:
    """Compares two scorers image by image while one of them is used."""

    def __init__(self, exported: ScoreFunction, reference: ScoreFunction):
        self._exported, self._reference = exported, reference
        self._pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        self._heatmap = 0.0

    def score(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Score by the exported graph; the reference's scores are kept for `result`."""
        scores, heatmaps = self._exported(images)
        expected_scores, expected_heatmaps = self._reference(images)
        self._pairs.append((scores, expected_scores))
        self._heatmap = max(self._heatmap, relative_difference(heatmaps, expected_heatmaps))
        return scores, heatmaps

    def measured(self, operating_point: OperatingPoint) -> Parity:
        """Return the largest differences, whatever they are."""
        exported = np.concatenate([pair[0] for pair in self._pairs])
        expected = np.concatenate([pair[1] for pair in self._pairs])
        differing = sum(
            operating_point.verdict(a) != operating_point.verdict(b)
            for a, b in zip(exported.tolist(), expected.tolist(), strict=True)
        )
        return Parity(
            images=len(exported),
            score=largest_difference(exported, expected),
            heatmap=self._heatmap,
            verdicts_differing=differing,
        )

    def result(self, operating_point: OperatingPoint) -> Parity:
        """Return the largest differences.

        Raises:
            ParityError: scores differ by more than 1e-4 relative, or of their median size where that is larger, or any
                verdict differs.
        """
        parity = self.measured(operating_point)
        if not parity.within(RELATIVE_TOLERANCE):
            raise ParityError(
                f"The exported graph differs from torch: scores by {parity.score:.1e}, heatmaps by "
                f"{parity.heatmap:.1e} relative, {parity.verdicts_differing} of {parity.images} verdicts. No bundle "
                "was written.",
                "This is a fault in Kizu or in a library's new version, not in the data: please report it.",
            )
        return parity


def one_by_one(score: ScoreFunction) -> ScoreFunction:
    """Score each image of a batch alone, for comparison with the batch."""

    def scores(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = [score(images[index : index + 1]) for index in range(len(images))]
        return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])

    return scores


def largest_difference(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference of a score, relative to it or to the median size where that is larger."""
    size = np.maximum(np.abs(expected), max(median_size(expected), 1e-12))
    return float(np.max(np.abs(scores - expected) / size))


def relative_difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Return max |a − b| / max |b|."""
    return float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(b))), 1e-12))


def _name_axes(model: onnx_ir.Model, geometry: InputGeometry) -> None:
    """Name the free axes as the contract does, instead of the exporter's s40, s62 and so on."""
    heatmap: list[str | int] = ["N", "H", "W"] if geometry.tile else ["N", geometry.height, geometry.width]
    axes: dict[str, list[str | int]] = {"image": ["N", "H", "W", "C"], "score": ["N"], "heatmap": heatmap}
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.name == "embedding":
            assert value.shape is not None
            axes["embedding"] = ["N", cast(int, value.shape[1])]
        value.shape = onnx_ir.Shape(axes[str(value.name)])


def _remove_traces(model: onnx_ir.Model) -> None:
    """Remove the exporter's stack traces: source lines and paths of the machine that trained, in every node."""
    graph = model.graph
    nodes = list(onnx_ir.traversal.RecursiveGraphIterator(graph))
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in nodes for value in node.outputs)]
    for metadata in (*(node.metadata_props for node in nodes), *(value.metadata_props for value in values)):
        metadata.clear()
    graph.metadata_props.clear()
    model.metadata_props.clear()


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter, which prints to stdout and warns about packages that Kizu does not need."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
