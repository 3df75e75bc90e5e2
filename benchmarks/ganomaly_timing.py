"""Scoring speed of both sides: images per second, median over repeats after one pass that is not counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from kizu.models.bundle import InputGeometry
from kizu.models.ganomaly import GANomaly
from kizu.models.inspector import Geometry

TIMED_BATCHES = (32, 1)
"""Images per call."""


def time_network(
    networks: GANomaly,
    geometry: InputGeometry,
    pixels: Sequence[NDArray[np.uint8]],
    device: torch.device,
    repeats: int,
) -> dict[int, float]:
    """Images per second of Kizu's network in torch on prepared tensors, by images per call."""
    prepare = Geometry(geometry)
    with torch.inference_mode():
        prepared = [prepare(torch.tensor(image)[None]).to(device) for image in pixels]
        found = {}
        for size in TIMED_BATCHES:
            batches = [torch.cat(prepared[i : i + size]) for i in range(0, len(prepared), size)]
            found[size] = _rate(lambda batch: networks(batch)[0].cpu(), batches, repeats)
    return found


def time_images(
    score: Callable[[NDArray[Any]], object],
    pixels: Sequence[NDArray[Any]],
    repeats: int,
    sizes: Sequence[int] = TIMED_BATCHES,
) -> dict[int, float]:
    """Images per second of a score function, by images per call; single images only where their sizes differ."""
    alike = len({image.shape for image in pixels}) == 1
    return {
        size: _rate(score, [np.stack(pixels[i : i + size]) for i in range(0, len(pixels), size)], repeats)
        for size in sizes
        if alike or size == 1
    }


def time_onnx(
    path: Path,
    images: Sequence[NDArray[np.uint8]],
    expected: Sequence[float],
    device: Literal["cpu", "cuda"],
    threads: int,
    repeats: int,
    sizes: Sequence[int] = TIMED_BATCHES,
) -> tuple[dict[int, float], float]:
    """Images per second of anomalib's ONNX file, and the largest relative difference of a score from torch's.

    Args:
        sizes: images per call.
        expected: torch's scores of the images.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    cuda = ["CUDAExecutionProvider"] if device == "cuda" else []
    session = onnxruntime.InferenceSession(str(path), options, providers=[*cuda, "CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    # What anomalib's graph takes: RGB in [0, 1], channels first. Making that is not timed, for its benefit.
    tensors = [
        np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)).transpose(2, 0, 1), dtype=np.float32) / 255
        for image in images
    ]
    rates = time_images(lambda batch: session.run(None, {name: batch}), tensors, repeats, sizes)
    scores = np.array([session.run(["pred_score"], {name: tensor[None]})[0].item() for tensor in tensors])
    size = np.abs(expected)
    return rates, float(np.max(np.abs(scores - expected) / np.maximum(size, 1e-12)))


def _rate(function: Callable[[Any], object], batches: Sequence[Any], repeats: int) -> float:
    """Median over the repeats of images per second, after one pass that is not counted."""
    images = sum(len(batch) for batch in batches)
    rates = []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        for batch in batches:
            function(batch)
        if repeat:
            rates.append(images / (time.perf_counter() - began))
    return statistics.median(rates)
