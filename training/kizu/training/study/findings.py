"""Findings of the scarce study: a table of gains with their verdicts, and three sentences on it.

Notable here:
- No arm is picked by its test figures: each arm that adds something to real data has its row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from kizu.training.study.arms import ALL, HALF, Arm
from kizu.training.study.figures import AIM
from kizu.training.study.results import NO_INTERVAL, NOT_SIGNIFICANT, ArmSummary, Gain, by_arm
from kizu.training.study.tables import Table

LOWEST = 0.001
"""Target FNR of the hardest operating point."""


def findings_table(summaries: Sequence[ArmSummary]) -> Table:
    """One row for each arm and the arm that it is compared with; no rows where there is nothing to compare."""
    arms = by_arm(summaries)
    rows = []
    for found in summaries:
        other = compared_with(found)
        if other is None:
            continue
        gains = found.gains[other]
        rows.append(
            (
                found.arm.label,
                other.label,
                judged(gains["auroc"], signed),
                judged(gains[AIM], points),
                judged(gains[LOWEST], points),
                _reaches_all(found, arms.get(Arm(ALL))),
                _smaller_spread(found, arms[other]),
            )
        )
    columns = (
        "arm",
        "compared with",
        "AUROC",
        "specificity at FNR 1 %",
        "specificity at FNR 0.1 %",
        "mean at FNR 1 % ≥ all real",
        "spread at FNR 1 % smaller, points",
    )
    return Table("Findings", columns, rows)


def sentences(summaries: Sequence[ArmSummary]) -> list[str]:
    """Counts of verdicts, counts of arms that reach all real data, and what the number of seeds allows to say."""
    arms = by_arm(summaries)
    compared = [(found, other) for found in summaries if (other := compared_with(found))]
    if not compared:
        return []
    verdicts = Counter(found.gains[other][AIM].verdict for found, other in compared if found.arm != Arm(ALL))
    lines = []
    if verdicts:
        lines.append(
            f"Specificity at FNR 1 %, {verdicts.total()} arms against the same real data alone: {verdicts['better']} "
            f"better, {verdicts['worse']} worse, {verdicts[NOT_SIGNIFICANT]} without significant difference"
            + (f"; {verdicts[NO_INTERVAL]} have one seed alone." if verdicts[NO_INTERVAL] else ".")
        )
    added = [found for found in summaries if found.arm.base == HALF and found.arm.source is not None]
    if added and Arm(ALL) in arms:
        goal = arms[Arm(ALL)].measures[AIM].mean
        reached = sum(found.measures[AIM].mean >= goal for found in added)
        lines.append(
            f"Half of the real data with synthetic NG reaches the mean of all real data ({percent(goal)}) in "
            f"{reached} of {len(added)} arms."
        )
    return [*lines, _on_seeds(min(len(found.seeds) for found in summaries))]


def compared_with(found: ArmSummary) -> Arm | None:
    """Return the arm with the same real data alone, or half of it for all of it; None where that was not run."""
    other = found.arm.reference or (Arm(HALF) if found.arm == Arm(ALL) else None)
    return other if other in found.gains else None


def judged(gain: Gain, shown: Callable[[Gain], str]) -> str:
    """A gain with its verdict."""
    return f"{shown(gain)}, {gain.verdict}"


def points(gain: Gain) -> str:
    """A difference of rates, in percentage points."""
    return signed(gain, 100, 1) + " points"


def signed(gain: Gain, scale: float = 1.0, digits: int = 4) -> str:
    """A difference with its sign and, where there is one, its interval."""
    shown = f"{scale * gain.value:+.{digits}f}"
    if gain.lower is not None and gain.upper is not None:
        shown += f" [{scale * gain.lower:+.{digits}f}, {scale * gain.upper:+.{digits}f}]"
    return shown.replace("-", "−")


def percent(value: float) -> str:
    """A rate in per cent."""
    return f"{100 * value:.1f} %"


def _reaches_all(found: ArmSummary, whole: ArmSummary | None) -> str:
    if whole is None or found.arm.base != HALF:
        return "–"
    reached = "yes" if found.measures[AIM].mean >= whole.measures[AIM].mean else "no"
    gain = found.gains.get(whole.arm)
    return reached if gain is None else f"{reached}, {points(gain[AIM])}"


def _smaller_spread(found: ArmSummary, other: ArmSummary) -> str:
    mine, theirs = found.measures[AIM].spread, other.measures[AIM].spread
    if mine is None or theirs is None:
        return "–"
    return (
        f"yes, {100 * mine:.2f} < {100 * theirs:.2f}" if mine < theirs else f"no, {100 * mine:.2f} ≥ {100 * theirs:.2f}"
    )


def _on_seeds(seeds: int) -> str:
    if seeds < 2:
        return "One seed: there are no intervals, so no difference can be significant."
    if seeds < 5:
        return f"Only {seeds} seeds: the intervals are wide, and a spread of {seeds} figures says little."
    return f"{seeds} seeds: of twenty intervals at 95 %, one is expected to miss the true difference."
