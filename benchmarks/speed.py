"""Speed of bundles on the CPU, through ONNX Runtime as the service runs them: threads × images per call.

    python -m benchmarks.speed DATASET "auto=RUN/bundle" "auto int8=OTHER/bundle" --report benchmarks/speed.md

Notable here:
- Bundles take turns: a round times each of them once, rounds follow one another, and figures are medians over rounds. A
  ratio is the median of the rounds' ratios to the first bundle of the same threads and images per call.
- Beside the images of a second stand those of a second of one processor core. The former are what a caller sees, and
  fall when other programs want the cores; the latter hardly do. Threads sleep while they wait, as in the service.
- Images are the data set's own, decoded beforehand; whatever happens to pixels is in the graph and in the figures.
- AUROC is of each bundle's own test split, as its run measured it.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import onnxruntime
import typer
from numpy.typing import NDArray

from benchmarks import command
from kizu.errors import UserError
from kizu.models.bundle import Bundle, Session
from kizu.training.data.manifest import Manifest
from kizu.training.study.environment import current_environment, environment_lines
from kizu.training.study.tables import Table, markdown_table

THREADS, BATCHES = (1, 2), (1, 16)
SPEED_COLUMNS = ("bundle", "threads", "images per call", "images/s", "images per core second", "ratio", "core ratio")
BUNDLE_COLUMNS = ("bundle", "detectors", "pixels", "AUROC on test", "8-bit convolutions", "MB")


@dataclass(frozen=True)
class Setting:
    """One way to run a bundle."""

    threads: int
    batch: int
    """Images per call."""


@dataclass(frozen=True)
class Timed:
    """Images a second of one bundle in one setting, by round."""

    name: str
    setting: Setting
    wall: tuple[float, ...]
    """By the clock."""
    core: tuple[float, ...]
    """By the time that all threads together spent calculating."""


def time_bundles(
    bundles: dict[str, Bundle], images: NDArray[np.uint8], setting: Setting, rounds: int, seconds: float
) -> list[Timed]:
    """Time each bundle once a round, in turns.

    Args:
        images: uint8 [N, H, W, C], N ≥ `setting.batch`.
        seconds: that a bundle runs in a round, at least.
    """
    sessions = {name: bundle.open("cpu", setting.threads, spin=False) for name, bundle in bundles.items()}
    calls = [images[i : i + setting.batch] for i in range(0, len(images) - setting.batch + 1, setting.batch)]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
    for session in sessions.values():
        for batch in calls[:2]:  # the first of a shape is slower
            session.score(batch)
    for _ in range(rounds):
        for name, session in sessions.items():
            found[name].append(_rates(session, calls, seconds))
    return [
        Timed(name, setting, tuple(wall for wall, _ in rates), tuple(core for _, core in rates))
        for name, rates in found.items()
    ]


def _rates(session: Session, calls: list[NDArray[np.uint8]], seconds: float) -> tuple[float, float]:
    done, wall, core = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < seconds or not done:
        batch = calls[done // len(calls[0]) % len(calls)]
        session.score(batch)
        done += len(batch)
    spent, used = time.perf_counter() - wall, time.process_time() - core
    return done / spent, done / used


def speed_rows(timed: list[Timed]) -> list[tuple[str, ...]]:
    """Rows of the table, by threads and images per call; ratios are to the first bundle."""
    rows = []
    for setting in dict.fromkeys(entry.setting for entry in timed):
        same = [entry for entry in timed if entry.setting == setting]
        for entry in same:
            wall, core = (
                statistics.median(a / b for a, b in zip(own, first, strict=True))
                for own, first in ((entry.wall, same[0].wall), (entry.core, same[0].core))
            )
            figures = (statistics.median(entry.wall), statistics.median(entry.core))
            ratios = (f"{wall:.2f}", f"{core:.2f}") if entry is not same[0] else ("1", "1")
            rows.append((entry.name, str(setting.threads), str(setting.batch), *(f"{x:.1f}" for x in figures), *ratios))
    return rows


def bundle_row(name: str, bundle: Bundle) -> tuple[str, ...]:
    """What a bundle is: detectors, pixels, AUROC with its interval, convolutions in 8 bits, size."""
    manifest = bundle.manifest
    sections = manifest.recipe["detector"]
    kinds = " + ".join(section["kind"] for section in (sections if isinstance(sections, list) else [sections]))
    found = manifest.metrics.get("auroc")
    ranks = f"{found['value']:.4f} [{found['lower']:.4f}, {found['upper']:.4f}]" if found else "unknown"
    given = manifest.quantisation
    small = f"{given.convolutions} of {given.backbone_convolutions}" if given and given.applied else "none"
    pixels = f"{manifest.geometry.width}×{manifest.geometry.height}"
    return name, kinds, pixels, ranks, small, f"{len(bundle.model) / 1e6:.1f}"


def operator_times(bundle: Bundle, images: NDArray[np.uint8], runs: int) -> dict[str, float]:
    """Milliseconds an image by operator of the optimised graph, the longest first; on one thread.

    Of each node the shortest time of all runs counts: the one that other programs disturbed least.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 3, True
    with TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(bundle.model, options, providers=["CPUExecutionProvider"])
        for _ in range(runs):
            session.run(["score", "heatmap"], {"image": images})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    shortest: dict[tuple[str, str], float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = event["args"]["op_name"], event["name"]
            shortest[key] = min(shortest.get(key, math.inf), event["dur"] / 1000 / len(images))
    times: Counter[str] = Counter()
    for (operator, _), milliseconds in shortest.items():
        times[operator] += milliseconds  # type: ignore[assignment]  # counters may hold fractions
    return dict(times.most_common())


def operator_rows(times: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Rows by operator, a column of milliseconds a bundle: those above 2 % in any, and what is left."""
    shown = {name for of in times.values() for name, spent in of.items() if spent > 0.02 * sum(of.values())}
    order = sorted(shown, key=lambda name: -max(of.get(name, 0.0) for of in times.values()))
    rows = [(name, *(f"{of.get(name, 0.0):.2f}" for of in times.values())) for name in order]
    rest = [sum(spent for name, spent in of.items() if name not in shown) for of in times.values()]
    sums = [sum(of.values()) for of in times.values()]
    return [*rows, ("others", *(f"{x:.2f}" for x in rest)), ("all", *(f"{x:.2f}" for x in sums))]


def read_bundles(named: list[str]) -> dict[str, Bundle]:
    """Bundles by name, from `NAME=BUNDLE`.

    Raises:
        UserError: another form, a name twice, or a bundle that cannot be read.
    """
    bundles = {}
    for text in named:
        name, _, folder = text.partition("=")
        if not name or not folder or name in bundles:
            raise UserError(
                f"'{text}' is not NAME=BUNDLE with a name of its own.", 'For instance "auto=runs/a/bundle".'
            )
        bundles[name] = Bundle.read(Path(folder))
    return bundles


def first_images(manifest: Manifest, count: int) -> NDArray[np.uint8]:
    """The first images of the first one's shape, as often as needed: uint8 [count, H, W, C]."""
    found: list[NDArray[np.uint8]] = []
    for row in manifest.rows:
        image = manifest.image(row)
        if not found or image.shape == found[0].shape:
            found.append(image)
        if len(found) == count:
            break
    if not found:
        raise UserError(f"{manifest.root} has no image.", "Import a data set first (kizu import --help).")
    return np.stack([found[index % len(found)] for index in range(count)])


def render_markdown(result: dict[str, Any]) -> str:
    """Page with both tables and what they were measured on."""
    lines = [
        "# Speed of bundles on the CPU",
        "",
        *environment_lines(result["environment"]),
        f"- Load average when it ended: {result['load_after']}. Above {max(THREADS)}, other programs had a part of the "
        "cores: read images per core second, and ratios.",
        f"- `{result['command']}`: {result['rounds']} rounds of {result['seconds']:g} s for each bundle and setting",
        "",
        *command.method_notes(__doc__),
        "",
        *markdown_table(BUNDLE_COLUMNS, result["bundles"]),
        "",
        *markdown_table(SPEED_COLUMNS, result["rows"]),
        "",
        f"Milliseconds an image by operator, on one thread, {BATCHES[-1]} images per call; of each node the shortest "
        f"of {result['rounds']} runs:",
        "",
        *markdown_table(("operator", *(row[0] for row in result["bundles"])), result["operators"]),
    ]
    return "\n".join(lines) + "\n"


def speed(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A manifest folder; its images are scored.")],
    bundle: Annotated[list[str], typer.Argument(metavar="NAME=BUNDLE…", help="Bundles; ratios are to the first.")],
    rounds: Annotated[int, typer.Option(min=1, help="Of each bundle and setting.")] = 9,
    seconds: Annotated[float, typer.Option(min=0, help="Of each bundle in a round, at least.")] = 1.0,
    report: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write a Markdown page here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, nothing else.")] = False,
) -> None:
    """Time bundles on the CPU with 1 and 2 threads, 1 and 16 images per call."""
    say, bundles = command.progress(), read_bundles(bundle)
    images = first_images(Manifest.read(dataset), 2 * math.lcm(*BATCHES))
    environment = current_environment().as_dict()
    command.warn_if_busy(environment["load"], say)
    timed: list[Timed] = []
    for threads in THREADS:
        for batch in BATCHES:
            timed += time_bundles(bundles, images, Setting(threads, batch), rounds, seconds)
            say(f"{threads} threads, {batch} images per call: done")
    result: dict[str, Any] = {
        "benchmark": "speed",
        "command": f"python -m benchmarks.speed DATASET {' '.join(f'{name!r}=BUNDLE' for name in bundles)}",
        "environment": environment,
        "load_after": current_environment().load,
        "rounds": rounds,
        "seconds": seconds,
        "bundles": [bundle_row(name, found) for name, found in bundles.items()],
        "rows": speed_rows(timed),
        "operators": operator_rows(
            {name: operator_times(found, images[: BATCHES[-1]], rounds) for name, found in bundles.items()}
        ),
    }
    if report is not None:
        command.write_page(report, render_markdown(result))
    if as_json:
        command.print_json(result)
    else:
        tables = [Table("bundles", BUNDLE_COLUMNS, result["bundles"]), Table("speed", SPEED_COLUMNS, result["rows"])]
        command.print_tables(tables, [])


app = command.single_command(speed)

if __name__ == "__main__":
    command.main(app)
