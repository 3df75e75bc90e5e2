"""Results of the scarce study: of each training, of each arm over its seeds, and gains over other arms.

Notable here:
- A gain is a mean of differences paired by seed, with Student's interval over seeds: samples of data and weights vary,
  the test split does not.
- A difference is significant where its 95 % interval leaves out zero.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from kizu.training.evaluation.detection import TARGET_FNRS
from kizu.training.study.arms import ALL, HALF, Arm, Source
from kizu.training.study.figures import MEASURES, Measure

NOT_SIGNIFICANT = "no significant difference"
NO_INTERVAL = "one pair, no interval"


@dataclass(frozen=True)
class ArmResult:
    """One training of an arm, tested."""

    arm: Arm
    seed: int
    n_ok: int
    n_ng: int
    """Real ones in training."""
    synthetic_ng: int
    seconds: Mapping[str, float]
    """`total`, `cpu` and, where there is one, `generator`."""
    stages: Mapping[str, float]
    """Seconds by stage of training."""
    interrupted: bool
    """`seconds` count only a part."""
    figures: Mapping[str, Any]
    """As `figures_of` gives them."""

    @classmethod
    def read(cls, arm: Arm, data: Mapping[str, Any]) -> ArmResult:
        """Restore a result of `arm` from `as_dict()`."""
        return cls(arm, **{field.name: data[field.name] for field in fields(cls) if field.name != "arm"})

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        plain = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "arm"}
        return _arm_fields(self.arm) | plain

    def at(self, target: float) -> dict[str, Any]:
        """Figures at the threshold for a target FNR."""
        found: dict[str, Any] = next(at for at in self.figures["at"] if at["target_fnr"] == target)
        return found

    def value(self, measure: Measure) -> float:
        """AUROC, or specificity at the threshold for a target FNR."""
        if measure == "auroc":
            return float(self.figures["auroc"]["value"])
        return float(self.at(measure)["specificity"]["rate"])


@dataclass(frozen=True)
class Gain:
    """Mean difference of two arms over seeds, with its 95 % interval; no bounds for a single pair."""

    value: float
    lower: float | None
    upper: float | None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, no significant difference, or no interval."""
        if self.lower is None or self.upper is None:
            return NO_INTERVAL
        if self.lower > 0:
            return "better"
        return "worse" if self.upper < 0 else NOT_SIGNIFICANT


@dataclass(frozen=True)
class Spread:
    """A measure over seeds; `spread` is the standard deviation, None for one seed."""

    mean: float
    spread: float | None
    values: tuple[float, ...]


@dataclass(frozen=True)
class RateOverSeeds:
    """Mean of a rate over seeds, and the outermost bounds of any seed."""

    mean: float
    lower: float
    upper: float


@dataclass(frozen=True)
class AtTarget:
    """Rates at the thresholds for a target FNR, over seeds."""

    resolution_limited: bool
    """Calibration had too few NG for the target, at least with one seed."""
    specificity: RateOverSeeds
    fnr: RateOverSeeds


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds."""

    arm: Arm
    n_ok: int
    n_ng: int
    synthetic_ng: int
    seeds: tuple[int, ...]
    seconds: float
    """Mean of a training with its generator and its tests."""
    interrupted: bool
    measures: Mapping[Measure, Spread]
    at: Mapping[float, AtTarget]
    gains: Mapping[Arm, Mapping[Measure, Gain]]
    """Over other arms, paired by seed."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; other arms by their labels."""
        plain = {name: getattr(self, name) for name in ("n_ok", "n_ng", "synthetic_ng", "seconds", "interrupted")}
        measures = self.measures.items()
        return {
            **_arm_fields(self.arm),
            **plain,
            "seeds": list(self.seeds),
            "measures": {str(name): asdict(found) | {"values": list(found.values)} for name, found in measures},
            "at": {str(target): asdict(found) for target, found in self.at.items()},
            "gains": {
                other.label: {str(name): asdict(gain) for name, gain in gains.items()}
                for other, gains in self.gains.items()
            },
        }


def _arm_fields(arm: Arm) -> dict[str, Any]:
    """The arm in JSON: its label, and its fields."""
    return {
        "arm": arm.label,
        "against": arm.reference.label if arm.reference else None,
        "share": arm.base.share,
        "ng_share": arm.base.ng_share,
        "source": arm.source.key if arm.source else None,
        "strong_augment": arm.strong_augment,
        "remedy": arm.remedy.key if arm.remedy else None,
        "one_class": arm.one_class.key if arm.one_class else None,
    }


def paired_gain(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Gain:
    """Mean of first − second with Student's two-sided interval over the pairs; no bounds for a single pair."""
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mean, n = float(differences.mean()), differences.size
    if n < 2:
        return Gain(mean, None, None)
    reach = float(student.ppf((1 + confidence) / 2, n - 1)) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Gain(mean, mean - reach, mean + reach)


def summary(results: Sequence[ArmResult]) -> list[ArmSummary]:
    """One entry for each arm, in order, with its gains.

    Gains are over the arm without synthetic NG on the same data; for arms with all of their NG, over half and all of
    the real data; for sources without training, over the GAN's placed defects on the same data.
    """
    runs: dict[Arm, dict[int, ArmResult]] = {}
    for result in results:
        runs.setdefault(result.arm, {})[result.seed] = result
    return [_summary_of(arm, runs) for arm in runs]


def _summary_of(arm: Arm, runs: Mapping[Arm, Mapping[int, ArmResult]]) -> ArmSummary:
    by_seed = runs[arm]
    seeds = tuple(sorted(by_seed))
    mine = [by_seed[seed] for seed in seeds]
    gains = {other: _gains(by_seed, runs[other]) for other in _others(arm) if set(by_seed) & set(runs.get(other, ()))}
    return ArmSummary(
        arm=arm,
        n_ok=mine[0].n_ok,
        n_ng=mine[0].n_ng,
        synthetic_ng=mine[0].synthetic_ng,
        seeds=seeds,
        seconds=statistics.fmean(run.seconds["total"] for run in mine),
        interrupted=any(run.interrupted for run in mine),
        measures={measure: _spread([run.value(measure) for run in mine]) for measure in MEASURES},
        at={target: _at([run.at(target) for run in mine]) for target in TARGET_FNRS},
        gains=gains,
    )


def _others(arm: Arm) -> list[Arm]:
    """Arms to compare `arm` with, the most telling first."""
    others = [arm.reference, *([Arm(HALF), Arm(ALL)] if arm.base.ng_share == 1.0 else []), arm.gan_rival]
    return [other for other in dict.fromkeys(others) if other is not None and other != arm]


def _gains(mine: Mapping[int, ArmResult], theirs: Mapping[int, ArmResult]) -> dict[Measure, Gain]:
    seeds = sorted(set(mine) & set(theirs))
    return {
        measure: paired_gain([mine[s].value(measure) for s in seeds], [theirs[s].value(measure) for s in seeds])
        for measure in MEASURES
    }


def _spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, tuple(values))


def _at(found: Sequence[Mapping[str, Any]]) -> AtTarget:
    def over_seeds(name: str) -> RateOverSeeds:
        rates = [at[name] for at in found]
        return RateOverSeeds(
            statistics.fmean(rate["rate"] for rate in rates),
            min(rate["lower"] for rate in rates),
            max(rate["upper"] for rate in rates),
        )

    return AtTarget(any(at["resolution_limited"] for at in found), over_seeds("specificity"), over_seeds("fnr"))


def by_arm(summaries: Sequence[ArmSummary]) -> dict[Arm, ArmSummary]:
    """Summaries by their arms."""
    return {found.arm: found for found in summaries}


@dataclass(frozen=True)
class NgCurve:
    """Arms of the curve over the number of NG."""

    source: Source
    points: Sequence[tuple[ArmSummary, ArmSummary | None]]
    """For each number of NG, fewest first: real data alone, and with synthetic NG of `source` where that was run."""


def curve_of(summaries: Sequence[ArmSummary]) -> NgCurve | None:
    """The curve, which ends at all of the NG; None where no share of the NG was run."""
    alone = [found for found in summaries if found.arm.is_real and found.arm.base.ng_share < 1.0]
    if not alone:
        return None
    source, arms = curve_source(summaries), by_arm(summaries)
    alone.sort(key=lambda found: found.arm.base.ng_share)
    alone += [arms[Arm(ALL)]] if Arm(ALL) in arms else []
    return NgCurve(source, [(found, arms.get(Arm(found.arm.base, source))) for found in alone])


def curve_source(summaries: Sequence[ArmSummary]) -> Source:
    """The curve's synthetic NG: the GAN's placed defects, or else those run with most shares."""
    sources = [found.arm.source for found in summaries if found.arm.base.ng_share < 1.0]
    run = [source for source in sources if source is not None]
    if Source.GAN_PLACED in run or not run:
        return Source.GAN_PLACED
    return max(dict.fromkeys(run), key=run.count)
