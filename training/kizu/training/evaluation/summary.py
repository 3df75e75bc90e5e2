"""The terminal's view of an evaluation."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from kizu.training.evaluation.detection import DetectionMetrics


def summary_table(metrics: DetectionMetrics) -> Table:
    """One row per figure, each with its interval and, for rates, its counts: `97.1 % [94.8, 98.6] (340/350)`."""
    table = Table(title=f"{metrics.n_ok} OK and {metrics.n_ng} NG images", title_justify="left", show_header=False)
    table.add_column("figure", style="bold")
    table.add_column("value")
    table.add_column("note", style="dim")
    at, new = metrics.operating_point, metrics.new_groups
    table.add_row("FNR at the operating point", str(at.fnr), "NG that passed")
    if new.fnr is not None:
        table.add_row("    for parts of new groups", str(new.fnr), "the row above: for parts of these groups")
    table.add_row("Specificity at the operating point", str(at.specificity), "OK not called NG")
    if new.specificity is not None:
        table.add_row("    for parts of new groups", str(new.specificity), "the row above: for parts of these groups")
    if at.review_ok.count or at.review_ng.count:
        table.add_row("OK sent to review", str(at.review_ok), "")
        table.add_row("NG sent to review", str(at.review_ng), f"below the threshold: {at.fnr_at_threshold}")
    table.add_section()
    for name, estimate in (("AUROC", metrics.auroc), ("Average precision", metrics.average_precision)):
        if estimate is None:
            table.add_row(name, "unknown", "needs both OK and NG")
        else:
            table.add_row(name, str(estimate), estimate.method)
    for entry in metrics.specificity_at_fnr:
        note = "no miss allowed: too few NG for this rate" if entry.resolution_limited else ""
        table.add_row(f"Specificity at FNR ≤ {100 * entry.target_fnr:g} %", str(entry.specificity), note)
    if metrics.classes:
        table.add_section()
    for found in metrics.classes:
        # Text, not markup: a defect's name comes from outside and may hold brackets.
        note = f"AUROC {found.auroc}" if found.auroc else ""
        table.add_row(Text(f"FNR: {found.defect}"), str(found.fnr), note)
    table.add_section()
    if metrics.pixels is not None and metrics.pixels.auroc is not None:
        pixels = metrics.pixels
        table.add_row("Pixel AUROC", f"{pixels.auroc:.4f}", f"{pixels.masked_images} images with masks")
        table.add_row("PRO", f"{pixels.pro:.4f}", f"{pixels.regions} regions, to a pixel FPR of 0.3")
    speed = metrics.images_per_second
    table.add_row(
        "Speed",
        "–" if speed is None else f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s",
        "the model alone",
    )
    return table
