"""Simulated chance that the bounds of a rate fail on new boards, where the parts of one board resemble each other.

Notable here:
- Each board has its own rate, beta distributed around the true one; the correlation of two parts of a board is
  1 / (α + β + 1). A bound fails where the true mean over all boards, groups of equal weight, lies beyond it.
- *parts*: every part counts as independent (Clopper–Pearson). *one of each*: the same for one part drawn of each board.
  *t*: mean of the boards' rates ± Student's quantile. *groups*: what ships, `GroupedRate`.
- *these boards*: of the bounds on parts, whether the mean of these very boards' rates lies beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import stdtrit

from benchmarks.command import main, single_command
from kizu.models.rates import GroupedRate, Rate

CONFIDENCE = 0.95
OF_EACH = 20
BOARDS = (5, 10, 30, 60)
CORRELATIONS = (0.0, 0.2, 0.5)
RATES = (0.05, 0.2)


@dataclass(frozen=True)
class BoundFigures:
    """Figures of one way to bound a rate, over all runs."""

    above: float
    """Share of the runs in which the true rate is above the upper bound."""
    below: float
    """Share of the runs in which it is below the lower one."""
    upper: float
    """Median of the upper bound."""
    width: float
    """Median."""


def bound_figures(rate: float, boards: int, correlation: float, runs: int, seed: int = 0) -> dict[str, BoundFigures]:
    """Return the figures of each way, by its name."""
    rng = np.random.default_rng([seed, boards, round(1000 * rate), round(1000 * correlation)])
    intervals: dict[str, list[tuple[float, float]]] = {}
    these = []
    for _ in range(runs):
        own = _own_rates(rng, rate, boards, correlation)
        counts = rng.binomial(OF_EACH, own)
        one = int((rng.integers(OF_EACH, size=boards) < counts).sum())
        found: dict[str, Rate | GroupedRate] = {
            "parts": Rate(int(counts.sum()), OF_EACH * boards, CONFIDENCE),
            "one of each": Rate(one, boards, CONFIDENCE),
            "groups": GroupedRate(tuple((counts / OF_EACH).tolist()), CONFIDENCE),
        }
        for name, bounds in found.items():
            intervals.setdefault(name, []).append((bounds.lower, bounds.upper))
        intervals.setdefault("t", []).append(_student(counts / OF_EACH))
        these.append(float(own.mean()))
    figures = {name: _figures(np.array(values), rate) for name, values in intervals.items()}
    return figures | {"these boards": _figures(np.array(intervals["parts"]), np.array(these))}


def _own_rates(rng: np.random.Generator, rate: float, boards: int, correlation: float) -> NDArray[np.float64]:
    if not correlation:
        return np.full(boards, rate)
    strength = 1 / correlation - 1
    return rng.beta(rate * strength, (1 - rate) * strength, boards)


def _student(rates: NDArray[np.float64]) -> tuple[float, float]:
    error = float(rates.std(ddof=1)) / math.sqrt(rates.size) * stdtrit(rates.size - 1, (1 + CONFIDENCE) / 2)
    return max(0.0, float(rates.mean() - error)), min(1.0, float(rates.mean() + error))


def _figures(intervals: NDArray[np.float64], true: float | NDArray[np.float64]) -> BoundFigures:
    lower, upper = intervals.T
    return BoundFigures(
        above=float(np.mean(true > upper)),
        below=float(np.mean(true < lower)),
        upper=float(np.median(upper)),
        width=float(np.median(upper - lower)),
    )


def lines(runs: int) -> Iterator[str]:
    """Rows of the table, in Markdown."""
    for rate, correlation, boards in product(RATES, CORRELATIONS, BOARDS):
        found = bound_figures(rate, boards, correlation, runs)
        cells = [
            f"{max(found[name].above, found[name].below):.1%} | {found[name].width:.3f}"
            for name in ("parts", "one of each", "t", "groups")
        ]
        these = max(found["these boards"].above, found["these boards"].below)
        yield f"| {rate:.0%} | {correlation:g} | {boards} | {' | '.join(cells)} | {these:.1%} |"


def simulate(runs: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = 2000) -> None:
    """Print the table as it stands in benchmarks/claims-certificates.md."""
    typer.echo(
        "| rate | correlation | boards | parts: fails | width | one of each: fails | width | t: fails | width "
        "| groups: fails | width | parts: these boards |"
    )
    typer.echo("|" + "---|" * 12)
    for line in lines(runs):
        typer.echo(line)


app = single_command(simulate)

if __name__ == "__main__":
    main(app)
