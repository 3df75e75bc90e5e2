"""int8 graphs: the convolutions of pretrained backbones in 8 bits, for CPUs that calculate faster with them.

Notable here:
- Static quantisation by ONNX Runtime's own tool: activations uint8 by ranges seen on OK images, weights int8 by output
  channel. The graph holds standard QuantizeLinear and DequantizeLinear around what is standard already.
- Heads, distances, Gaussians and densities stay in float32: they measure differences far smaller than an 8-bit step.
- So do the convolutions at a backbone's finest resolution. Each step of their maps moves every feature after them, and
  with the first one in 8 bits, ONNX Runtime moves a change of layout up into the preprocessing, which then takes longer
  than the whole backbone saves.
- The mean error of a rounded convolution is known, and its bias takes it back (Nagel et al., "Data-Free Quantization
  Through Weight Equalization and Bias Correction", ICCV 2019).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import nn

from kizu.models.backbones import PretrainedBackbone
from kizu.models.bundle import ScoreFunction

BETWEEN = ("Add", "Clip", "MaxPool", "Relu")
"""Operators between convolutions that work on 8 bits as well."""
LARGEST = 127
"""Largest weight in 8 bits."""


@dataclass(frozen=True)
class Quantised:
    """An int8 graph."""

    model: bytes
    convolutions: int
    """Convolutions in 8 bits."""
    of: int
    """Convolutions of the backbones."""


def backbone_names(inspector: nn.Module) -> tuple[str, ...]:
    """Prefixes of the names that weights of pretrained backbones have in the graph; () where there is none."""
    modules = inspector.named_modules(remove_duplicate=False)
    return tuple(f"{name}." for name, module in modules if isinstance(module, PretrainedBackbone))


def quantise(model: bytes, backbones: tuple[str, ...], images: Sequence[NDArray[np.uint8]]) -> Quantised:
    """Quantise the convolutions of the backbones of an exported graph.

    Args:
        model: the ONNX file.
        backbones: see `backbone_names`.
        images: OK images [H, W, C] that ranges of activations come from, at least one.

    Raises:
        ValueError: none of its convolutions is a backbone's.
    """
    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    fold_batch_norms(graph)
    convolutions = [n for n in graph.node if n.op_type == "Conv" and n.input[1].startswith(backbones)]
    if not convolutions:
        raise ValueError("the graph has no convolution of a pretrained backbone")
    batches = [image[None] for image in images]
    chosen = _rounded_below_the_finest(proto, convolutions, backbones, batches)
    with TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "model.onnx"
        proto.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")  # else it asks for that
        quantize_static(
            proto,
            path,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", *BETWEEN],
            nodes_to_quantize=[*chosen, *_between(graph, chosen)],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        proto = onnx.load_model(path)
    _tidy(proto)
    return Quantised(proto.SerializeToString(deterministic=True), len(chosen), len(convolutions))


def plain_scorer(model: bytes) -> ScoreFunction:
    """Run a graph node by node, as the standard defines each: integers are converted before every convolution."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def score(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, heatmaps = session.run(["score", "heatmap"], {"image": np.ascontiguousarray(images)})
        return scores, heatmaps

    return score


def fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Put each batch normalisation into the convolution before it, where nothing else reads that one's output."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    folded = []
    for norm in graph.node:
        conv = producers.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or readers[norm.input[0]] != 1:
            continue
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        gain, shift, mean, variance = (_array(weights[name]) for name in norm.input[1:])
        factor = gain / np.sqrt(variance + epsilon)
        kernel = weights[conv.input[1]]
        _replace(kernel, _array(kernel) * factor[:, None, None, None])
        bias = _bias(graph, conv, len(factor))
        _replace(bias, (_array(bias) - mean) * factor + shift)
        conv.output[0] = norm.output[0]
        folded.append(norm)
    for norm in folded:
        graph.node.remove(norm)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _rounded_below_the_finest(
    model: onnx.ModelProto,
    convolutions: Sequence[onnx.NodeProto],
    backbones: tuple[str, ...],
    batches: Sequence[NDArray[np.uint8]],
) -> list[str]:
    """Take back the mean error of every convolution but those at its backbone's finest resolution; return the names."""
    measured = _measure(model, convolutions, batches)
    chosen = []
    for prefix in backbones:
        own = [node for node in convolutions if node.input[1].startswith(prefix)]
        finest = max((measured[node.name].rows for node in own), default=0)
        chosen += [node for node in own if measured[node.name].rows < finest]
    for node in chosen:
        mean = measured[node.name].error
        bias = _bias(model.graph, node, len(mean))
        _replace(bias, _array(bias) - mean)
    return [node.name for node in chosen]


@dataclass(frozen=True)
class _Measured:
    rows: int
    """Rows of a convolution's output."""
    error: NDArray[np.float64]
    """Mean change of each output channel by rounding the weights, on exact inputs."""


def _measure(
    model: onnx.ModelProto, convolutions: Sequence[onnx.NodeProto], batches: Sequence[NDArray[np.uint8]]
) -> dict[str, _Measured]:
    """Run the graph with a second convolution beside each, whose weights are what rounding changes of the first's."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    del graph.output[:]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, 2, 3]), "but_channels"))
    for index, node in enumerate(convolutions):
        kernel = _array(weights[node.input[1]])
        weight, out, mean, shape = (f"probe.{index}.{what}" for what in ("weight", "error", "mean", "shape"))
        graph.initializer.append(onnx.numpy_helper.from_array((_rounded(kernel) - kernel).astype(np.float32), weight))
        twin = graph.node.add()
        twin.CopyFrom(node)
        twin.name = twin.output[0] = out
        twin.input[:] = [node.input[0], weight]
        graph.node.append(onnx.helper.make_node("ReduceMean", [out, "but_channels"], [mean], keepdims=0))
        graph.node.append(onnx.helper.make_node("Shape", [out], [shape]))
        graph.output.append(onnx.helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None))
        graph.output.append(onnx.helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    runs = [session.run(None, {"image": batch}) for batch in batches]
    return {
        node.name: _Measured(
            rows=int(runs[0][2 * index + 1][2]), error=np.mean([run[2 * index] for run in runs], 0, dtype=np.float64)
        )
        for index, node in enumerate(convolutions)
    }


def _rounded(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round weights [C, …] to 255 levels of each output channel, symmetric around 0, as the tool does."""
    largest = np.abs(kernel).max((1, 2, 3), keepdims=True)
    step = np.where(largest > 0, largest, 1.0) / LARGEST
    return np.asarray(np.round(kernel / step) * step)


def _between(graph: onnx.GraphProto, convolutions: Sequence[str]) -> list[str]:
    """Names of the activations, sums and pools whose inputs are all of these convolutions, or of each other."""
    constant = {"", *(tensor.name for tensor in graph.initializer)}
    reached, found = set[str](), []
    for node in graph.node:  # they stand in the order in which they can be computed
        inputs = [name for name in node.input if name not in constant]
        joins = node.op_type in BETWEEN and bool(inputs) and all(name in reached for name in inputs)
        if joins:
            found.append(node.name)
        if joins or node.name in convolutions:
            reached.update(node.output)
    return found


def _bias(graph: onnx.GraphProto, conv: onnx.NodeProto, channels: int) -> onnx.TensorProto:
    """Bias of a convolution; one without gets zeros."""
    if len(conv.input) < 3:
        conv.input.append(f"{conv.name}.bias")
        graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(channels, np.float32), conv.input[2]))
    (bias,) = [tensor for tensor in graph.initializer if tensor.name == conv.input[2]]
    return cast(onnx.TensorProto, bias)


def _tidy(model: onnx.ModelProto) -> None:
    """Remove what the tool leaves: operator sets that no node uses, its notes, and shapes of inner values."""
    used = {node.domain for node in model.graph.node}
    imports = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    del model.metadata_props[:]
    del model.graph.value_info[:]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    def __init__(self, batches: Sequence[NDArray[np.uint8]]):
        self._batches = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the graph's next input; None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"image": batch}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tool, which warns through the root logger."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _array(tensor: onnx.TensorProto) -> NDArray[np.float64]:
    return np.asarray(onnx.numpy_helper.to_array(tensor), np.float64)


def _replace(tensor: onnx.TensorProto, values: NDArray[np.float64]) -> None:
    tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
