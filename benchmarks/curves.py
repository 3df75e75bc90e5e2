"""Simulated chance that a certificate fails where somebody chooses the threshold by looking at the curve.

Notable here:
- NG scores are normal around 2, OK scores around 0. A certificate is exceeded where the true FNR, Φ(threshold − 2), is
  above the certified one.
- *Pointwise*: each threshold carries the order statistic's own bound, as if it had been fixed beforehand. *Band*: the
  bounds that ship, which hold at all thresholds at once.
- The one who chooses sees all bounds and all specificities of his run, and nothing of the truth but in `worst`, which
  is the share of the runs in which at least one threshold's bound fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr

from benchmarks.command import main, single_command
from kizu.models.bands import simultaneous_interval, simultaneous_upper
from kizu.models.operating_point import umbrella_rank

CONFIDENCE = 0.95
RECIPE_TARGET = 0.05
TARGETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15)
NG_COUNTS = (60, 100, 300, 1000)
OK_COUNT = 1000
SEPARATION = 2.0


@dataclass(frozen=True)
class Look:
    """All that somebody sees before choosing: one entry for each NG score, ascending."""

    thresholds: NDArray[np.float64]
    bounds: NDArray[np.float64]
    """FNR that each is said to have at most."""
    specificities: NDArray[np.float64]


Choose = Callable[[Look], int]
"""What is seen → index of the threshold that is taken."""


def best_tradeoff(look: Look) -> int:
    """Take the threshold with the largest specificity minus certified FNR."""
    return int(np.argmax(look.specificities - look.bounds))


def largest_step(look: Look) -> int:
    """Take the round target whose threshold is highest for what it costs: the steepest step of specificity per FNR."""
    reached = [int(np.searchsorted(look.bounds, target, side="right")) - 1 for target in TARGETS]
    found = sorted({index for index in reached if index >= 0})
    if len(found) < 2:
        return found[0] if found else 0
    gains = np.diff(look.specificities[found]) / np.diff(look.bounds[found])
    return found[int(np.argmax(gains)) + 1]


def widest_gap(look: Look) -> int:
    """Take the NG score, of those that certify at most 15 %, below which no other NG score lies for the longest way."""
    low = max(int(np.searchsorted(look.bounds, TARGETS[-1], side="right")), 2)
    return int(np.argmax(np.diff(look.thresholds[:low]))) + 1


CHOICES: dict[str, Choose] = {
    "best trade-off": best_tradeoff,
    "steepest step": largest_step,
    "widest gap": widest_gap,
}


@dataclass(frozen=True)
class CurveFigures:
    """Figures of one way to choose and one way to bound, over all runs."""

    exceeded: float
    """Share of the runs in which the true FNR is above the certified one."""
    certified: float
    true: float
    specificity: float
    """Medians."""


def pointwise_upper(n: int) -> NDArray[np.float64]:
    """Bounds of each order statistic by itself, shape [n]."""
    ranks = np.arange(1, n + 1)
    return np.asarray(betaincinv(ranks, n + 1 - ranks, CONFIDENCE))


def looks(ng_count: int, runs: int, seed: int = 0) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield thresholds and specificities of each run."""
    rng = np.random.default_rng([seed, ng_count])
    for _ in range(runs):
        ng = np.sort(rng.normal(SEPARATION, 1, ng_count))
        ok = np.sort(rng.normal(0, 1, OK_COUNT))
        yield ng, np.searchsorted(ok, ng) / OK_COUNT


def chosen(ng_count: int, runs: int, choose: Choose, bounds: NDArray[np.float64]) -> CurveFigures:
    """Return how certificates do on thresholds that `choose` takes."""
    outcomes = []
    for thresholds, specificities in looks(ng_count, runs):
        index = choose(Look(thresholds, bounds, specificities))
        true = float(ndtr(thresholds[index] - SEPARATION))
        outcomes.append((bounds[index], true, specificities[index]))
    certified, true_values, specificity = np.array(outcomes).T
    return CurveFigures(
        exceeded=float(np.mean(true_values > certified)),
        certified=float(np.median(certified)),
        true=float(np.median(true_values)),
        specificity=float(np.median(specificity)),
    )


def worst(ng_count: int, runs: int, bounds: NDArray[np.float64], *, with_recipe: bool = False) -> float:
    """Share of the runs in which some threshold's bound fails; with the recipe's own target among them if asked."""
    rank = umbrella_rank(ng_count, RECIPE_TARGET, CONFIDENCE)
    failed = 0
    for thresholds, _ in looks(ng_count, runs):
        true = ndtr(thresholds - SEPARATION)
        failed += bool((true > bounds).any() or (with_recipe and rank and true[rank - 1] > RECIPE_TARGET))
    return failed / runs


def specificity_outside(ok_count: int, runs: int, seed: int = 0) -> tuple[float, float]:
    """Share of the runs in which some threshold's specificity is outside its bounds: pointwise, and of the band."""
    rng = np.random.default_rng([seed, ok_count])
    band = np.array([simultaneous_interval(ok_count, count, CONFIDENCE) for count in range(ok_count + 1)])
    side = (1 + CONFIDENCE) / 2
    counts = np.arange(1, ok_count + 1)
    upper = np.append(betaincinv(counts, ok_count + 1 - counts, side), 1.0)
    pointwise = np.stack([1 - upper[::-1], upper], 1)
    outside = np.zeros(2)
    for _ in range(runs):
        true = np.sort(rng.random(ok_count))  # specificity just above each score; below it the count is one less
        for index, limits in enumerate((pointwise, band)):
            outside[index] += bool((true < limits[1:, 0]).any() or (true > limits[:-1, 1]).any())
    return float(outside[0] / runs), float(outside[1] / runs)


def choice_lines(runs: int) -> Iterator[str]:
    """Rows of the table of ways to choose, in Markdown."""
    for n in NG_COUNTS:
        kinds = {"pointwise": pointwise_upper(n), "band": simultaneous_upper(n, CONFIDENCE)[:n]}
        for name, choose in CHOICES.items():
            for kind, bounds in kinds.items():
                found = chosen(n, runs, choose, bounds)
                yield (
                    f"| {n} | {name} | {kind} | {found.exceeded:.1%} | {found.certified:.1%} | {found.true:.1%} | "
                    f"{found.specificity:.1%} |"
                )
        for kind, bounds in kinds.items():
            yield f"| {n} | whichever fails | {kind} | {worst(n, runs, bounds):.1%} | | | |"
        either = worst(n, runs, kinds["band"], with_recipe=True)
        yield f"| {n} | the same, or the recipe's | band | {either:.1%} | | | |"


def width_lines() -> Iterator[str]:
    """Rows of the table of widths, in Markdown."""
    for n in (60, 100, 300, 1000, 3000, 16642):
        point, band = pointwise_upper(n), simultaneous_upper(n, CONFIDENCE)
        kolmogorov = math.sqrt(math.log(1 / (1 - CONFIDENCE)) / (2 * n))
        for missed in sorted({0, n // 100, n // 20}):
            yield (
                f"| {n} | {missed} | {missed / n:.2%} | {point[missed]:.2%} | {band[missed]:.2%} | "
                f"{band[missed] / point[missed]:.2f} | {missed / n + kolmogorov:.2%} |"
            )


def simulate(runs: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = 2000) -> None:
    """Print the tables, as they stand in benchmarks/curves.md."""
    typer.echo("| NG | chooses | bounds | exceeded | certified | true | specificity |")
    typer.echo("|---|---|---|---|---|---|---|")
    for line in choice_lines(runs):
        typer.echo(line)
    typer.echo("\n| NG | missed | observed FNR | pointwise | band | ratio | Kolmogorov |")
    typer.echo("|---|---|---|---|---|---|---|")
    for line in width_lines():
        typer.echo(line)
    typer.echo("\n| OK | outside, pointwise | outside, band |")
    typer.echo("|---|---|---|")
    for count in (100, 1000):
        pointwise, band = specificity_outside(count, runs)
        typer.echo(f"| {count} | {pointwise:.1%} | {band:.1%} |")


app = single_command(simulate)

if __name__ == "__main__":
    main(app)
