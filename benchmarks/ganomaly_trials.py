"""Kizu's GANomaly against anomalib's: same images, same split, same size, width, latent, epochs, batch size, threads.

How the two are made comparable, and where they cannot be:
- Split: `assign_splits` with the first seed, for every run. Both train on the train split's OK images and are scored
  once, after the last epoch, on the test split. Nothing is chosen on it. Further seeds draw new weights and orders.
- Pixels: anomalib reads the files itself; where its decoder would see other pixels than Kizu's (16 bits, orientation
  tags), it is given Kizu's pixels as PNG. Both resize bilinearly with antialiasing. anomalib's GANomaly takes three
  channels only (its Lightning module fixes them); grey reaches it as three equal ones, Kizu has one unless `channels`
  says 3. That is its first and last layers, about a tenth of its arithmetic.
- Scaling: anomalib's default, ImageNet's mean and deviation, gives values up to 2.6 that its decoder's tanh cannot
  reach. So it runs twice: as it ships (`imagenet`), and given the range of its decoder through its public PreProcessor
  (`tanh`). Kizu is compared with both; the claim rests on the better one.
- Score: raw, of the same kind: both compare the two latents (anomalib squares the difference, Kizu takes its
  magnitude, as the paper's equation 5). anomalib's networks are in eval mode, as its own predict has them.
  anomalib's rescaling over the test set and its clamp are left out, because ties would cost it AUROC.
- Augmentation: anomalib's `Folder` and GANomaly have none by default, Kizu's GANomaly has none.
- Validation: none; anomalib would take half of the test split for it, and spend time on it after each epoch.
- Epochs: anomalib updates both networks on each batch, last and smaller batch of an epoch included; Kizu shows each of
  the two networks `epochs` passes, in full batches. The numbers of updates are reported.
- Training time: around `Engine.fit`, and around `TrainingLoop.run`. anomalib decodes and resizes each image in each
  epoch, Kizu once before; so the time with preparation is reported as well, and how long anomalib's loading takes
  alone. Imports count for neither. Each writes one checkpoint, at the end; neither shows progress or logs.
- Precision: float32 on the CPU. On CUDA each has its own default: anomalib float32, Kizu bfloat16 autocast.
- Scoring speed: on the same images, images already decoded, median of repeats after one uncounted pass. Kizu's is the
  exported graph in ONNX Runtime with its preprocessing; it is compared with anomalib's network alone, prepared tensors
  in, which is the harshest comparison, and reported next to anomalib's forward with preprocessing and anomalib's own
  ONNX export in the same ONNX Runtime. For symmetry, Kizu's network alone in torch is measured, too.
- Order: one at a time, never together, in turns; every other seed runs in reverse order.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.anomalib_peer import GanomalyNetwork, PeerJob, Scaling, run_peer
from benchmarks.ganomaly_timing import TIMED_BATCHES, time_images, time_network, time_onnx
from kizu.errors import UserError
from kizu.models.bundle import InputGeometry, Session
from kizu.models.inspector import Inspector
from kizu.training.data.batches import Batches
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.splits import assign_splits
from kizu.training.detectors.ganomaly import GANomalyMethod
from kizu.training.detectors.method import DetectorContext
from kizu.training.evaluation.scoring import score_rows
from kizu.training.export import export_onnx
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection
from kizu.training.study.environment import usable_cores

KIZU, IMAGENET, TANH = "Kizu", "anomalib", "anomalib, pixels in [−1, 1]"
ARMS = (KIZU, IMAGENET, TANH)
"""The sides that run in turns."""
SCALINGS: dict[str, Scaling] = {IMAGENET: "imagenet", TANH: "tanh"}
TIMED_IMAGES = 96


@dataclass(frozen=True)
class GanomalyBenchmarkSettings:
    """Settings that both sides share."""

    size: int = 128
    channels: Literal[1, 3] = 1
    epochs: int = 20
    features: int = 32
    latent: int = 100
    batch_size: int = 32
    seed: int = 0
    seeds: int = 1
    threads: int = field(default_factory=usable_cores)
    workers: int = 0
    """Processes that load images for anomalib."""
    device: Literal["cpu", "cuda"] = "cpu"
    repeats: int = 7

    @property
    def geometry(self) -> InputGeometry:
        """The size and channels, as the bundle states them."""
        return InputGeometry(height=self.size, width=self.size, channels=self.channels)


@dataclass(frozen=True)
class Trial:
    """One training of one arm, scored."""

    arm: str
    seed: int
    scores: dict[str, list[float]]
    """Name of the score → one per test image."""
    train_seconds: float
    total_seconds: float
    """Training and all preparation of images and networks; no imports."""
    loading_seconds: float
    """Spent on reading and resizing images, over the whole run; part of `total_seconds`, for anomalib of both."""
    updates: int
    parameters: int
    throughput: dict[str, dict[int, float]]
    """What was timed → images per call → images per second."""
    versions: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """The images of the run."""

    manifest: Manifest
    train: list[Row]
    test: list[Row]
    files: dict[str, str]
    """Row's path → the file that anomalib reads."""
    rewritten: int
    """Number of those that hold Kizu's pixels, because anomalib would decode others."""

    @property
    def labels(self) -> list[int]:
        """Of the test images: 1 is NG."""
        return [int(row.label == NG) for row in self.test]

    @property
    def timed(self) -> list[int]:
        """Indices of the test images that scoring is timed on: whole batches, spread over the split."""
        count = max(TIMED_BATCHES[0], min(TIMED_IMAGES, len(self.test)) // TIMED_BATCHES[0] * TIMED_BATCHES[0])
        return [i * len(self.test) // count for i in range(count)]


def schedule(seed: int, seeds: int, arms: Sequence[str] = ARMS) -> list[tuple[int, str]]:
    """(seed, arm) in the order they run: in turns, every other round in reverse so that drift hits both alike."""
    return [(seed + i, arm) for i in range(seeds) for arm in (arms if i % 2 == 0 else arms[::-1])]


def gather(manifest: Manifest, settings: GanomalyBenchmarkSettings, folder: Path) -> Material:
    """The split's images, each as a file that anomalib decodes to Kizu's pixels.

    Raises:
        UserError: no OK or no NG in the test split, an image that is unreadable or smaller than `size`.
    """
    splits = assign_splits(manifest, settings.seed)
    train = [row for row in splits.train if row.label == OK]
    test = [row for row in splits.test if row.label in (OK, NG)]
    if len({row.label for row in test}) < 2:
        raise UserError(f"{manifest.root}: AUROC needs OK and NG images in the test split.", "Add labelled images.")
    if len(train) < settings.batch_size:
        raise UserError(f"{len(train)} training images do not fill a batch of {settings.batch_size}.")
    files: dict[str, str] = {}
    rewritten = 0
    folder.mkdir(parents=True, exist_ok=True)
    for index, row in enumerate([*train, *test]):
        path, pixels = (manifest.root / row.path).resolve(), manifest.image(row)
        if not settings.geometry.accepts(*pixels.shape[:2]):
            raise UserError(f"{path} is smaller than {settings.size} pixels.", "Lower --size.")
        if not _decodes_alike(path, pixels):
            path = folder / f"{index:06d}.png"
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(path)
            rewritten += 1
        files[row.path] = str(path.resolve())
    return Material(manifest, train, test, files, rewritten)


def run(
    material: Material, settings: GanomalyBenchmarkSettings, python: Path, folder: Path, say: Callable[[str], None]
) -> list[Trial]:
    """All trials, one after another.

    Raises:
        PeerError: anomalib's process failed.
        DivergedError: Kizu's training diverged.
    """
    order = schedule(settings.seed, settings.seeds)
    trials: list[Trial] = []
    for number, (seed, arm) in enumerate(order, 1):
        say(f"[{number}/{len(order)}] {arm}, seed {seed}: training and scoring")
        began = time.perf_counter()
        if arm == KIZU:
            trial = run_kizu(material, settings, seed)
        else:
            trial = run_anomalib(material, settings, seed, arm, python, folder / "anomalib")
        trials.append(trial)
        say(f"    trained in {trial.train_seconds:.1f} s, done after {time.perf_counter() - began:.1f} s")
    return trials


def run_kizu(material: Material, settings: GanomalyBenchmarkSettings, seed: int) -> Trial:
    """Train once; score the exported graph with the published score and with `peak`."""
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return _run_kizu(material, settings, seed)
    finally:
        torch.set_num_threads(before)


def _run_kizu(material: Material, settings: GanomalyBenchmarkSettings, seed: int) -> Trial:
    device, geometry = torch.device(settings.device), settings.geometry
    # torch imports its compiler, for seconds, when the first optimiser is made; imports count for neither side.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    began = time.perf_counter()
    images = training_tensor(material.manifest, material.train, geometry)
    loading_seconds = time.perf_counter() - began
    method = _kizu_method(settings, seed)
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop(
            method,
            Batches(images, settings.batch_size, seed, device=device),
            Path(folder),
            identity="bench",
            log=RunLog(None, quiet=True),
            settings=LoopSettings(checkpoint_seconds=math.inf),
        )
        _synchronize(device)
        train_began = time.perf_counter()
        loop.run()
        _synchronize(device)
        ended = time.perf_counter()

    networks = method.networks
    networks.eval()
    pixels = [material.manifest.image(material.test[i]) for i in material.timed]
    throughput = {"network in torch": time_network(networks, geometry, pixels, device, settings.repeats)}
    scores: dict[str, list[float]] = {}
    for name in ("latent", "peak"):
        networks.config = dataclasses.replace(networks.config, score=name)
        session = Session(export_onnx(Inspector(networks, geometry)), settings.device, settings.threads)
        scored = score_rows(session.score, geometry, material.manifest, material.test, batch_size=settings.batch_size)
        scores[name] = scored.scores.tolist()
        if name == "latent":
            throughput["ONNX with preprocessing"] = time_images(session.score, pixels, settings.repeats)
    return Trial(
        arm=KIZU,
        seed=seed,
        scores=scores,
        train_seconds=ended - train_began,
        total_seconds=ended - began,
        loading_seconds=loading_seconds,
        updates=loop.stages[0].steps,
        parameters=sum(p.numel() for p in networks.parameters()),
        throughput=throughput,
    )


def _kizu_method(settings: GanomalyBenchmarkSettings, seed: int) -> GANomalyMethod:
    torch.manual_seed(seed)
    section = DetectorSection(
        kind="ganomaly",
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        options={"features": settings.features, "latent": settings.latent},
    )
    method = GANomalyMethod(DetectorContext(settings.geometry, section))
    method.networks.to(torch.device(settings.device))
    if settings.device == "cuda":
        method.networks.to(memory_format=torch.channels_last)
    return method


def _job(
    material: Material, settings: GanomalyBenchmarkSettings, seed: int, arm: str, folder: Path, export: bool
) -> PeerJob:
    return PeerJob(
        network=GanomalyNetwork(features=settings.features, latent=settings.latent, scaling=SCALINGS[arm]),
        train=[material.files[row.path] for row in material.train],
        test=[material.files[row.path] for row in material.test],
        labels=material.labels,
        size=settings.size,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seed=seed,
        threads=settings.threads,
        workers=settings.workers,
        device=settings.device,
        timed=material.timed,
        timed_batches=list(TIMED_BATCHES),
        repeats=settings.repeats,
        export=export,
        folder=str(folder),
    )


def run_anomalib(
    material: Material,
    settings: GanomalyBenchmarkSettings,
    seed: int,
    arm: str,
    python: Path,
    folder: Path,
    export: bool = True,
) -> Trial:
    """Train and score anomalib in its own process; its ONNX file is timed here, in Kizu's ONNX Runtime."""
    answer, process_seconds = run_peer(python, _job(material, settings, seed, arm, folder, export))
    remarks = [f"the whole process took {process_seconds:.0f} s, {answer.import_seconds:.0f} s of it imports"]
    throughput = {"network in torch": answer.throughput["model"], "torch with preprocessing": {}}
    throughput["torch with preprocessing"] = answer.throughput["pipeline"]
    rates = {what: {int(size): rate for size, rate in by_size.items()} for what, by_size in throughput.items()}
    if answer.onnx_error:
        remarks.append(f"no ONNX export: {answer.onnx_error}")
    elif answer.onnx:
        try:
            images = [material.manifest.image(material.test[i]) for i in material.timed]
            expected = [answer.scores[i] for i in material.timed]
            rates["ONNX with preprocessing"], astray = time_onnx(
                Path(answer.onnx), images, expected, settings.device, settings.threads, settings.repeats
            )
            remarks.append(f"its ONNX scores differ from its torch scores by up to {astray:.2%}")
        except Exception as error:  # noqa: BLE001 - a file that ONNX Runtime refuses is a finding
            remarks.append(f"its ONNX export does not run: {str(error)[:200]}")
    return Trial(
        arm=arm,
        seed=seed,
        scores={"latent": answer.scores},
        train_seconds=answer.train_seconds,
        total_seconds=answer.prepare_seconds + answer.train_seconds,
        loading_seconds=answer.loading_seconds * settings.epochs,
        updates=answer.updates,
        parameters=answer.parameters,
        throughput=rates,
        versions=answer.versions,
        remarks=tuple(remarks),
    )


def _decodes_alike(path: Path, pixels: NDArray[np.uint8]) -> bool:
    """Return True where Pillow's plain RGB, which anomalib trains on, is what Kizu reads."""
    try:
        with Image.open(path) as image:
            seen = np.asarray(image.convert("RGB"))
    except OSError:
        return False
    return seen.shape[:2] == pixels.shape[:2] and bool((seen == pixels).all())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
