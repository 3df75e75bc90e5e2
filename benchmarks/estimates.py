"""Coverage and width of the FNR's bounds in adverse scenarios, without HTTP.

Notable here:
- A bound at 95 % two-sided may miss in 2.5 % of the runs on each side.
- Width stands beside coverage: [0, 1] misses nothing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import main, progress, single_command
from benchmarks.estimates_scenarios import Parts, Scenario, scenarios
from kizu.service.quality.estimates import Counts, estimate_fnr
from kizu.service.quality.repository import Cell

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Coverage:
    """Results over all runs of a scenario."""

    upper_misses: float
    """Share of runs whose upper bound lies below the truth."""
    lower_misses: float
    """Share of runs whose lower bound lies above the truth."""
    width: float
    """Median of upper minus lower."""
    upper: float
    """Median of the upper bound."""


def tally(parts: Parts) -> list[Cell]:
    """Return the counts that the repository's query would return."""
    label = np.where(~parts.reviewed, 0, np.where(parts.called_ng, 2, 1))
    codes, counts = np.unique(label * 4 + parts.flagged * 2 + parts.audited, return_counts=True)
    return [
        Cell(
            key=None,
            verdict="NG" if code & 2 else "OK",
            audited=bool(code & 1),
            audit_probability=None if code & 2 else parts.probability,
            label=(None, "OK", "NG")[code >> 2],
            count=count,
        )
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    ]


def coverage(scenario: Scenario, runs: int, seed: int) -> Coverage:
    """Return how often and how widely the bounds hold the truth."""
    rng = np.random.default_rng([seed, zlib.crc32(scenario.name.encode())])
    bounds = np.empty((runs, 2))
    for run in range(runs):
        found = estimate_fnr(Counts.of(tally(scenario.draw(rng))), CONFIDENCE)
        bounds[run] = found.lower, found.upper
    lower, upper = bounds.T
    return Coverage(
        float((upper < scenario.truth).mean()),
        float((lower > scenario.truth).mean()),
        float(np.median(upper - lower)),
        float(np.median(upper)),
    )


def run(
    runs: Annotated[int, typer.Option(min=1, help="Simulated runs per scenario.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
) -> None:
    """Simulate every scenario and print a table in Markdown."""
    say = progress()
    lines = [
        "| scenario | upper below truth | lower above truth | median width | median upper |",
        "|---|---|---|---|---|",
    ]
    for scenario in scenarios():
        found = coverage(scenario, runs, seed)
        lines.append(
            f"| {scenario.name} | {found.upper_misses:.1%} | {found.lower_misses:.1%} | {found.width:.3f} "
            f"| {found.upper:.3f} |"
        )
        say(lines[-1])
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    main(single_command(run))
