"""`kizu threshold`: show what each threshold of a bundle would do, or write the bundle again with another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kizu.errors import UserError

if TYPE_CHECKING:
    from kizu.models.bundle import Bundle
    from kizu.models.curve import ThresholdCurve
    from kizu.models.rethreshold import ThresholdChoice


def threshold(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder RUN/bundle.")],
    target_fnr: Annotated[
        float | None, typer.Option(metavar="α", help="Certify this FNR: the highest threshold that does.")
    ] = None,
    specificity: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Pass this share of the calibration OK parts.")
    ] = None,
    at: Annotated[float | None, typer.Option(metavar="SCORE", help="Take this threshold.")] = None,
    confidence: Annotated[
        float | None, typer.Option(metavar="C", help="Confidence of the bounds; the recipe's if left out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for the bundle.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a machine-readable result to stdout, nothing else.")
    ] = False,
) -> None:
    """Choose a bundle's operating point after training: writes a new bundle with the same graph.

    Without --target-fnr, --specificity or --at: print the curve of thresholds, and write nothing. Bounds hold for the
    whole curve at once, so that looking at it first costs nothing more; only the recipe's own target is certified by
    itself.
    """
    from kizu.models.bundle import Bundle
    from kizu.models.rethreshold import ThresholdChoice, curve_of

    opened = Bundle.read(bundle)
    if target_fnr is None and specificity is None and at is None:
        if out is not None:
            raise UserError(
                "Without a choice there is no bundle to write.", "Give --target-fnr, --specificity or --at."
            )
        _show_curve(opened, curve_of(opened, confidence), as_json)
        return
    choice = ThresholdChoice(target_fnr=target_fnr, specificity=specificity, at=at)
    _write(opened, choice, confidence, _new_folder(out), as_json)


def _new_folder(out: Path | None) -> Path:
    if out is None:
        raise UserError("The new bundle needs a folder.", "Give --out DIR; a bundle is never changed in place.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already.", "Give --out a new folder; a bundle is never changed in place.")
    return out


def _write(opened: Bundle, choice: ThresholdChoice, confidence: float | None, out: Path, as_json: bool) -> None:
    from kizu.models.bundle import write_bundle
    from kizu.models.rethreshold import choose_threshold, curve_of, derived_manifest
    from kizu.training.evaluation.threshold_report import render_threshold_report

    point = choose_threshold(opened, choice, confidence)
    curve = curve_of(opened, confidence)
    manifest = derived_manifest(opened, point, choice)
    report = render_threshold_report(opened.manifest, manifest, curve)
    written = write_bundle(out, opened.model, curve.calibration, manifest, report)
    if as_json:
        summary = {
            "bundle": str(written.path),
            "derived_from": opened.fingerprint,
            "operating_point": point.model_dump(mode="json"),
            "statement": point.statement(),
        }
        typer.echo(json.dumps(summary, allow_nan=False, ensure_ascii=False))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"threshold {point.threshold:.6g}, before {opened.manifest.operating_point.threshold:.6g}")
    console.print(escape(point.statement()))
    console.print(f"bundle: {escape(str(written.path))}\nreport: {escape(str(written.report))}")


def _show_curve(opened: Bundle, curve: ThresholdCurve, as_json: bool) -> None:
    from kizu.models.operating_point import at_most
    from kizu.training.evaluation.threshold_report import marked_points

    points = marked_points(curve, now=opened.manifest.operating_point.threshold)
    if as_json:
        summary = {
            "confidence": curve.confidence,
            "split": curve.split,
            "independent_ng": int(curve.independent_ng.size),
            "ok": int(curve.ok.size),
            "threshold": opened.manifest.operating_point.threshold,
            "points": [point.as_dict() for point, _ in points],
        }
        typer.echo(json.dumps(summary, allow_nan=False))
        return
    table = Table()
    for heading in ("threshold", "NG below", "FNR at most", "specificity", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for point, mark in points:
        table.add_row(
            f"{point.threshold:.6g}",
            f"{point.fnr.count}/{point.fnr.total}",
            at_most(point.fnr.upper) if point.fnr.total else "unknown",
            str(point.specificity),
            mark,
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"With {100 * curve.confidence:g} % confidence all FNR bounds hold together, and so do all specificity bounds "
        f"({curve.split} scores)."
    )
