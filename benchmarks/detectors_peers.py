"""anomalib's detectors in the detectors' table: the same splits and images, in its own environment and process.

    python -m benchmarks.detectors_peers data/elpv --size 128 --rows benchmarks/detectors.jsonl --ng 0

Notable here:
- Split, sample and test images are those of Kizu's cells, prepared by Kizu's own geometry, rounded to whole grey
  levels, and enlarged to 128 pixels where Kizu enlarges them.
- Backbone: Kizu's own, timm's `tf_efficientnet_lite0` with the weights that come with Kizu and the normalisation that
  they want, cut at strides 8 and 16. So methods are compared, not backbones; anomalib's default is a WideResNet-50.
- anomalib 2.7.0 learns from OK images alone: its data modules put no NG into training, and its SuperSimpleNet refuses
  NG without masks. It has no rows with NG in training.
- PatchCore keeps a tenth of the patches by default, and goes over all patches once for each that it keeps; `--patches`
  gives it a number, for instance the 2000 of Kizu's memory.
- SuperSimpleNet is made for 300 epochs; `--epochs` says how many it gets. Its noise of 0.015 is made for the features
  of torchvision's ResNets. *scaled noise* is noise of the size that Kizu's has: 0.6 standard deviations of features.
- Rows of one kind have the same patches and epochs: a file with others of that product is refused.
- Scores are raw. Seconds are those of preparing and training, without imports; Kizu's count scoring and export as well.
- Speed is the better of anomalib in torch and of its ONNX file in the ONNX Runtime that Kizu uses, images prepared.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.torch
import timm
import torch
import typer
from PIL import Image

from benchmarks import command
from benchmarks.anomalib_peer import (
    Network,
    PatchcoreNetwork,
    PeerAnswer,
    PeerBackbone,
    PeerJob,
    SupersimplenetNetwork,
    make_environment,
    run_peer,
)
from benchmarks.detectors import BATCH, TIMED, Cell, Product, figures_of, finish, images_of, read_rows, row_of
from benchmarks.detectors_report import write_report
from benchmarks.ganomaly_timing import time_onnx
from kizu.errors import UserError
from kizu.models.backbones import DEFAULT, NEEDED, SPECIAL_NORMALISATIONS, BackboneConfig
from kizu.models.inspector import Geometry
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.detectors.supersimplenet import SuperSimpleNetTraining
from kizu.training.pretrained import fitting, packaged_weights, read_state, renamed
from kizu.training.recipe import AUTO

PATCHCORE, SUPERSIMPLENET, SCALED = (
    "anomalib patchcore",
    "anomalib supersimplenet",
    "anomalib supersimplenet, scaled noise",
)
KINDS = (PATCHCORE, SUPERSIMPLENET, SCALED)
LAYERS = {8: "blocks.2", 16: "blocks.4"}
"""Stride → node of the backbone whose output is the map of that stride."""
REPEATS = 3
TRAINING_BATCH = 32
"""anomalib's default, and what its SuperSimpleNet is recommended with."""


@dataclass(frozen=True)
class Peers:
    """Settings of the peers."""

    python: Path
    """Of anomalib's environment."""
    out: Path
    """Folder for images, weights, job files and logs."""
    patches: int
    """That PatchCore keeps, at most; 0: anomalib's default, a tenth."""
    epochs: int
    """Of SuperSimpleNet."""
    threads: int


def detectors_peers(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A manifest folder with OK and NG.")],
    rows: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Finished rows; those in it are not run again.")],
    size: Annotated[int, typer.Option(min=32, max=1024, help="Pixels that the detector sees.")] = 64,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 or 3.")] = 1,
    kind: Annotated[list[str] | None, typer.Option(help="Several times. Left out: all.")] = None,
    ng: Annotated[
        list[int] | None, typer.Option(help="NG in training, several times; anomalib has rows without any alone.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Splits.")] = 5,
    patches: Annotated[int, typer.Option(min=0, help="That PatchCore keeps; 0: its default, a tenth.")] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Of SuperSimpleNet.")] = 300,
    most_ok: Annotated[int, typer.Option(min=1, help="OK in training, and in test, at most.")] = 2000,
    most_ng: Annotated[int, typer.Option(min=1, help="NG in test, at most.")] = 1000,
    minutes: Annotated[float, typer.Option(help="Begin no further row after so many minutes.")] = 1e9,
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of ONNX Runtime.")] = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Images, job files and logs.")] = Path("var/bench/peers"),
    environment: Annotated[Path, typer.Option(metavar="FOLDER", help="anomalib's; made if it is not there.")] = Path(
        "var/bench/anomalib-venv"
    ),
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the page of all rows here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON to stdout, nothing else.")] = False,
) -> None:
    """Append anomalib's PatchCore and SuperSimpleNet to the detectors' table, on the splits of Kizu's rows."""
    if unknown := set(kind or KINDS) - set(KINDS):
        raise UserError(f"Unknown peer {', '.join(sorted(unknown))}.", f"Known: {', '.join(KINDS)}.")
    name, say = dataset.resolve().name, command.progress()
    product = Product(Manifest.read(dataset), name, size, command.check_channels(channels), most_ok, most_ng)
    counts = sorted(set(ng or [0]))
    if learning := [count for count in counts if count != 0]:
        say(f"anomalib learns from OK alone: no rows with {', '.join(map(str, learning))} NG")
    cells = [Cell(name, size, k, 0, seed) for seed in range(seeds) for k in kind or KINDS if 0 in counts]
    for cell in cells:
        check_cell(cell, product)
    check_rows(read_rows(rows), cells, patches, epochs)
    peers = Peers(make_environment(environment), out, patches, epochs, threads)
    done = finish(cells, rows, minutes, lambda cell: measured(cell, product, peers))
    if report is not None:
        write_report(done, report)
    if as_json:
        command.print_json({"benchmark": "detectors", "rows": done})


app = command.single_command(detectors_peers)


def check_cell(cell: Cell, product: Product) -> None:
    """Refuse a cell without a figure.

    Raises:
        UserError: its test split lacks OK or NG, or the data set cannot be split.
    """
    test = images_of(replace(cell, kind=AUTO), product).test
    if len({row.label for row in test}) < 2:
        raise UserError(
            f"{product.manifest.root}: AUROC needs OK and NG images in the test split.", "Add labelled images."
        )


def check_rows(rows: Sequence[dict[str, Any]], cells: Sequence[Cell], patches: int, epochs: int) -> None:
    """Refuse to add to rows of the same peer and product with other settings.

    Raises:
        UserError: names the peer and what it had.
    """
    wanted = {(cell.data, cell.size, cell.kind) for cell in cells}
    for row in rows:
        if (row["data"], row["size"], row["kind"]) not in wanted:
            continue
        what, had, asked = "epochs", row["peer"]["epochs"], epochs
        if row["kind"] == PATCHCORE:
            total = row["train_ok"] * patches_of_image(row["size"])
            what, had, asked = "patches", row["peer"]["patches"], int(total * share_kept(total, patches))
        if had != asked:
            raise UserError(
                f"The rows of {row['kind']} on {row['data']} have {had:g} {what}, not {asked}.",
                f"Give the same --{what}, or another file of rows.",
            )


def patches_of_image(size: int) -> int:
    """Places of the finer map, which is PatchCore's grid."""
    rows, columns = BackboneConfig(size, size, 3).grid(NEEDED[0])
    return rows * columns


def share_kept(total: int, patches: int) -> float:
    """anomalib's ratio for so many patches of all; for 0, its default."""
    # Half a patch more, so that rounding down leaves the number that is wanted.
    return 0.1 if patches == 0 else min(1.0, (patches + 0.5) / total)


def measured(cell: Cell, product: Product, peers: Peers) -> dict[str, Any]:
    """Train and test a peer on a cell's images.

    Raises:
        PeerError: anomalib's process failed.
    """
    images = images_of(replace(cell, kind=AUTO), product)
    geometry = Geometry(images.recipe.image.geometry)
    shutil.rmtree(peers.out / "images", ignore_errors=True)
    train = prepared(product.manifest, images.train, geometry, peers.out / "images/train")
    test = prepared(product.manifest, images.test, geometry, peers.out / "images/test")
    origin = write_weights(peers.out / "backbone.safetensors")
    job = job_of(cell, train, test, [int(row.label == NG) for row in images.test], peers)
    answer, process_seconds = run_peer(peers.python, job)
    scores, labels = np.array(answer.scores), np.array(job.labels)
    throughput, remarks = speeds(job, answer)
    row = row_of(
        cell,
        [cell.kind],
        images.train,
        figures_of(scores[labels == 1], scores[labels == 0]),
        answer.prepare_seconds + answer.train_seconds,
        max(throughput.values()),
        peers.threads,
    )
    peer = {
        "versions": answer.versions,
        "backbone": f"{DEFAULT}, {origin}",
        "side": job.size,
        "epochs": job.epochs,
        "batch_size": job.batch_size,
        "updates": answer.updates,
        **answer.facts,
        "distinct_scores": len(set(answer.scores)),
        "process_seconds": round(process_seconds, 1),
        "throughput": {what: round(rate, 1) for what, rate in throughput.items()},
        "remarks": remarks,
    }
    return row | {"peer": peer}


def prepared(manifest: Manifest, rows: Sequence[Row], geometry: Geometry, folder: Path) -> list[str]:
    """Write what the detector sees of each row as PNG, rounded to whole grey levels; returns the paths."""
    folder.mkdir(parents=True)
    paths = []
    for index, row in enumerate(rows):
        pixels = geometry.pixels(torch.tensor(manifest.image(row))[None]).round().to(torch.uint8)
        array = pixels[0].permute(1, 2, 0).numpy()
        path = (folder / f"{index:06d}.png").resolve()
        Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).save(path)
        paths.append(str(path))
    return paths


def write_weights(path: Path) -> str:
    """Write the backbone's weights under timm's names; returns where they come from.

    Raises:
        UserError: the package with the weights is not installed, or does not fit.
    """
    file, origin = packaged_weights()
    own = timm.create_model(DEFAULT, pretrained=False).state_dict()
    what, remedy = f"{file} does not fit {DEFAULT}", "Reinstall Kizu with its training extra (make install)."
    state = fitting(own, renamed(read_state(file)), what, remedy, shown=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return origin


def job_of(cell: Cell, train: list[str], test: list[str], labels: list[int], peers: Peers) -> PeerJob:
    """The job for anomalib; it trains on all of `train`, which are OK."""
    normalisation = SPECIAL_NORMALISATIONS[DEFAULT]
    backbone = PeerBackbone(
        name=DEFAULT,
        weights=str((peers.out / "backbone.safetensors").resolve()),
        layers=[LAYERS[stride] for stride in NEEDED],
        mean=normalisation.mean,
        std=normalisation.std,
    )
    timed = [i * len(test) // TIMED for i in range(TIMED)]
    return PeerJob(
        network=network_of(cell.kind, backbone, cell.size, len(train), peers.patches),
        train=train,
        test=test,
        labels=labels,
        size=BackboneConfig(cell.size, cell.size, 3).enlarged[0],
        epochs=1 if cell.kind == PATCHCORE else peers.epochs,
        batch_size=TRAINING_BATCH,
        seed=cell.seed,
        threads=peers.threads,
        workers=0,
        device="cpu",
        timed=timed,
        timed_batches=[BATCH],
        repeats=REPEATS,
        export=True,
        folder=str(peers.out / "run"),
    )


def network_of(kind: str, backbone: PeerBackbone, size: int, images: int, patches: int) -> Network:
    """The peer's own settings; all others are anomalib's defaults."""
    if kind == PATCHCORE:
        return PatchcoreNetwork(backbone=backbone, coreset=share_kept(images * patches_of_image(size), patches))
    return SupersimplenetNetwork(backbone=backbone, noise=SuperSimpleNetTraining().noise if kind == SCALED else None)


def speeds(job: PeerJob, answer: PeerAnswer) -> tuple[dict[str, float], list[str]]:
    """Images per second in torch and, where its ONNX file runs, in ONNX Runtime; and what is to be said of that."""
    found = {"torch": answer.throughput["pipeline"][str(BATCH)]}
    if answer.onnx is None:
        return found, [f"no ONNX export: {answer.onnx_error}"]
    images = [np.atleast_3d(np.asarray(Image.open(job.test[i]))) for i in job.timed]
    expected = [answer.scores[i] for i in job.timed]
    try:
        rates, astray = time_onnx(
            Path(answer.onnx), images, expected, job.device, job.threads, job.repeats, sizes=(BATCH,)
        )
    except Exception as error:  # noqa: BLE001 - a file that ONNX Runtime refuses is a finding
        return found, [f"its ONNX export does not run: {str(error)[:200]}"]
    return found | {"ONNX Runtime": rates[BATCH]}, [
        f"its ONNX scores differ from its torch scores by up to {astray:.2%}"
    ]


if __name__ == "__main__":
    command.main(app)
