"""Train and score a detector of anomalib as one of its users would. Run by anomalib's own Python, never imported.

    python anomalib_driver.py JOB.json ANSWER.json

Job and answer are `PeerJob` and `PeerAnswer` of `anomalib_peer`.

Notable here:
- Public interface only: `Folder`, `Ganomaly`, `Patchcore`, `Supersimplenet`, `PreProcessor`, `Engine.fit`,
  `Engine.predict`, `to_onnx`; but for the next two.
- PatchCore and SuperSimpleNet build their backbone without weights and are given the job's, so nothing is downloaded;
  SuperSimpleNet has no argument for that, so its feature extractor's own is set for it.
- The size of SuperSimpleNet's noise has no argument, and is set where it is kept.
- `Folder` is given exactly the images of the job, with no validation split: none of them is lost to anomalib, and no
  validation pass costs it time.
- Its post-processor and evaluator are off, so `predict` gives the raw score, before any rescaling or clamping.
- One checkpoint, at the end, as Kizu writes one; no progress bar, no logger. It must be anomalib's own kind of
  callback: with any other the Engine adds one that writes after every epoch.
- The last epoch is used.
"""

import functools
import json
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

started = time.perf_counter()

import anomalib  # noqa: E402
import lightning  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
import torchvision  # noqa: E402
from anomalib.callbacks import ModelCheckpoint  # noqa: E402
from anomalib.data import Folder  # noqa: E402
from anomalib.data.utils import read_image  # noqa: E402
from anomalib.engine import Engine  # noqa: E402
from anomalib.models import AnomalibModule, Ganomaly, Patchcore, Supersimplenet  # noqa: E402
from anomalib.models.components import TimmFeatureExtractor  # noqa: E402
from anomalib.models.image.supersimplenet import torch_model as supersimplenet_network  # noqa: E402
from anomalib.pre_processing import PreProcessor  # noqa: E402
from torchvision.transforms.v2 import Compose, Normalize, Resize  # noqa: E402

IMPORT_SECONDS = time.perf_counter() - started
Job = dict[str, Any]
RAW: dict[str, Any] = {"post_processor": False, "evaluator": False, "visualizer": False}
NOISE_BATCHES = 8
"""Batches of training images that the spread of features is measured on."""


def main(job_file: str, answer_file: str) -> None:
    """Run the job, and write its answer."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "anomalib", "torch.onnx", "onnxscript"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(job["threads"])
    lightning.seed_everything(job["seed"], workers=True, verbose=False)
    folder = Path(job["folder"]).resolve()
    stage(folder / "images", job)

    began = time.perf_counter()
    datamodule = make_datamodule(folder, job)
    model = make_model(job, datamodule)
    engine = make_engine(folder, job)
    prepare_seconds = time.perf_counter() - began

    began = time.perf_counter()
    engine.fit(model, datamodule=datamodule)
    synchronize(job)
    train_seconds = time.perf_counter() - began

    began = time.perf_counter()
    for _ in datamodule.train_dataloader():
        pass
    loading_seconds = time.perf_counter() - began

    checkpoints = len(list(folder.rglob("*.ckpt")))
    assert checkpoints == 1, f"anomalib wrote {checkpoints} checkpoints, not one"
    scores = predict(engine, model, datamodule, job)
    model.eval().to(job["device"])
    onnx, onnx_error = export(model, folder, job)
    answer = {
        "scores": scores,
        "prepare_seconds": prepare_seconds,
        "train_seconds": train_seconds,
        "loading_seconds": loading_seconds,
        "import_seconds": IMPORT_SECONDS,
        # Lightning counts each optimiser's steps.
        "updates": engine.trainer.global_step // max(1, len(engine.trainer.optimizers)),
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "facts": facts(model),
        "throughput": throughput(model, job),
        "onnx": onnx,
        "onnx_error": onnx_error,
        "versions": {
            "anomalib": anomalib.__version__,
            "lightning": lightning.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "numpy": np.__version__,
            "python": sys.version.split()[0],
        },
    }
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


def make_datamodule(folder: Path, job: Job) -> Folder:
    """Data module of exactly the images of the job."""
    datamodule = Folder(
        name="bench",
        root=folder / "images",
        normal_dir="train_ok",
        normal_test_dir="test_ok",
        abnormal_dir="test_ng",
        train_batch_size=job["batch_size"],
        eval_batch_size=job["batch_size"],
        num_workers=job["workers"],
        val_split_mode="none",
        seed=job["seed"],
    )
    datamodule.setup()
    assert len(datamodule.train_data) == len(job["train"]), "anomalib's training set is not the job's"
    assert len(datamodule.test_data) == len(job["test"]), "anomalib's test set is not the job's"
    return datamodule


def make_model(job: Job, datamodule: Folder) -> AnomalibModule:
    """Detector of the job, with raw scores."""
    network = job["network"]
    prepare = pre_processor(job)
    if network["kind"] == "ganomaly":
        return Ganomaly(
            batch_size=job["batch_size"],
            n_features=network["features"],
            latent_vec_size=network["latent"],
            pre_processor=prepare,
            **RAW,
        )
    features = {"backbone": network["backbone"]["name"], "layers": list(network["backbone"]["layers"])}
    if network["kind"] == "patchcore":
        model = Patchcore(
            **features, pre_trained=False, coreset_sampling_ratio=network["coreset"], pre_processor=prepare, **RAW
        )
        load_weights(model.model.feature_extractor, network["backbone"])
        return model
    unloaded = functools.partial(TimmFeatureExtractor, pre_trained=False)
    with patch.object(supersimplenet_network, "TimmFeatureExtractor", unloaded):
        model = Supersimplenet(**features, pre_processor=prepare, **RAW)
    load_weights(model.model.feature_extractor.feature_extractor, network["backbone"])
    if network["noise"] is not None:
        model.model.anomaly_generator.noise_std = network["noise"] * spread(model, datamodule)
    return model


def load_weights(extractor: TimmFeatureExtractor, backbone: Job) -> None:
    """Load the job's weights, but for the layers after the features."""
    assert extractor.layers == backbone["layers"], f"anomalib found the layers {extractor.layers} only"
    given = safetensors.torch.load_file(backbone["weights"])
    own = extractor.feature_extractor.state_dict()
    extractor.feature_extractor.load_state_dict({name: given[name] for name in own})


def spread(model: Supersimplenet, datamodule: Folder) -> float:
    """Standard deviation of the features over OK images and places, root mean square over channels."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    with torch.no_grad():
        for batch, _ in zip(datamodule.train_dataloader(), range(NOISE_BATCHES), strict=False):
            features = model.model.feature_extractor(model.pre_processor(batch.image))
            of_place = features.double().movedim(1, 0).flatten(1)
            count += of_place.shape[1]
            total, squares = total + of_place.sum(1), squares + of_place.square().sum(1)
    return float((squares / count - (total / count).square()).clamp(min=0).mean().sqrt())


def facts(model: AnomalibModule) -> dict[str, float]:
    """What only this network has."""
    if isinstance(model, Patchcore):
        return {"patches": len(model.model.memory_bank)}
    return {"noise": model.model.anomaly_generator.noise_std} if isinstance(model, Supersimplenet) else {}


def make_engine(folder: Path, job: Job) -> Engine:
    """Engine that writes one checkpoint, at the end."""
    return Engine(
        callbacks=[ModelCheckpoint(dirpath=folder / "weights", filename="model", every_n_epochs=job["epochs"])],
        default_root_dir=folder / "results",
        max_epochs=job["epochs"],
        accelerator="gpu" if job["device"] == "cuda" else "cpu",
        devices=1,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def stage(root: Path, job: Job) -> None:
    """Link the job's images into the folders that `Folder` reads; a file's name is its index in the job."""
    for name in ("train_ok", "test_ok", "test_ng"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for i, path in enumerate(job["train"]):
        link(path, root / "train_ok", i)
    for i, (path, label) in enumerate(zip(job["test"], job["labels"], strict=True)):
        link(path, root / ("test_ng" if label else "test_ok"), i)


def link(path: str, folder: Path, index: int) -> None:
    """Link an image under its index."""
    (folder / f"{index:06d}{Path(path).suffix.lower()}").symlink_to(Path(path).resolve())


def pre_processor(job: Job) -> PreProcessor:
    """Resize and scaling that the job asks for."""
    size, network = (job["size"], job["size"]), job["network"]
    if network["kind"] == "ganomaly" and network["scaling"] == "imagenet":
        return Ganomaly.configure_pre_processor(image_size=size)
    mean, std = [0.5] * 3, [0.5] * 3
    if "backbone" in network:
        mean, std = ([value / 255 for value in network["backbone"][name]] for name in ("mean", "std"))
    return PreProcessor(Compose([Resize(size, antialias=True), Normalize(mean=mean, std=std)]))


def predict(engine: Engine, model: AnomalibModule, datamodule: Folder, job: Job) -> list[float]:
    """Raw scores in the order of the job's test images."""
    scores = [math.nan] * len(job["test"])
    for batch in engine.predict(model, datamodule=datamodule):
        for path, score in zip(batch.image_path, batch.pred_score.flatten().tolist(), strict=True):
            scores[int(Path(path).stem)] = score
    return scores


def export(model: AnomalibModule, folder: Path, job: Job) -> tuple[str | None, str | None]:
    """Path of anomalib's own ONNX file, its pre-processor included, or None and the error."""
    if not job["export"]:
        return None, None
    try:
        return str(model.to_onnx(folder)), None
    except Exception as error:  # noqa: BLE001 - a peer that cannot export is a finding, not a reason to stop
        return None, f"{type(error).__name__}: {error}"[:300]


def throughput(model: AnomalibModule, job: Job) -> dict[str, dict[str, float]]:
    """Images per second: `model` is the network on prepared tensors, `pipeline` resizes and scales them as well."""
    images = [read_image(job["test"][i], as_tensor=True) for i in job["timed"]]
    same = len({image.shape for image in images}) == 1
    device = torch.device(job["device"])
    found: dict[str, dict[str, float]] = {"model": {}, "pipeline": {}}
    with torch.inference_mode():
        prepared = [model.pre_processor(image[None].to(device)) for image in images]
        for size in job["timed_batches"]:
            batches = [torch.cat(prepared[i : i + size]) for i in range(0, len(prepared), size)]
            found["model"][str(size)] = rate(model.model, batches, job)
            if same or size == 1:
                batches = [torch.stack(images[i : i + size]).to(device) for i in range(0, len(images), size)]
                found["pipeline"][str(size)] = rate(model, batches, job)
    return found


def rate(function: Callable[[torch.Tensor], Any], batches: list[torch.Tensor], job: Job) -> float:
    """Median over the repeats of images per second, after one pass that is not counted."""
    images = sum(len(batch) for batch in batches)
    rates = []
    for repeat in range(job["repeats"] + 1):
        synchronize(job)
        began = time.perf_counter()
        for batch in batches:
            function(batch).pred_score.cpu()
        synchronize(job)
        if repeat:
            rates.append(images / (time.perf_counter() - began))
    return statistics.median(rates)


def synchronize(job: Job) -> None:
    """Wait for the GPU, where one is used."""
    if job["device"] == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
