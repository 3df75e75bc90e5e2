"""Offline commands: import, render, train, synthesise, evaluate. Heavy modules are imported inside the commands."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kizu.errors import UserError, shortened
from kizu.training.data.pool import Progress
from kizu.training.study.cli import bench_app
from kizu.training.threshold_cli import threshold

if TYPE_CHECKING:
    from kizu.models.bundle import Device
    from kizu.training.data.importers.staging import Journal
    from kizu.training.data.manifest import Manifest

Source = Annotated[Path, typer.Argument(metavar="SRC", help="Folder with the images, as downloaded or collected.")]
Destination = Annotated[Path, typer.Argument(metavar="DEST", help="New folder for the data set.")]
Json = Annotated[bool, typer.Option("--json", help="Print a machine-readable summary to stdout, nothing else.")]
OfficialSplit = Annotated[bool, typer.Option("--official-split", help="Keep the published train and test split.")]
Product = Literal["boards", "texture"]
Category = Annotated[str, typer.Option(help="Which category to take, where SRC holds several.")]


def register(app: typer.Typer) -> None:
    """Add the training commands to `app`."""
    app.add_typer(_import_app(), name="import")
    app.add_typer(_data_app(), name="data")
    app.command("train")(_train)
    app.command("synthesize")(_synthesize)
    app.command("evaluate")(_evaluate)
    app.command("threshold")(threshold)
    app.add_typer(bench_app(), name="bench")


def _import_app() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="Make a data set from images: checked, complete or not at all.")
    group.command("folder")(_import_folder)
    group.command("deeppcb")(_import_deeppcb)
    group.command("elpv")(_import_elpv)
    group.command("mvtec")(_import_mvtec)
    group.command("visa")(_import_visa)
    return group


def _data_app() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="Work on data sets.")

    @group.callback()
    def data() -> None:
        """Keeps `render` a subcommand of its own while it is the only one."""

    group.command("render")(_render)
    return group


def _import_folder(
    source: Source,
    destination: Destination,
    group_by: Annotated[
        str,
        typer.Option(
            metavar="none|parent|REGEX",
            help="What must never straddle splits: 'parent' takes the folder that holds an image, besides label and "
            "defect; a regular expression with one capture group is searched in the relative path.",
        ),
    ] = "none",
    as_json: Json = False,
) -> None:
    """Own images: ok/…, ng/<defect>/…, optional masks/… and unlabelled/…, at any depth."""
    from kizu.training.data.importers.folder import import_folder

    with _journal("Importing images") as journal:
        manifest = import_folder(source, destination, group_by=group_by, journal=journal)
    _report(manifest, journal, as_json)


def _import_deeppcb(
    source: Source,
    destination: Destination,
    tile: Annotated[int | None, typer.Option(help="Cut tiles of N×N pixels; omit to keep whole images.")] = None,
    stride: Annotated[int | None, typer.Option(help="Pixels from tile to tile; the tile's size if omitted.")] = None,
    max_ok_per_ng: Annotated[
        float | None, typer.Option(help="Keep at most this many OK tiles per NG tile of a board; all if omitted.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the OK tiles that are kept.")] = 0,
    as_json: Json = False,
) -> None:
    """DeepPCB: templates are OK, tested images NG with boxes; the group is the board."""
    from kizu.training.data.importers.deeppcb import import_deeppcb

    with _journal("Importing boards") as journal:
        manifest = import_deeppcb(
            source, destination, tile=tile, stride=stride, max_ok_per_ng=max_ok_per_ng, seed=seed, journal=journal
        )
    _report(manifest, journal, as_json)


def _import_elpv(source: Source, destination: Destination, as_json: Json = False) -> None:
    """ELPV solar cells: OK at defect probability 0, NG at 1, else unlabelled."""
    from kizu.training.data.importers.elpv import import_elpv

    with _journal("Importing cells") as journal:
        manifest = import_elpv(source, destination, journal=journal)
    _report(manifest, journal, as_json)


def _import_mvtec(
    source: Source,
    destination: Destination,
    official_split: OfficialSplit = False,
    category: Category = "",
    as_json: Json = False,
) -> None:
    """MVTec AD and data sets in its layout, one category at a time."""
    from kizu.training.data.importers.mvtec import import_mvtec

    with _journal("Importing images") as journal:
        manifest = import_mvtec(source, destination, official_split=official_split, category=category, journal=journal)
    _report(manifest, journal, as_json)


def _import_visa(
    source: Source,
    destination: Destination,
    official_split: OfficialSplit = False,
    category: Category = "",
    as_json: Json = False,
) -> None:
    """VisA, one category at a time."""
    from kizu.training.data.importers.visa import import_visa

    with _journal("Importing images") as journal:
        manifest = import_visa(source, destination, official_split=official_split, category=category, journal=journal)
    _report(manifest, journal, as_json)


def _render(
    destination: Destination,
    product: Annotated[Product, typer.Option(help="Circuit boards, or sheets of brushed metal.")] = "boards",
    count_ok: Annotated[int, typer.Option(min=1, help="OK images.")] = 600,
    count_ng: Annotated[int, typer.Option(min=0, help="NG images, spread over the defect classes.")] = 140,
    size: Annotated[int, typer.Option(min=32, max=512, help="Pixels of an image's side.")] = 64,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1: grey, 3: RGB.")] = 3,
    views: Annotated[int, typer.Option(min=1, max=4, help="Places on the board that the camera looks at.")] = 1,
    groups: Annotated[
        int, typer.Option("--boards", "--sheets", min=1, help="Boards or sheets (groups) that the images show.")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Same seed, same images.")] = 0,
    as_json: Json = False,
) -> None:
    """Procedural circuit boards or brushed metal with named defects, masks, boxes and groups."""
    from kizu.training.data.render import render_boards
    from kizu.training.data.texture import render_textures

    counts = {"count_ok": count_ok, "count_ng": count_ng, "size": size, "channels": channels, "seed": seed}
    if product == "texture" and views != 1:
        raise UserError(f"--views {views}: a texture has no views", "Leave --views out, or render boards.")
    with _journal(f"Rendering {'boards' if product == 'boards' else 'sheets'}") as journal:
        if product == "texture":
            manifest = render_textures(destination, sheets=groups, **counts, journal=journal)
        else:
            manifest = render_boards(destination, boards=groups, views=views, **counts, journal=journal)
    _report(manifest, journal, as_json)


def _train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, on which data set.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder for checkpoint, samples and bundle.")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue from RUN's checkpoint, if there is one.")] = False,
    as_json: Json = False,
) -> None:
    """Train a recipe's generator, if it has one, and its detector; choose the threshold; export the bundle RUN/bundle.

    Ctrl-C writes a checkpoint; --resume continues as if nothing had happened. For several GPUs:
    torchrun --nproc-per-node N -m kizu train …
    """
    _check_device(device)
    from kizu.training.loop import Interrupted
    from kizu.training.pipeline import train

    try:
        bundle = train(recipe, out, device=device, resume=resume)
    except Interrupted:
        Console(stderr=True).print(f"Stopped. Continue with: kizu train {recipe} --out {out} --resume", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json and bundle is not None:
        manifest = bundle.manifest
        summary = {
            "bundle": str(bundle.path),
            "operating_point": manifest.operating_point.model_dump(mode="json"),
            "metrics": manifest.metrics,
        }
        typer.echo(json.dumps(summary, allow_nan=False))


def _synthesize(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run whose recipe has a [generator].")],
    count: Annotated[int, typer.Option(min=1, help="Images to draw.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="New folder for the images and their manifest.")],
    defect: Annotated[
        str | None, typer.Option("--class", metavar="C", help="Defect class; left out: as trained.")
    ] = None,
    truncation: Annotated[
        float, typer.Option(min=0.0, max=1.0, metavar="ψ", help="Below 1, images are more typical and less varied.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the first image; the next have seed + 1, …")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw synthetic NG with a run's generator: PNGs, masks where it knows them, and a manifest that marks each as
    synthetic. A recipe's filter does not apply.

    An image is a function of run, seed, class and ψ; the manifest's origin column carries run and seed.
    """
    _check_device(device)
    from kizu.training.data.synthetic import write_synthetic
    from kizu.training.generators.placing import PlacedGenerator
    from kizu.training.generators.stored import open_generator
    from kizu.training.generators.trained import TrainedGenerator
    from kizu.training.parallel import Processes

    generator = open_generator(run)
    generator.class_numbers(1, defect)
    trained = generator.crops if isinstance(generator, PlacedGenerator) else generator
    if isinstance(trained, TrainedGenerator):
        trained.network.to(Processes().device(device))
    elif truncation != 1:
        raise UserError(f"--truncation does not apply to '{generator.kind}', which does not train.", "Leave it out.")
    with _journal("Drawing NG") as journal:
        journal.total = count
        manifest = write_synthetic(
            out,
            generator.batches(count, seed=seed, defect_class=defect, truncation=truncation),
            kind=generator.kind,
            run=generator.run,
            total=count,
            progress=journal.progress,
        )
    _report(manifest, journal, as_json)


def _evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder RUN/bundle.")],
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A manifest folder.")],
    split: Annotated[
        str,
        typer.Option(
            metavar="auto|test|calibration|train|all",
            help="auto: the test split of the model's own data set; every labelled image of another.",
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per call of the model.")] = 16,
    report: Annotated[Path | None, typer.Option(help="Write the report here as well, one HTML file.")] = None,
    as_json: Json = False,
) -> None:
    """Run a bundle's ONNX file over a data set: AUROC, specificity and FNR with bounds, and a report."""
    from kizu.models.bundle import Bundle
    from kizu.training.data.manifest import Manifest
    from kizu.training.evaluation.evaluate import SplitChoice, choose_rows, evaluate_rows
    from kizu.training.evaluation.summary import summary_table

    if split not in get_args(SplitChoice):
        raise UserError(f"There is no split '{split}'.", f"Choose one of {', '.join(get_args(SplitChoice))}.")
    _check_device(device)
    opened = Bundle.read(bundle)
    manifest = Manifest.read(dataset)
    chosen = choose_rows(opened, manifest, cast(SplitChoice, split))
    with _bar("Scoring", len(chosen.rows)) as progress:
        found = evaluate_rows(
            opened,
            manifest,
            chosen,
            device=cast("Device", device),
            batch_size=batch_size,
            progress=progress,
        )
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(found.report_html, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{escape(opened.manifest.recipe_name)} on the {found.evaluated} ({found.provider})")
    console.print(summary_table(found.metrics))
    for note in [opened.manifest.operating_point.statement(), *found.notes]:
        console.print(escape(note))
    if report is not None:
        console.print(f"report: {escape(str(report))}")


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"There is no device '{device}'.", "Choose auto, cpu or cuda.")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Progress]:
    """Show a progress bar on stderr; yields what advances it."""
    from rich.progress import Progress as RichProgress

    with RichProgress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda more: bar.advance(task, more)


@contextmanager
def _journal(title: str) -> Iterator[Journal]:
    """Yield a journal whose progress shows on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    from kizu.training.data.importers.staging import Journal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        journal = Journal()

        def advance(more: int) -> None:
            bar.update(task, advance=more, total=journal.total or None)

        journal.progress = advance
        started = time.monotonic()
        yield journal
        journal.seconds = time.monotonic() - started


def _report(manifest: Manifest, journal: Journal, as_json: bool) -> None:
    per_class = Counter(name for row in manifest.rows for name in row.defects)
    if as_json:
        summary = {
            "destination": str(manifest.root),
            "images": manifest.counts(),
            "defects": dict(sorted(per_class.items())),
            "groups": len(manifest.groups),
            "masks": sum(1 for row in manifest.rows if row.mask),
            "empty_masks": journal.empty_masks,
            "skipped": journal.skipped,
            "notes": journal.notes,
            "seconds": round(journal.seconds, 3),
        }
        typer.echo(json.dumps(summary, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    table = Table(
        title=escape(f"{manifest.root}: {len(manifest)} images in {journal.seconds:.1f} s"), title_justify="left"
    )
    table.add_column("label")
    table.add_column("images", justify="right")
    for label, count in manifest.counts().items():
        table.add_row(label, str(count))
    for name, count in sorted(per_class.items()):
        table.add_row(f"  {escape(name)}", str(count), style="dim")
    if manifest.groups:
        table.add_row("groups", str(len(manifest.groups)))
    console.print(table)
    if journal.empty_masks:
        ng = f"{len(journal.empty_masks)} NG image{'s' * (len(journal.empty_masks) != 1)}"
        console.print(f"[yellow]warning:[/] {ng} with an empty mask, imported without it: the defect is not located")
    for path in shortened(journal.empty_masks):
        console.print(f"  {escape(path)}")
    for note in shortened(journal.notes):
        console.print(f"[yellow]note:[/] {escape(note)}")
    for skip in shortened(journal.skipped):
        console.print(f"[dim]skipped: {escape(skip)}[/]")
