"""`kizu demo`: the whole way, on rendered boards and brushed metal, by the commands and calls that a factory uses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from kizu.errors import UserError

BOARDS_RECIPE = """\
name = "demo-boards"
dataset = "boards"
target_fnr = 0.10

[image]
size = 64
channels = 1

[generator]
kind = "stylegan2-ada"
preset = "demo"
size = 32
crop = 32
kimg = 8
count = 200
measurements = 2
placed = true

[generator.options]
ada_kimg = 100
"""
TEXTURE_RECIPE = """\
name = "demo-texture"
dataset = "texture"
target_fnr = 0.10

[image]
size = 128
channels = 1
"""


@dataclass(frozen=True)
class Product:
    """What the demo renders, and how it is inspected."""

    folder: str
    """Of its data set; the recipe's name is `demo-` and this."""
    rendered: tuple[str, ...]
    """Options of `kizu data render`."""
    recipe: str
    training: str
    """What its training does, for the reader."""

    @property
    def recipe_name(self) -> str:
        """Name that the service knows it by."""
        return f"demo-{self.folder}"


TEXTURE_COUNTS = ("--count-ok", "320", "--count-ng", "160", "--sheets", "160", "--seed", "7")
# NG of 32 boards or sheets calibrate: enough to certify an FNR of 10 % by the one that scores lowest.
PRODUCTS = (
    Product(
        "boards",
        ("--count-ok", "640", "--count-ng", "160", "--boards", "160", "--seed", "7"),
        BOARDS_RECIPE,
        "Training a StyleGAN2-ADA on the few NG and placing what it draws in OK boards; then the detectors that suit "
        "the data, exporting them as one graph, choosing its threshold on real NG that none has seen",
    ),
    Product(
        "texture",
        ("--product", "texture", "--size", "128", "--channels", "1", *TEXTURE_COUNTS),
        TEXTURE_RECIPE,
        "Training the detectors that suit brushed metal, on OK and NG alone",
    ),
)
SHOWN_OK, SHOWN_NG = 40, 20
MARKER = ".kizu-demo"

console = Console()


def register(app: typer.Typer) -> None:
    """Add `kizu demo`, which needs training and service."""
    app.command("demo")(demo)


def demo(
    folder: Annotated[Path, typer.Option("--dir", help="Where the demo keeps its files; made anew.")] = Path(
        "var/demo"
    ),
    port: Annotated[int, typer.Option(help="Port of the service on 127.0.0.1.")] = 8000,
    leave: Annotated[bool, typer.Option("--exit", help="End after the table instead of serving on.")] = False,
) -> None:
    """Render two products, train on them, serve the models, POST parts and compare the verdicts with the truth."""
    started = time.monotonic()
    _make_folder(folder)
    for product in PRODUCTS:
        _step(f"Rendering: {product.folder}")
        _kizu("data", "render", str(folder / product.folder), *product.rendered)
        recipe, run = folder / f"{product.folder}.toml", _run_folder(folder, product)
        recipe.write_text(product.recipe, encoding="utf-8")
        _step(product.training)
        _kizu("train", str(recipe), "--out", str(run))
    environment = os.environ | {"KIZU_DATA_DIR": str(folder / "service"), "KIZU_AUDIT_RATE": "0.1"}
    _step("Registering the bundles as champions")
    for product in PRODUCTS:
        _kizu("models", "add", str(_run_folder(folder, product) / "bundle"), "--promote", env=environment)
    with _service(port, environment, folder / "service.log") as url:
        for product in PRODUCTS:
            _step(f"POSTing parts that the model has never seen to {url}: {product.folder}")
            parts = _test_parts(folder / product.folder, _run_folder(folder, product))
            _show(_inspect(url, product.recipe_name, parts))
            _show_quality(url, product.recipe_name)
        reports = ", ".join(str(_run_folder(folder, product) / "bundle" / "report.html") for product in PRODUCTS)
        generator = _run_folder(folder, PRODUCTS[0]) / "generator" / "report.html"
        console.print(
            f"[dim]{time.monotonic() - started:.0f} s in all; reports: {reports}; synthetic NG: {generator}; "
            f"the service's log: {folder / 'service.log'}[/]",
            soft_wrap=True,
        )
        if not leave:
            _serve_on(url)


def _run_folder(folder: Path, product: Product) -> Path:
    return folder / f"run-{product.folder}"


def _make_folder(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise UserError(f"{folder} is in use by something else.", "Give --dir a new folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _step(text: str) -> None:
    console.print(f"[bold cyan]▸[/] [bold]{text}[/]")


def _kizu(*arguments: str, env: dict[str, str] | None = None) -> None:
    finished = subprocess.run([sys.executable, "-m", "kizu", *arguments], env=env, check=False)
    if finished.returncode:
        raise typer.Exit(finished.returncode)


@contextmanager
def _service(port: int, environment: dict[str, str], log: Path) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "kizu", "serve", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > deadline:
                remedy = f"Is the port free? Try --port 8001; {log} says more."
                raise UserError(f"The service did not come up on {url}.", remedy)
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def _test_parts(dataset: Path, run: Path) -> list[tuple[Path, str, str]]:
    """Return (image, truth, defect) of parts in the test split, OK and NG mixed."""
    from kizu.training.data.manifest import NG, OK, Manifest
    from kizu.training.data.splits import read_split

    test = read_split(run / "splits.csv", "test")
    rows = [row for row in Manifest.read(dataset).rows if row.path in test]
    ok = [row for row in rows if row.label == OK]
    ng = [row for row in rows if row.label == NG]
    step_ok, step_ng = max(1, len(ok) // SHOWN_OK), max(1, len(ng) // SHOWN_NG)
    chosen = sorted([*ok[::step_ok][:SHOWN_OK], *ng[::step_ng][:SHOWN_NG]], key=lambda row: row.path.rpartition("_")[2])
    return [(dataset / row.path, row.label, row.defect) for row in chosen]


def _inspect(url: str, recipe: str, parts: list[tuple[Path, str, str]]) -> list[dict[str, Any]]:
    """POST every part, then review it with the truth, as an operator would."""
    found = []
    with httpx.Client(base_url=url, timeout=30) as client:
        for number, (path, truth, defect) in enumerate(parts, 1):
            answer = client.post(
                "/v1/inspections",
                params={"recipe": recipe, "serial": f"B{number:04d}", "station": "AOI-1", "lot": "demo"},
                content=path.read_bytes(),
                headers={"Content-Type": "image/png", "Idempotency-Key": f"{recipe}-{number}"},
            )
            answer.raise_for_status()
            inspection = answer.json()
            review = {"label": truth, "defect": defect or None, "reviewer": "demo"}
            client.post(f"/v1/inspections/{inspection['id']}/reviews", json=review).raise_for_status()
            found.append({**inspection, "truth": truth, "defect": defect})
    return found


def _show(found: list[dict[str, Any]]) -> None:
    table = Table(title=f"{len(found)} parts of the test split, sorted by score", title_justify="left")
    for column in ("serial", "truth", "verdict", "score", ""):
        table.add_column(column, justify="right" if column == "score" else "left")
    for part in sorted(found, key=lambda part: part["score"]):
        missed = part["truth"] == "NG" and part["verdict"] == "OK"
        false_call = part["truth"] == "OK" and part["verdict"] == "NG"
        remark = "[bold red]escape[/]" if missed else "[yellow]false call[/]" if false_call else ""
        truth = f"NG {part['defect']}" if part["truth"] == "NG" else "OK"
        colour = {"OK": "green", "NG": "red", "REVIEW": "yellow"}[part["verdict"]]
        table.add_row(part["serial"], truth, f"[{colour}]{part['verdict']}[/]", f"{part['score']:.4f}", remark)
    console.print(table)


def _show_quality(url: str, recipe: str) -> None:
    quality = httpx.get(f"{url}/v1/quality", params={"recipe": recipe}, timeout=30).json()
    table = Table(title=f"GET /v1/quality?recipe={recipe}, after the reviews", title_justify="left")
    for column in ("figure", "rate", "counts", "bounds"):
        table.add_column(column)
    for name, meaning in (
        ("specificity", "specificity: OK that passed"),
        ("overkill", "overkill: OK that were called NG"),
        ("fnr", "FNR: NG that passed"),
        ("escape_rate", "escapes among passed parts"),
    ):
        rate = quality[name]
        value = "–" if rate["rate"] is None else f"{rate['rate']:.1%}"
        bounds = f"{rate['lower']:.1%} … {rate['upper']:.1%} ({rate['confidence']:.0%})"
        table.add_row(meaning, value, f"{rate['count']} of {rate['total']}", bounds)
    console.print(table)
    for caveat in quality["caveats"]:
        console.print(f"[dim]· {caveat}[/]", highlight=False)


def _serve_on(url: str) -> None:
    console.print(f"[bold]Serving on {url}[/] (API: {url}/docs). Ctrl-C ends.")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("Stopping.")
