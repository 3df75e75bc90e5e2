"""A comparison's figures as tables: for the terminal and as Markdown. Works on plain data, as `--json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from kizu.training.bench.environment import environment_lines


@dataclass(frozen=True)
class Sheet:
    """One table; the first column is text, the others are figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def sheets(figures: dict[str, Any]) -> list[Sheet]:
    """The tables of `compare`'s figures."""
    return [_detection(figures), _differences(figures), _training(figures), _scoring(figures)]


def rich_tables(figures: dict[str, Any]) -> list[Table]:
    """The same for a terminal."""
    return [rich_table(sheet) for sheet in sheets(figures)]


def rich_table(sheet: Sheet) -> Table:
    """One table for a terminal."""
    table = Table(title=sheet.title, title_justify="left")
    for place, column in enumerate(sheet.columns):
        table.add_column(column.replace("[", r"\["), justify="right" if place else "left")
    for row in sheet.rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    return table


def headline(figures: dict[str, Any]) -> list[str]:
    """What came out, in sentences that also say so when Kizu lost."""
    found = figures["headline"]
    means = {entry["name"]: entry["mean"] for entry in figures["detection"]}
    lines = []
    for pair in figures["differences"]:
        if pair["ours"] == found["ours"] and pair["mean"] is not None:
            verdict = "at least equal" if pair["mean"] >= 0 else "Kizu is LOWER"
            lines.append(
                f"AUROC, mean over seeds: {pair['ours']} {means[pair['ours']]:.4f}, {pair['theirs']} "
                f"{means[pair['theirs']]:.4f}: {verdict} (difference {pair['mean']:+.4f})."
            )
    lines += [
        f"Training: {_times(found['training_speedup'])}; with all preparation of images "
        f"{_times(found['training_speedup_with_preparation'])}.",
    ]
    for what, ratio in found["scoring_speedup"].items():
        lines.append(f"Scoring, {what}: {_times(ratio)}.")
    return lines


def render_markdown(result: dict[str, Any], notes: Sequence[str]) -> str:
    """A report of a whole result (`cli.result_of`); `notes` say how it was measured.

    Contains no path and no host name, as long as `result` has none.
    """
    peer = ", ".join(f"{name} {version}" for name, version in result["peer_versions"].items())
    dataset, settings = result["dataset"], result["settings"]
    counts = "; ".join(
        f"{split} " + ", ".join(f"{count} {label}" for label, count in labels.items() if count)
        for split, labels in dataset["counts"].items()
    )
    lines = [
        "# GANomaly: Kizu against anomalib",
        "",
        *headline_items(result["figures"]),
        "",
        "## What ran",
        "",
        *environment_lines(result["environment"]),
        f"- anomalib's environment: {peer}",
        f"- Data set: {dataset['name']}, {counts}; split fingerprint {dataset['split_fingerprint'][:16]}",
        "- Settings: " + ", ".join(f"{name} {value}" for name, value in settings.items()),
        "- Command:",
        "",
        f"      {result['command']}",
        "",
    ]
    for sheet in sheets(result["figures"]):
        lines += [f"## {sheet.title}", "", *markdown_table(sheet), ""]
    remarks = {arm: [r for r in runs if r] for arm, runs in result["figures"]["remarks"].items()}
    if any(remarks.values()):
        lines += ["## Remarks of the run", ""]
        lines += [f"- {arm}: {'; '.join(run)}" for arm, runs in remarks.items() for run in runs]
        lines.append("")
    lines += ["## How it was measured", "", *notes, ""]
    return "\n".join(lines)


def headline_items(figures: dict[str, Any]) -> list[str]:
    """`headline` as a Markdown list."""
    return [f"- {line}" for line in headline(figures)]


def _detection(figures: dict[str, Any]) -> Sheet:
    entries = figures["detection"]
    seeds = [f"seed {entry['seed']}, 95 % interval" for entry in entries[0]["auroc"]]
    rows = [(e["name"], f"{e['mean']:.4f}", *(_interval(seed) for seed in e["auroc"])) for e in entries]
    return Sheet("Image AUROC on the test split", ("", "mean", *seeds), rows)


def _differences(figures: dict[str, Any]) -> Sheet:
    entries = figures["differences"]
    seeds = [f"seed {entry['seed']}" for entry in entries[0]["auroc"]]
    rows = [
        (
            f"{e['ours']} − {e['theirs']}",
            "–" if e["mean"] is None else f"{e['mean']:+.4f}",
            *(_interval(seed, sign="+") for seed in e["auroc"]),
        )
        for e in entries
    ]
    return Sheet("AUROC difference, paired, with DeLong's 95 % interval", ("", "mean", *seeds), rows)


def _training(figures: dict[str, Any]) -> Sheet:
    entries = figures["training"]
    base = entries[0]["mean_train_seconds"]
    rows = [
        (
            e["name"],
            f"{e['mean_train_seconds']:.1f}",
            ", ".join(f"{seconds:.1f}" for seconds in e["train_seconds"]),
            f"{e['mean_train_seconds'] / base:.2f}",
            f"{e['mean_total_seconds']:.1f}",
            f"{e['mean_loading_seconds']:.1f}",
            str(e["updates"]),
            f"{e['parameters'] / 1e6:.2f}",
        )
        for e in entries
    ]
    columns = (
        "",
        "training s, mean",
        "each seed",
        "over Kizu's",
        "with preparation s",
        "reading images alone s",
        "updates",
        "million parameters",
    )
    return Sheet("Training time", columns, rows)


def _scoring(figures: dict[str, Any]) -> Sheet:
    rows = [
        (
            f"{e['arm']}: {e['what']}",
            str(e["batch"]),
            f"{e['median']:.0f}",
            ", ".join(f"{rate:.0f}" for rate in e["images_per_second"]),
        )
        for e in figures["scoring"]
    ]
    return Sheet("Scoring speed", ("", "images per call", "images/s, median", "each seed"), rows)


def markdown_table(sheet: Sheet) -> list[str]:
    """One table as lines of Markdown."""
    align = ["---", *["---:"] * (len(sheet.columns) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [sheet.columns, tuple(align), *sheet.rows]]


def _interval(entry: dict[str, Any], sign: str = "") -> str:
    return f"{entry['value']:{sign}.4f} [{entry['lower']:{sign}.4f}, {entry['upper']:{sign}.4f}]"


def _times(ratio: float) -> str:
    return f"Kizu is {ratio:.2f} times as fast" if ratio >= 1 else f"Kizu is SLOWER, {ratio:.2f} times as fast"
