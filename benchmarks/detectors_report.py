"""Page of the detectors' table: means over splits, with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import command
from kizu.training.study.tables import markdown_table

Row = dict[str, Any]
COLUMNS = (
    "NG in training",
    "detector",
    "splits",
    "AUROC",
    "AP",
    "specificity at FNR 5 %",
    "at FNR 1 %",
    "training",
    "images/s",
)
INTRODUCTION = """\
# Detectors

What each kind of detector makes of no NG, of a few and of all, on real products: means over splits ± their standard
deviation. Recipes name kind and image size, nothing else. Specificity at an FNR is read from the test split's own
curve: it compares detectors, and promises nothing.
"""


def write_report(rows: Sequence[Row], page: Path) -> None:
    """Write the page of all rows."""
    products = sorted({(row["data"], row["size"]) for row in rows})
    lines = [INTRODUCTION]
    for data, size in products:
        mine = [row for row in rows if (row["data"], row["size"]) == (data, size)]
        lines += [f"## {data}, {size} px", "", *_facts(mine), "", *markdown_table(COLUMNS, _table(mine)), ""]
    command.write_page(page, "\n".join(lines))


def _facts(rows: Sequence[Row]) -> list[str]:
    own = [row for row in rows if "peer" not in row]
    last = (own or rows)[-1]
    used = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    loads = [row["load"] for row in rows]
    threads = sorted({row["threads"] for row in rows})
    lines = [
        f"- Dates: {min(r['date'] for r in rows)[:10]} to {max(r['date'] for r in rows)[:10]}; {last['cpu']}, "
        f"{_range(threads)} threads; load average {min(loads)} to {max(loads)}: above {threads[0]}, times "
        "are of a machine that did other things as well",
        f"- {used}",
    ]
    if own:
        lines.append(
            f"- `python -m benchmarks.detectors DATASET --size {rows[0]['size']}`, by `--kind`, `--ng` and `--seeds`"
        )
    return lines + _facts_of_peers([row for row in rows if "peer" in row])


def _facts_of_peers(rows: Sequence[Row]) -> list[str]:
    """Lines of what the peers were, by the last row of each; none without peers."""
    if not rows:
        return []
    last = rows[-1]["peer"]
    versions = ", ".join(f"{package} {version}" for package, version in last["versions"].items())
    kinds = {row["kind"]: _of_peer(row["peer"]) for row in rows}
    return [
        f"- Peers, by `python -m benchmarks.detectors_peers DATASET --size {rows[-1]['size']}`, which says what is not "
        f"alike: {versions}; backbone {last['backbone']}, {last['side']} px",
        *(f"- {kind}: {kinds[kind]}" for kind in sorted(kinds)),
    ]


def _of_peer(peer: dict[str, Any]) -> str:
    facts = []
    if "patches" in peer:
        facts.append(f"{peer['patches']:.0f} patches kept")
    if "noise" in peer:
        facts.append(f"{peer['epochs']} epochs (300 are recommended), {peer['updates']} updates")
        facts.append(f"noise {peer['noise']:.3g}")
    rates = " and ".join(f"{rate:.0f} images/s in {what}" for what, rate in peer["throughput"].items())
    return "; ".join([*facts, rates, *peer["remarks"]])


def _table(rows: Sequence[Row]) -> list[list[str]]:
    table = []
    for ng in sorted({row["ng"] for row in rows}, key=lambda n: n if n >= 0 else 10**9):
        for kind in sorted({row["kind"] for row in rows}):
            mine = [row for row in rows if row["kind"] == kind and row["ng"] == ng]
            if mine:
                table.append(_line(ng, kind, mine))
    return table


def _line(ng: int, kind: str, rows: Sequence[Row]) -> list[str]:
    many = f"{rows[0]['train_ng']}" if ng >= 0 else f"all ({_range([row['train_ng'] for row in rows])})"
    named = kind if rows[0]["detectors"] == [kind] else f"{kind}: {' + '.join(rows[0]['detectors'])}"
    return [
        many,
        named,
        str(len(rows)),
        _spread(rows, "auroc", "{:.3f}"),
        _spread(rows, "ap", "{:.3f}"),
        _spread(rows, "specificity_5", "{:.0%}"),
        _spread(rows, "specificity_1", "{:.0%}"),
        f"{statistics.mean(row['seconds'] for row in rows) / 60:.1f} min",
        f"{statistics.mean(row['images_per_second'] for row in rows):.0f}",
    ]


def _spread(rows: Sequence[Row], key: str, form: str) -> str:
    values = [row[key] for row in rows]
    mean = form.format(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def _range(values: Sequence[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)}–{max(values)}"
