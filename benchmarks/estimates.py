"""Coverage and width of the FNR's bounds in adverse scenarios, without HTTP.

Notable here:
- A bound at 95 % two-sided may miss in 2.5 % of the runs on each side.
- Width stands beside coverage: [0, 1] misses nothing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import typer

from benchmarks.command import main, progress, single_command
from benchmarks.estimates_before import fnr_bounds_before
from benchmarks.estimates_scenarios import RECHECK_RATE, Parts, Scenario, audits, scenarios
from kizu.models.rates import clopper_pearson_upper
from kizu.service.quality.counts import Counts
from kizu.service.quality.estimates import estimate_fnr
from kizu.service.quality.repository import Cell

CONFIDENCE = 0.95
DAYS = 5

Bounds = Callable[[Counts, float], tuple[float, float]]


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
    day = (DAYS * parts.time).astype(int)
    share = np.ones((DAYS, 2))
    waiting = parts.queued & ~parts.reviewed
    np.minimum.at(share, (day[waiting], parts.flagged[waiting].astype(int)), parts.order[waiting])
    drawn = parts.order < share[day, parts.flagged.astype(int)]
    label = np.where(~parts.reviewed, 0, np.where(parts.called_ng, 2, 1))
    rechecked = np.zeros_like(parts.ng) if parts.rechecked is None else parts.rechecked
    doubtful = np.zeros_like(parts.ng) if parts.doubtful is None else parts.doubtful
    codes, counts = np.unique(
        (day * 2 + rechecked) * 64 + doubtful * 32 + label * 8 + drawn * 4 + parts.flagged * 2 + parts.audited,
        return_counts=True,
    )
    return [
        Cell(
            key=None,
            verdict="NG" if code & 2 else "OK",
            audited=bool(code & 1),
            audit_probability=None if code & 2 else parts.probability,
            label=(None, "OK", "NG")[code // 8 % 4],
            count=count,
            day=str(code // 128),
            share=float(share[code // 128, code // 2 % 2]) if code & 3 else 1.0,
            drawn=bool(code & 4),
            doubtful=bool(code & 32),
            recheck="done" if code & 64 else None,
            recheck_probability=None if parts.rechecked is None or code & 2 else RECHECK_RATE,
        )
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True)
    ]


def bounds_now(counts: Counts, confidence: float) -> tuple[float, float]:
    """Return (lower, upper) as the service computes them."""
    found = estimate_fnr(counts, confidence)
    return found.lower, found.upper


def coverage(scenario: Scenario, runs: int, seed: int, bounds: Bounds = bounds_now) -> Coverage:
    """Return how often and how widely the bounds hold the truth."""
    rng = np.random.default_rng([seed, zlib.crc32(scenario.name.encode())])
    lower, upper = np.array([bounds(Counts.of(tally(scenario.draw(rng))), CONFIDENCE) for _ in range(runs)]).T
    return Coverage(
        float((upper < scenario.truth).mean()),
        float((lower > scenario.truth).mean()),
        float(np.median(upper - lower)),
        float(np.median(upper)),
    )


def usefulness(rate: float, runs: int, seed: int, *, rechecked: bool = False) -> tuple[float, float]:
    """Return median and maximum of the upper bound over the plain binomial bound of the audits."""
    rng = np.random.default_rng([seed, round(rate * 1000)])
    ratios = []
    for _ in range(runs):
        parts = audits(rng, rate)
        if rechecked:
            again = parts.audited & ~parts.ng & (rng.random(len(parts.ng)) < RECHECK_RATE)
            parts = replace(parts, rechecked=again)
        counts = Counts.of(tally(parts))
        missed = counts.passed * clopper_pearson_upper(counts.fn, counts.audited, (1 + CONFIDENCE) / 2)
        ratios.append(bounds_now(counts, CONFIDENCE)[1] / (missed / (missed + counts.tp)))
    return float(np.median(ratios)), max(ratios)


def run(
    runs: Annotated[int, typer.Option(min=1, help="Simulated runs per scenario.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
) -> None:
    """Simulate every scenario, before and now, and print tables in Markdown."""
    say = progress()
    lines = [
        "| scenario | upper < truth | lower > truth | median width | median upper "
        "| before: upper < truth | lower > truth | median width | median upper |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scenario in scenarios():
        columns = [
            f"{found.upper_misses:.1%} | {found.lower_misses:.1%} | {found.width:.3f} | {found.upper:.3f}"
            for found in (coverage(scenario, runs, seed, bounds) for bounds in (bounds_now, fnr_bounds_before))
        ]
        lines.append(f"| {scenario.name} | {' | '.join(columns)} |")
        say(lines[-1])
    lines += [
        "",
        "| audit rate | upper / plain binomial bound: median | maximum | with rechecks: median | maximum |",
        "|---|---|---|---|---|",
    ]
    for rate in (0.02, 0.1, 0.5):
        (median, largest), again = usefulness(rate, runs, seed), usefulness(rate, runs, seed, rechecked=True)
        lines.append(f"| {rate} | {median:.2f} | {largest:.2f} | {again[0]:.2f} | {again[1]:.2f} |")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    main(single_command(run))
