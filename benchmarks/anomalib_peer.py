"""anomalib in an environment of its own: made once, given a job as a file, answering with a file.

Notable here:
- Kizu never imports it; it runs as another process, so neither's packages, threads nor memory touch the other's.
- It gets the torch version that Kizu runs on, so that a difference in speed is not a difference in torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kizu.errors import UserError

ANOMALIB_VERSION = "2.7.0"
DRIVER = Path(__file__).with_name("anomalib_driver.py")
MARKER = ".kizu-requirements.json"

Scaling = Literal["imagenet", "tanh"]
"""Scaling of anomalib's pixels: by ImageNet's mean and deviation (its default), or to the [−1, 1] of its decoder."""


class PeerError(UserError):
    """anomalib could not be installed or its run failed."""

    exit_code = 4


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GanomalyNetwork(_Message):
    """anomalib's GANomaly."""

    kind: Literal["ganomaly"] = "ganomaly"
    features: int
    latent: int
    scaling: Scaling


class PeerBackbone(_Message):
    """Pretrained network of timm that a detector takes its features from."""

    name: str
    weights: str
    """Safetensors file with the state of the whole network, under timm's names."""
    layers: list[str]
    """Nodes whose outputs are the features, finest first."""
    mean: tuple[float, float, float]
    """Subtracted from pixels from 0 to 255."""
    std: tuple[float, float, float]


class PatchcoreNetwork(_Message):
    """anomalib's PatchCore."""

    kind: Literal["patchcore"] = "patchcore"
    backbone: PeerBackbone
    coreset: float = Field(gt=0, le=1)
    """Share of the OK images' patches that are kept."""


class SupersimplenetNetwork(_Message):
    """anomalib's SuperSimpleNet, which learns from OK images alone."""

    kind: Literal["supersimplenet"] = "supersimplenet"
    backbone: PeerBackbone
    noise: float | None = Field(default=None, gt=0)
    """Standard deviation of its noise, in those of the features over OK images; None: as anomalib sets it."""


Network = Annotated[GanomalyNetwork | PatchcoreNetwork | SupersimplenetNetwork, Field(discriminator="kind")]


class PeerJob(_Message):
    """Job for anomalib."""

    network: Network

    train: list[str]
    """OK images to train on, as paths."""
    test: list[str]
    labels: list[int]
    """Of `test`: 1 is NG, 0 is OK."""
    size: int
    """Pixels of the side that the network sees; images of another size are resized."""
    epochs: int
    batch_size: int
    seed: int
    threads: int
    workers: int
    """Processes that decode and resize images, next to the training one."""
    device: Literal["cpu", "cuda"]
    timed: list[int]
    """Indices in `test` of the images that scoring is timed on."""
    timed_batches: list[int]
    repeats: int
    export: bool
    """Write an ONNX file as well."""
    folder: str
    """Empty folder for anomalib's files."""


class PeerAnswer(_Message):
    """Result of a job."""

    scores: list[float]
    """Raw, in the order of the job's `test`; higher is more NG."""
    prepare_seconds: float
    """Data module and networks built."""
    train_seconds: float
    """Around `Engine.fit`, which decodes and resizes each image in each epoch."""
    loading_seconds: float
    """One pass over the training images alone, without training."""
    import_seconds: float
    updates: int
    """Of each optimiser."""
    parameters: int
    facts: dict[str, float]
    """What only this network has: `patches` that it keeps, `noise` that it adds."""
    throughput: dict[str, dict[str, float]]
    """`model` or `pipeline` → images per call → images per second."""
    onnx: str | None
    onnx_error: str | None
    versions: dict[str, str]


def requirements() -> list[str]:
    """Packages installed for anomalib, pinned; the last two let it export."""
    torch = importlib.metadata.version("torch").partition("+")[0]
    return [f"anomalib=={ANOMALIB_VERSION}", f"torch=={torch}", "onnx", "onnxscript"]


def environment_python(folder: Path) -> Path | None:
    """The Python of a complete environment in `folder`, or None."""
    python = _python(folder)
    try:
        installed = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return python if installed == requirements() and python.is_file() else None


def make_environment(folder: Path) -> Path:
    """Install anomalib into `folder` unless it is there already; returns that environment's Python.

    Raises:
        PeerError: the package registry cannot be reached, or has no fitting packages.
    """
    if python := environment_python(folder):
        return python
    python = _python(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if uv := _uv():
        if not python.is_file():
            _call([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        _call([*uv, "pip", "install", "--quiet", "--python", str(python), *requirements()])
    else:
        if not python.is_file():
            _call([sys.executable, "-m", "venv", str(folder)])
        _call([str(python), "-m", "pip", "install", "--quiet", *requirements()])
    (folder / MARKER).write_text(json.dumps(requirements()), encoding="utf-8")
    return python


def run_peer(python: Path, job: PeerJob) -> tuple[PeerAnswer, float]:
    """Run a job; returns the answer and the seconds that the whole process took.

    Raises:
        PeerError: the process failed or answered something else than an answer.
    """
    # Absolute but unresolved: the interpreter is a link, and only through it does it find its environment.
    python, folder = Path(os.path.abspath(python)), Path(job.folder).resolve()  # noqa: PTH100
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job_file, answer_file, log_file = folder / "job.json", folder / "answer.json", folder / "log.txt"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    command = [str(python), str(DRIVER), str(job_file), str(answer_file)]
    # Without the virtual environment and search path of this process, which are not its own.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    began = time.perf_counter()
    with log_file.open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise PeerError(f"anomalib's run failed:\n{_tail(log_file.read_text(encoding='utf-8'))}", f"See {log_file}.")
    try:
        answer = PeerAnswer.model_validate_json(answer_file.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise PeerError(f"anomalib's run gave no valid answer: {error}", f"See {log_file}.") from error
    if len(answer.scores) != len(job.test):
        raise PeerError(f"anomalib scored {len(answer.scores)} of {len(job.test)} images.", f"See {log_file}.")
    return answer, seconds


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _uv() -> list[str] | None:
    installed = Path(sys.executable).with_name("uv")
    if installed.is_file():
        return [str(installed)]
    return [sys.executable, "-m", "uv"] if importlib.util.find_spec("uv") else None


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(
            f"anomalib {ANOMALIB_VERSION} could not be installed:\n{_tail(done.stderr)}",
            "Check that the package registry can be reached, then run the benchmark again.",
        )


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-12:])
