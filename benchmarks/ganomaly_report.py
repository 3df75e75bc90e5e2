"""Results of `benchmarks.ganomaly` as tables for terminal and Markdown. Works on plain data, as `--json` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kizu.training.study.environment import environment_lines
from kizu.training.study.tables import Table, markdown_table


def tables(figures: dict[str, Any]) -> list[Table]:
    """Tables of the figures that `compare` gives."""
    return [_detection(figures), _differences(figures), _training(figures), _scoring(figures)]


def headline(figures: dict[str, Any]) -> list[str]:
    """Sentences with the main figures, also where Kizu is behind."""
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
    """Report of a whole result (`ganomaly.result_of`); `notes` describe the measurement.

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
        *(f"- {line}" for line in headline(result["figures"])),
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
    for table in tables(result["figures"]):
        lines += [f"## {table.title}", "", *markdown_table(table.columns, table.rows), ""]
    remarks = {arm: [r for r in runs if r] for arm, runs in result["figures"]["remarks"].items()}
    if any(remarks.values()):
        lines += ["## Remarks of the run", ""]
        lines += [f"- {arm}: {'; '.join(run)}" for arm, runs in remarks.items() for run in runs]
        lines.append("")
    lines += ["## How it was measured", "", *notes, ""]
    return "\n".join(lines)


def _detection(figures: dict[str, Any]) -> Table:
    entries = figures["detection"]
    seeds = [f"seed {entry['seed']}, 95 % interval" for entry in entries[0]["auroc"]]
    rows = [(e["name"], f"{e['mean']:.4f}", *(_interval(seed) for seed in e["auroc"])) for e in entries]
    return Table("Image AUROC on the test split", ("", "mean", *seeds), rows)


def _differences(figures: dict[str, Any]) -> Table:
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
    return Table("AUROC difference, paired, with DeLong's 95 % interval", ("", "mean", *seeds), rows)


def _training(figures: dict[str, Any]) -> Table:
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
    return Table("Training time", columns, rows)


def _scoring(figures: dict[str, Any]) -> Table:
    rows = [
        (
            f"{e['arm']}: {e['what']}",
            str(e["batch"]),
            f"{e['median']:.0f}",
            ", ".join(f"{rate:.0f}" for rate in e["images_per_second"]),
        )
        for e in figures["scoring"]
    ]
    return Table("Scoring speed", ("", "images per call", "images/s, median", "each seed"), rows)


def _interval(entry: dict[str, Any], sign: str = "") -> str:
    return f"{entry['value']:{sign}.4f} [{entry['lower']:{sign}.4f}, {entry['upper']:{sign}.4f}]"


def _times(ratio: float) -> str:
    return f"Kizu is {ratio:.2f} times as fast" if ratio >= 1 else f"Kizu is SLOWER, {ratio:.2f} times as fast"
