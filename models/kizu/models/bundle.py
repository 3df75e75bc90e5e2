"""A trained model as it ships: a folder with `model.onnx`, `bundle.json`, `calibration.csv` and `report.html`.

Notable here:
- The graph takes `image: uint8[N, H, W, C]` and gives `score: float32[N]` and `heatmap: float32[N, h, w]`; N, H, W
  and C (1 or 3) are free, and whatever happens to pixels happens inside. From schema 2, a graph on a pretrained
  backbone gives its `embedding: float32[N, d]` as well, for drift and for nearest parts.
- Nothing is trusted: all but the report is hash-checked, the graph must be one file with standard operators only.
- Bundles of schema 1 have no calibration scores; they load and score all the same.
- Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kizu import files
from kizu.errors import UserError
from kizu.models.calibration import CalibrationScores
from kizu.models.operating_point import OperatingPoint
from kizu.models.quantisation import Quantisation, saturates
from kizu.version import __version__

SCHEMA_VERSION = 2
MODEL_FILE = "model.onnx"
MANIFEST_FILE = "bundle.json"
CALIBRATION_FILE = "calibration.csv"
REPORT_FILE = "report.html"
BUNDLE_FILES = (MODEL_FILE, CALIBRATION_FILE, REPORT_FILE, MANIFEST_FILE)
"""Every file of a bundle, in the order in which it is written: the last one makes it a bundle."""
STANDARD_DOMAINS = {"", "ai.onnx", "ai.onnx.ml"}

Device = Literal["auto", "cpu", "cuda"]

ScoreFunction = Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""uint8[N, H, W, C] → (score[N], heatmap[N, h, w]); higher is more NG."""

logger = logging.getLogger(__name__)


class BundleError(UserError):
    """A bundle that is incomplete, corrupt, tampered with or from a newer Kizu."""


class InputGeometry(BaseModel):
    """Image geometry that the graph expects; all sizes in pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: int = Field(gt=0)
    """Height the detector sees."""
    width: int = Field(gt=0)
    channels: Literal[1, 3]
    tile: int | None = Field(default=None, gt=0)
    """Side of the square tiles cut from the source; None: the whole image is resized to height × width."""
    stride: int | None = Field(default=None, gt=0)
    fit: Literal["stretch", "letterbox"] = "stretch"
    """Whole images: resized to height × width whatever their shape, or in proportion, with grey in the rest."""
    enlarge: float = Field(default=1.0, ge=1)
    """Most that a whole image grows along a side; a bundle that does not state it enlarges nothing. Tiles are never cut
    from an enlarged image."""

    @property
    def min_height(self) -> int:
        """Smaller images are refused: there is nothing to cut a tile from, or too much detail would be invented."""
        return self.tile or math.ceil(self.height / self.enlarge)

    @property
    def min_width(self) -> int:
        """Smallest width, likewise."""
        return self.tile or math.ceil(self.width / self.enlarge)

    def accepts(self, height: int, width: int) -> bool:
        """Tell if an image of this size can be inspected. In proportion, the side that fits first says how much."""
        high, wide = height >= self.min_height, width >= self.min_width
        return high or wide if self.fit == "letterbox" else high and wide

    @property
    def smallest(self) -> str:
        """What `accepts` asks for, to follow "at least": `32×24 pixels`, or of a letterboxed image one side."""
        if self.fit == "letterbox":
            return f"{self.min_width} pixels of width or {self.min_height} of height"
        return f"{self.min_width}×{self.min_height} pixels"

    def enlargement(self, height: int, width: int) -> float:
        """Return how much an image of this size grows along the side that grows most; 1 where none does."""
        if self.tile is not None:
            return 1.0
        factors = self.height / height, self.width / width
        return max(1.0, min(factors) if self.fit == "letterbox" else max(factors))


class DatasetReference(BaseModel):
    """Identity and counts of the images that a model comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    """SHA-256 over every row of the manifest with its image's content."""
    split_fingerprint: str
    """SHA-256 over which row went to which split."""
    counts: dict[str, dict[str, int]]
    """split → label (`OK`, `NG`, `unlabelled`) → images."""
    synthetic_ng: int = 0


class Parity(BaseModel):
    """Differences of the exported graph from torch over the calibration split (relative to the largest value).

    Of a quantised bundle: of the float32 graph that was quantised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int
    score: float
    heatmap: float
    verdicts_differing: int

    def within(self, tolerance: float) -> bool:
        """True if no verdict differs, and nothing else by more than `tolerance`."""
        return max(self.score, self.heatmap) <= tolerance and not self.verdicts_differing


class PretrainedWeights(BaseModel):
    """Weights in the graph that others trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    origin: str
    """Package or address that they came from."""
    licence: str
    sha256: str
    """Of the weights as they came."""
    frozen: bool = True
    """They are as they came; otherwise the run went on training them."""


class Derivation(BaseModel):
    """Origin of a bundle whose threshold was chosen after training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    parent: str
    """Fingerprint of the bundle that it came from: SHA-256 of its `bundle.json`."""
    parent_threshold: float
    choice: str
    """How the threshold was chosen, as on the command line: `--specificity 0.99`."""


class BundleManifest(BaseModel):
    """`bundle.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    recipe: dict[str, Any]
    geometry: InputGeometry
    operating_point: OperatingPoint
    dataset: DatasetReference
    metrics: dict[str, Any]
    parity: Parity
    quantisation: Quantisation | None = None
    """None: the recipe asks for none."""
    pretrained: list[PretrainedWeights] = []
    created_at: datetime
    code_version: str = __version__
    model_sha256: str
    calibration_sha256: str | None = None
    """Of `calibration.csv`. None: a bundle of schema 1, which has none."""
    derived_from: Derivation | None = None
    """None: the bundle is as its run exported it."""

    @property
    def recipe_name(self) -> str:
        """Name of the recipe that the model was trained by."""
        return str(self.recipe["name"])


class Session:
    """A graph ready to score."""

    def __init__(self, model: bytes, device: Device = "auto", threads: int = 0, spin: bool = True):
        available = onnxruntime.get_available_providers()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if saturates(platform.machine(), _cpuinfo()):
            # Weights of int8 graphs become uint8: sums are exact then, at all the time that 8 bits save.
            options.add_session_config_entry("session.x64quantprecision", "1")
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if device != "cpu" and "CUDAExecutionProvider" in available and _cuda_present():
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()
            # TF32 would move scores by 1e-3, and certified thresholds with them; an exhaustive search for convolution
            # kernels would stall the first image of every new shape.
            cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", cuda))
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        self.provider: str = self._session.get_providers()[0]
        if device == "cuda" and self.provider != "CUDAExecutionProvider":
            raise UserError(
                "CUDA was asked for, but ONNX Runtime cannot use it here.",
                "Check the driver with nvidia-smi and that onnxruntime-gpu is installed, or choose --device cpu.",
            )

    def score(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8[N, H, W, C] → (score[N], heatmap[N, h, w]); higher is more NG."""
        score, heatmap = self._run(["score", "heatmap"], images)
        return score, heatmap

    @property
    def embeds(self) -> bool:
        """True if the graph gives an embedding."""
        return "embedding" in [output.name for output in self._session.get_outputs()]

    def inspect(
        self, images: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None]:
        """uint8[N, H, W, C] → (score[N], heatmap[N, h, w], embedding[N, d]) in one run; None if it does not embed."""
        if not self.embeds:
            return *self.score(images), None
        score, heatmap, embedding = self._run(["score", "heatmap", "embedding"], images)
        return score, heatmap, embedding

    def _run(self, outputs: list[str], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = self._session.run(outputs, {"image": np.ascontiguousarray(images)})
        return found


class Bundle:
    """A verified bundle on disk."""

    def __init__(self, path: Path, manifest: BundleManifest, model: bytes, calibration: bytes | None):
        self.path = path
        self.manifest = manifest
        self._model = model
        self._calibration = calibration

    @classmethod
    def read(cls, path: Path) -> Bundle:
        """Read and verify.

        Raises:
            BundleError: a file is missing or damaged, a hash differs, the schema is newer, or the graph is not a
                self-contained one with the inputs and outputs above.
        """
        for name in (MODEL_FILE, MANIFEST_FILE):
            if not (path / name).is_file():
                raise BundleError(
                    f"{path / name} is missing, so {path} is not a bundle.",
                    "Give the folder that `kizu train` wrote: RUN/bundle.",
                )
        manifest = parse_manifest((path / MANIFEST_FILE).read_bytes(), where=str(path / MANIFEST_FILE))
        model = (path / MODEL_FILE).read_bytes()
        verify_model(model, manifest, where=str(path / MODEL_FILE))
        return cls(path, manifest, model, _read_calibration(path / CALIBRATION_FILE, manifest))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `bundle.json`, and through the hash inside it of the whole bundle."""
        return _sha256((self.path / MANIFEST_FILE).read_bytes())

    @property
    def model(self) -> bytes:
        """The ONNX graph."""
        return self._model

    @cached_property
    def calibration(self) -> CalibrationScores | None:
        """Scores that the threshold was chosen from; None in a bundle of schema 1.

        Raises:
            BundleError: the file is the one that was exported, and still cannot be read.
        """
        if self._calibration is None:
            return None
        try:
            return CalibrationScores.from_csv(self._calibration)
        except ValueError as error:
            raise BundleError(f"{self.path / CALIBRATION_FILE}: {error}.", "Export the bundle again.") from error

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.path / REPORT_FILE

    def open(self, device: Device = "auto", threads: int = 0, spin: bool = True) -> Session:
        """Start scoring. CUDA where there is one, else the CPU; `threads` 0 means all cores.

        A quantised graph is for the CPU: on CUDA it rounds elsewhere and takes longer, so it goes there only if told.
        Without `spin`, threads sleep between images instead of keeping cores from others, at a little latency.
        """
        quantised = self.manifest.quantisation is not None and self.manifest.quantisation.applied
        return Session(self._model, "cpu" if quantised and device == "auto" else device, threads, spin)


def write_bundle(
    path: Path, model: bytes, calibration: CalibrationScores, manifest: BundleManifest, report_html: str
) -> Bundle:
    """Write a bundle folder; `bundle.json`, written last and atomically, makes it one."""
    path.mkdir(parents=True, exist_ok=True)
    (path / MANIFEST_FILE).unlink(missing_ok=True)
    files.write_bytes(path / MODEL_FILE, model)
    files.write_bytes(path / CALIBRATION_FILE, calibration.to_csv())
    files.write_text(path / REPORT_FILE, report_html)
    files.write_bytes(path / MANIFEST_FILE, serialise_manifest(manifest))
    return Bundle.read(path)


def new_manifest(model: bytes, calibration: CalibrationScores, **fields: Any) -> BundleManifest:
    """A manifest for `model` and the scores of its calibration, dated now, with the hashes of both."""
    return BundleManifest(
        model_sha256=_sha256(model),
        calibration_sha256=_sha256(calibration.to_csv()),
        created_at=datetime.now(UTC),
        **fields,
    )


def serialise_manifest(manifest: BundleManifest) -> bytes:
    """JSON with a digest of itself, so that damage to a threshold is noticed as surely as damage to the graph."""
    content = manifest.model_dump(mode="json")
    return json.dumps(content | {"digest": _digest(content)}, indent=2, allow_nan=False, ensure_ascii=False).encode()


def parse_manifest(data: bytes, where: str) -> BundleManifest:
    """Parse and verify `bundle.json`; raises BundleError."""
    try:
        content = json.loads(data)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON: {error}", "Export the bundle again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("schema_version"), int):
        raise BundleError(f"{where} has no schema version.", "Export the bundle again.")
    if content["schema_version"] > SCHEMA_VERSION:
        raise BundleError(
            f"{where} has schema {content['schema_version']}; this Kizu reads up to {SCHEMA_VERSION}.",
            "Update Kizu on this machine.",
        )
    digest = content.pop("digest", None)
    if digest != _digest(content):
        raise BundleError(f"{where} was changed or damaged: its digest does not match.", "Export the bundle again.")
    try:
        return BundleManifest.model_validate(content)
    except ValidationError as error:
        raise BundleError(f"{where} is not a valid bundle manifest: {error}", "Export the bundle again.") from error


def verify_model(model: bytes, manifest: BundleManifest, where: str) -> None:
    """Check hash, self-containment, operators, inputs and outputs; raises BundleError."""
    remedy = "Export the bundle again; do not edit its files."
    if _sha256(model) != manifest.model_sha256:
        raise BundleError(f"{where} was changed or damaged: its SHA-256 does not match bundle.json.", remedy)
    try:
        graph = onnx.load_model_from_string(model)
    except Exception as error:
        raise BundleError(f"{where} is not an ONNX model: {error}", remedy) from error
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(graph.graph)):
        raise BundleError(f"{where} refers to external data; a bundle must be one file.", remedy)
    domains = {node.domain for node in _nodes(graph.graph)} | {opset.domain for opset in graph.opset_import}
    local = {function.domain for function in graph.functions}
    if foreign := domains - STANDARD_DOMAINS - local:
        raise BundleError(f"{where} uses operators outside the ONNX standard: {', '.join(sorted(foreign))}.", remedy)
    names = [i.name for i in graph.graph.input], [o.name for o in graph.graph.output]
    outputs = [["score", "heatmap"], ["score", "heatmap", "embedding"]][: manifest.schema_version]
    if names[0] != ["image"] or names[1] not in outputs:
        raise BundleError(f"{where} must map image to score and heatmap, not {names[0]} to {names[1]}.", remedy)


def _read_calibration(path: Path, manifest: BundleManifest) -> bytes | None:
    """Return the verified bytes of `calibration.csv`, or None where the schema has none; raises BundleError."""
    if manifest.schema_version < 2:
        return None
    if not path.is_file():
        raise BundleError(f"{path} is missing, so the bundle is incomplete.", "Copy the whole folder, or export again.")
    data = path.read_bytes()
    if _sha256(data) != manifest.calibration_sha256:
        raise BundleError(
            f"{path} was changed or damaged: its SHA-256 does not match bundle.json.",
            "Export the bundle again; do not edit its files.",
        )
    return data


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    nodes = []
    for node in graph.node:
        nodes.append(node)
        for attribute in node.attribute:
            for inner in [*attribute.graphs, attribute.g]:
                nodes.extend(_nodes(inner))
    return nodes


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    tensors = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        tensors += [sparse.values, sparse.indices]
    for node in _nodes(graph):
        for attribute in node.attribute:
            tensors += [attribute.t, *attribute.tensors]
            for inner in [*attribute.graphs, attribute.g]:
                tensors.extend(inner.initializer)
    return tensors


def _digest(content: dict[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _cuda_present() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/proc/driver/nvidia/version").exists() or os.name == "nt"


@cache
def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
