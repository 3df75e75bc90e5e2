"""Detectors on one product: each kind, with no NG, with a few and with all of them, over several splits.

    python -m benchmarks.detectors data/elpv --size 256 --rows benchmarks/detectors.jsonl

Notable here:
- Rows are appended as they finish, and those that are there are not run again: a long table grows over many sittings.
- Every kind sees the same split and the same NG: a sample of few is part of a sample of more.
- Specificity at an FNR is read from the test split's own curve, to compare detectors; it promises nothing. Only an
  operating point promises.
- Recipes are what a user would write: a kind, the size of images, nothing tuned.
- Detectors of others see the same splits and images, and write rows of the same form: `benchmarks.detectors_peers`.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks import command
from benchmarks.detectors_report import write_report
from kizu.errors import UserError
from kizu.models.bundle import Bundle
from kizu.training.auto import resolve
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.detectors import DETECTORS
from kizu.training.evaluation.ranking import auroc, average_precision
from kizu.training.execution import Execution
from kizu.training.loop import LoopSettings
from kizu.training.parallel import Processes
from kizu.training.pipeline import train_run
from kizu.training.progress import RunLog
from kizu.training.recipe import AUTO, Recipe, parse_recipe
from kizu.training.run import SCORES_FILE, Run
from kizu.training.study.environment import current_environment
from kizu.training.study.recipes import sampling_key

ALL = -1
"""For a number of NG: as many as the train split has."""
TIMED, BATCH = 64, 16


@dataclass(frozen=True)
class Cell:
    """One training of the table."""

    data: str
    size: int
    kind: str
    ng: int
    """NG in training, `ALL` for all."""
    seed: int


@dataclass(frozen=True)
class Product:
    """Data set and how it is looked at."""

    manifest: Manifest
    name: str
    size: int
    channels: int
    most_ok: int
    """OK in training and in test, at most."""
    most_ng: int
    """NG in test, at most."""


@dataclass(frozen=True)
class CellImages:
    """A cell's recipe and the images that it sees."""

    recipe: Recipe
    train: list[Row]
    calibration: list[Row]
    test: list[Row]


def detectors(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A manifest folder with OK and NG.")],
    rows: Annotated[Path, typer.Option(metavar="FILE.jsonl", help="Finished rows; those in it are not run again.")],
    size: Annotated[int, typer.Option(min=32, max=1024, help="Pixels that the detector sees.")] = 64,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 or 3.")] = 1,
    kind: Annotated[
        list[str] | None, typer.Option(help="A detector, or 'DETECTOR PRESET'; several times. Left out: auto.")
    ] = None,
    ng: Annotated[
        list[int] | None, typer.Option(help="NG in training, -1 for all; several times. Left out: 0, 10, 50, -1.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Splits.")] = 5,
    most_ok: Annotated[int, typer.Option(min=1, help="OK in training, and in test, at most.")] = 2000,
    most_ng: Annotated[int, typer.Option(min=1, help="NG in test, at most.")] = 1000,
    minutes: Annotated[float, typer.Option(help="Begin no further row after so many minutes.")] = 1e9,
    threads: Annotated[int, typer.Option(min=1, help="Of torch and of ONNX Runtime.")] = 2,
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write the page of all rows here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON to stdout, nothing else.")] = False,
) -> None:
    """Compare detectors on one product: AUROC, average precision, specificity at FNR 5 and 1 %, time, speed."""
    kinds = kind or [AUTO]
    if unknown := {kind.partition(" ")[0] for kind in kinds} - {AUTO, *DETECTORS}:
        raise UserError(f"Unknown detector {', '.join(sorted(unknown))}.", f"Known: auto, {', '.join(DETECTORS)}.")
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    name = dataset.resolve().name
    product = Product(Manifest.read(dataset), name, size, command.check_channels(channels), most_ok, most_ng)
    cells = [Cell(name, size, k, n, seed) for seed in range(seeds) for n in ng or (0, 10, 50, ALL) for k in kinds]
    done = finish(cells, rows, minutes, lambda cell: measured(cell, product, threads))
    if report is not None:
        write_report(done, report)
    if as_json:
        command.print_json({"benchmark": "detectors", "rows": done})


app = command.single_command(detectors)


def finish(
    cells: Iterable[Cell], rows: Path, minutes: float, measure: Callable[[Cell], dict[str, Any] | None]
) -> list[dict[str, Any]]:
    """Measure the cells that `rows` lacks and append their rows to it; returns all its rows.

    Args:
        minutes: no further cell is begun after so many.
        measure: gives a cell's row, or None where there is nothing to measure.
    """
    began, say = time.monotonic(), command.progress()
    done = read_rows(rows)
    for cell in cells:
        if any(matches(row, cell) for row in done):
            continue
        if time.monotonic() - began > 60 * minutes:
            say(f"{minutes:g} minutes are over; run the command again to go on")
            break
        row = measure(cell)
        if row is None:
            continue
        done.append(row)
        rows.parent.mkdir(parents=True, exist_ok=True)
        with rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        say(f"{cell.kind}, {cell.ng} NG, seed {cell.seed}: AUROC {row['auroc']:.3f}, {row['seconds']:.0f} s")
    return done


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier sitting; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def matches(row: dict[str, Any], cell: Cell) -> bool:
    """Tell if a row is of this cell."""
    return all(row[key] == value for key, value in asdict(cell).items())


def measured(cell: Cell, product: Product, threads: int) -> dict[str, Any] | None:
    """Train and test a cell; None where the kind does not use what the cell is about."""
    images = images_of(cell, product)
    train = images.train
    if cell.ng == ALL and not any(row.label == NG for row in train):
        return None
    recipe, _ = resolve(images.recipe, train)
    folder = Path(mkdtemp(prefix="kizu-detectors-"))
    try:
        run = Run(recipe, product.manifest, Splits(train, images.calibration, images.test), "benchmark", folder, folder)
        log = RunLog(folder, quiet=True)
        began = time.perf_counter()
        try:
            settings = LoopSettings(checkpoint_seconds=1e9, sample_every=10**9)
            bundle = train_run(run, Execution(log, Processes().device("cpu"), settings=settings))
        except UserError as error:
            if cell.ng == 0 and "learns from them" in error.problem:
                return None
            raise
        finally:
            log.close()
        assert bundle is not None
        found = figures(folder / SCORES_FILE)
        seconds = time.perf_counter() - began
        kinds = [section.kind for section in recipe.detector]
        return row_of(cell, kinds, train, found, seconds, speed(bundle, product, threads), threads)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def row_of(
    cell: Cell,
    kinds: list[str],
    train: Iterable[Row],
    found: dict[str, float],
    seconds: float,
    images_per_second: float,
    threads: int,
) -> dict[str, Any]:
    """A cell's row, JSON-able: its `figures`, seconds of training, speed, and the facts of this process."""
    labels, environment = [row.label for row in train], current_environment().as_dict()
    return {
        **asdict(cell),
        "detectors": kinds,
        "train_ok": labels.count(OK),
        "train_ng": labels.count(NG),
        **found,
        "seconds": round(seconds, 1),
        "images_per_second": round(images_per_second, 1),
        "threads": threads,
        **{fact: environment[fact] for fact in ("date", "cpu", "load", "versions")},
    }


def images_of(cell: Cell, product: Product) -> CellImages:
    """Split the product by the cell's seed, and sample its train split."""
    recipe = recipe_of(cell, product)
    splits = assign_splits(product.manifest, cell.seed, recipe.splits.fractions)
    train = sampled(splits.train, cell, product.most_ok)
    test = capped(splits.test, product.most_ok, product.most_ng)
    return CellImages(recipe, train, splits.calibration, test)


def recipe_of(cell: Cell, product: Product) -> Recipe:
    """The recipe that a user would write; a kind may be followed by one of its presets."""
    kind, _, preset = cell.kind.partition(" ")
    return parse_recipe(
        {
            "name": "detectors",
            "dataset": product.name,
            "seed": cell.seed,
            "image": {"size": cell.size, "channels": product.channels},
            "detector": {"kind": kind} | ({"preset": preset} if preset else {}),
        },
        "benchmark",
    )


def sampled(rows: Iterable[Row], cell: Cell, most_ok: int) -> list[Row]:
    """The train split with so many NG and at most so many OK, by a sample of the cell's seed."""
    wanted = {OK: most_ok, NG: 10**9 if cell.ng == ALL else cell.ng}
    return _first(rows, wanted, cell.seed)


def capped(rows: Iterable[Row], most_ok: int, most_ng: int) -> list[Row]:
    """At most so many of each label, the same in every cell of a split."""
    return _first(rows, {OK: most_ok, NG: most_ng}, 0)


def _first(rows: Iterable[Row], wanted: dict[str, int], seed: int) -> list[Row]:
    left, kept = dict(wanted), set()
    rows = [row for row in rows if row.label in wanted]
    for row in sorted(rows, key=lambda row: sampling_key(row.path, seed)):
        if left[row.label] > 0:
            left[row.label] -= 1
            kept.add(row.path)
    return [row for row in rows if row.path in kept]


def figures(scores: Path) -> dict[str, float]:
    """AUROC, average precision and specificities of the test split, from a run's `scores.csv`."""
    held: dict[str, list[float]] = {OK: [], NG: []}
    with scores.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            if line["set"] == "test":
                held[line["label"]].append(float(line["score"]))
    return figures_of(np.array(held[NG]), np.array(held[OK]))


def figures_of(ng: NDArray[np.float64], ok: NDArray[np.float64]) -> dict[str, float]:
    """AUROC, average precision and specificities of scores, none of them of no image."""
    ranking, precision = auroc(ng, ok), average_precision(ng, ok)
    assert ranking is not None
    assert precision is not None
    at = {f"specificity_{percent}": specificity(ng, ok, percent / 100) for percent in (5, 1)}
    return {"auroc": ranking.value, "ap": precision.value, **at, "test_ng": len(ng), "test_ok": len(ok)}


def specificity(ng: np.ndarray, ok: np.ndarray, fnr: float) -> float:
    """Share of OK below the highest threshold that misses at most this share of the NG."""
    threshold = np.sort(ng)[int(fnr * len(ng))]
    return float((ok < threshold).mean())


def speed(bundle: Bundle, product: Product, threads: int) -> float:
    """Images a second through ONNX Runtime on the CPU, in batches."""
    session = bundle.open("cpu", threads)
    row = next(row for row in product.manifest.rows if row.label == OK)
    batch = np.stack([product.manifest.image(row)] * BATCH)
    session.score(batch)
    began = time.perf_counter()
    for _ in range(TIMED // BATCH):
        session.score(batch)
    return TIMED / (time.perf_counter() - began)


if __name__ == "__main__":
    command.main(app)
