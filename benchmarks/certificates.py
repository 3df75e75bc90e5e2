"""Simulated chance that a certificate fails: on new boards, and for the specificity of several detectors.

Notable here:
- Boards: NG scores are standard normal, with a correlation within each board. A certified FNR is exceeded where the
  true FNR of parts of new boards, Φ(threshold), is above it. *Before*: every NG counts as independent.
- Ensembles: the maximum of three ranks, scores of OK parts standard normal. A bound fails where the true specificity
  lies outside it. *Before*: the ranks are fitted on the OK parts that judge.
- The functions are those that ship: `choose_operating_point`, `RankScale`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy.special import ndtr

from benchmarks.command import main, single_command
from kizu.models.ensemble import RankScale
from kizu.models.operating_point import OperatingPoint, choose_operating_point
from kizu.models.rates import Rate

TARGET = 0.05
CONFIDENCE = 0.95
MEMBERS = 3


@dataclass(frozen=True)
class Boards:
    """A scenario: boards, NG of each, and the correlation of their scores."""

    boards: int
    of_each: int
    correlation: float
    uneven: bool = False
    """The worse a board, the more NG it shows, on average `of_each`."""

    @property
    def label(self) -> str:
        """Name in the table."""
        return f"{self.boards} × {self.of_each}{', worse boards show more' * self.uneven}"


SCENARIOS = (
    Boards(3, 100, 0.5),
    Boards(10, 30, 0.5),
    Boards(30, 10, 0.5),
    Boards(59, 5, 0.5),
    Boards(100, 5, 0.5),
    Boards(300, 1, 0.5),
    Boards(59, 5, 0.0),
    Boards(59, 5, 0.9),
    Boards(100, 5, 0.5, uneven=True),
)
JUDGES = (50, 100, 300)


@dataclass(frozen=True)
class CertificateFigures:
    """Figures of one way to certify, over all runs."""

    certified: float
    """Median of the FNR that is certified for new parts."""
    exceeded: float
    """Share of the runs in which new boards exceed it."""
    true: float
    """Median of the true FNR on new boards."""
    these_exceeded: float
    """Share of the runs in which parts of these boards exceed what is stated for them."""


@dataclass(frozen=True)
class SpecificityFigures:
    """Figures of the specificity beside a certificate, over all runs."""

    claimed: float
    true: float
    """Medians."""
    outside: float
    """Share of the runs in which the true specificity lies outside its bounds."""
    width: float
    """Median width of the bounds."""


@dataclass(frozen=True)
class NgScores:
    """NG scores of one run."""

    scores: NDArray[np.float64]
    board: NDArray[np.int64]
    """Number of each one's board."""
    means: NDArray[np.float64]
    """Mean score of each one's board."""
    spread: float
    """Standard deviation within a board."""

    def these_fnr(self, threshold: float) -> float:
        """FNR of further parts of these boards, in this mixture."""
        return float(ndtr((threshold - self.means) / self.spread).mean())


def ng_scores(rng: np.random.Generator, scenario: Boards) -> NgScores:
    """Sample the NG of a scenario."""
    means = math.sqrt(scenario.correlation) * rng.normal(size=scenario.boards)
    counts = np.full(scenario.boards, scenario.of_each)
    if scenario.uneven:
        counts = 1 + rng.poisson(2 * (scenario.of_each - 1) * ndtr(-2 * means))
    board = np.repeat(np.arange(scenario.boards), counts)
    spread = math.sqrt(1 - scenario.correlation)
    return NgScores(means[board] + spread * rng.normal(size=len(board)), board, means[board], spread)


def certificates(scenario: Boards, runs: int, seed: int = 0) -> tuple[CertificateFigures, CertificateFigures]:
    """Return the figures before and after groups counted."""
    rng = np.random.default_rng([seed, scenario.boards, scenario.of_each])
    found: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    for run in range(runs):
        ng = ng_scores(rng, scenario)
        names = [f"board-{number}" for number in ng.board]
        points = [
            choose_operating_point(
                ng.scores, [], target_fnr=TARGET, confidence=CONFIDENCE, ng_groups=groups, draw_key=f"{seed} {run}"
            )
            for groups in (None, names)
        ]
        for figures, point in zip(found, points, strict=True):
            figures.append(_outcome(point, ng))
    before, after = (_certificate_figures(np.array(figures)) for figures in found)
    return before, after


def _outcome(point: OperatingPoint, ng: NgScores) -> tuple[float, ...]:
    """Return what is certified and true for new boards, then for these."""
    assert point.certified_fnr is not None
    stated = point.certified_fnr if point.groups_only_fnr is None else point.groups_only_fnr
    return point.certified_fnr, float(ndtr(point.threshold)), stated, ng.these_fnr(point.threshold)


def _certificate_figures(outcomes: NDArray[np.float64]) -> CertificateFigures:
    certified, true, stated, these = outcomes.T
    return CertificateFigures(
        certified=float(np.median(certified)),
        exceeded=float(np.mean(true > certified)),
        true=float(np.median(true)),
        these_exceeded=float(np.mean(these > stated)),
    )


def specificities(judges: int, runs: int, fitted: int | None, seed: int = 0) -> SpecificityFigures:
    """Return how far the specificity of an ensemble can be believed that is judged on so many OK parts.

    Args:
        fitted: OK parts that the ranks are fitted on, apart from those that judge; None: these themselves.
    """
    rng = np.random.default_rng([seed, judges, fitted or 0])
    threshold = 1.0001  # just above the highest rank of the parts that the ranks were fitted on
    outcomes = []
    for _ in range(runs):
        judging = rng.normal(size=(MEMBERS, judges)).astype(np.float32)
        fitting = judging if fitted is None else rng.normal(size=(MEMBERS, fitted))
        scales = [RankScale.fitted(scores) for scores in fitting]
        ranks = torch.stack([scale(torch.from_numpy(s)) for scale, s in zip(scales, judging, strict=True)]).amax(0)
        point = choose_operating_point([threshold], ranks.numpy(), target_fnr=TARGET, confidence=CONFIDENCE)
        rate = Rate(point.passed_ok, point.n_ok, CONFIDENCE)
        limits = [float(scale.knots[-1] + (threshold - 1) / scale.slopes[1]) for scale in scales]
        true = float(np.prod(ndtr(limits)))
        outcomes.append((rate.value or 0.0, true, not rate.lower <= true <= rate.upper, rate.upper - rate.lower))
    claimed, true_values, outside, width = np.array(outcomes).T
    medians = (float(np.median(values)) for values in (claimed, true_values, width))
    claim, truth, wide = medians
    return SpecificityFigures(claim, truth, float(np.mean(outside)), wide)


def certificate_lines(runs: int) -> Iterator[str]:
    """Rows of the table of boards, in Markdown."""
    for scenario in SCENARIOS:
        for when, found in zip(("before", "after"), certificates(scenario, runs), strict=True):
            reached = "yes" if found.certified <= TARGET else "no"
            yield (
                f"| {scenario.label} | {scenario.correlation:g} | {when} | {reached} "
                f"| {found.certified:.1%} | {found.exceeded:.1%} | {found.true:.2%} | {found.these_exceeded:.1%} |"
            )


def specificity_lines(runs: int) -> Iterator[str]:
    """Rows of the table of ensembles, in Markdown."""
    for judges in JUDGES:
        for when, fitted in (("before", None), ("after", 20), ("after", judges)):
            found = specificities(judges, runs, fitted)
            on = "the same" if fitted is None else f"{fitted} others"
            yield (
                f"| {judges} | {when} | {on} | {found.claimed:.1%} | {found.true:.1%} | {found.outside:.1%} | "
                f"{found.width:.3f} |"
            )


def simulate(runs: Annotated[int, typer.Option(min=1, help="Runs of each scenario.")] = 2000) -> None:
    """Print both tables, as they stand in benchmarks/claims-certificates.md."""
    typer.echo(
        "| boards × NG | correlation | | certifies 5 % | certified | exceeded, new | true, new | exceeded, these |"
    )
    typer.echo("|---|---|---|---|---|---|---|---|")
    for line in certificate_lines(runs):
        typer.echo(line)
    typer.echo("\n| OK that judge | | ranks fitted on | claimed | true | outside its bounds | width |")
    typer.echo("|---|---|---|---|---|---|---|")
    for line in specificity_lines(runs):
        typer.echo(line)


app = single_command(simulate)

if __name__ == "__main__":
    main(app)
