"""What `kizu bench scarce` found, in sentences that rules write: also where synthetic NG did not help.

Notable here:
- A gain counts where its interval over seeds leaves out zero, and as a loss where it does so on the other side.
- No arm is picked by its test figures: each arm with synthetic NG gets its own yes or no.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kizu.training.study.arms import ALL, GAN_PLACED, HALF, is_remedy, is_rival, placed_name

Entry = dict[str, Any]
"""Of one arm, as `scarce_figures.summary` gives it."""

AIM = "0.01"
"""The target FNR that the verdicts are about."""
LOWEST = "0.001"
"""The target FNR of the hardest operating point; what is told of it is told of every arm at once."""
CURVE_SHARE = 0.05
"""Of the NG, where the curve's verdict is asked for."""


def findings(arms: Sequence[Entry]) -> list[str]:
    """The sentences, most important first."""
    half, whole = by_name(arms, HALF), by_name(arms, ALL)
    synthetic = [arm for arm in arms if arm["against"] == HALF and arm["synthetic_ng"] and not is_remedy(arm["arm"])]
    found = [*_half_against_all(whole), *_gains(arms, synthetic)]
    found += _reaches_all(synthetic, whole)
    found += _spread(synthetic, half)
    found += _remedies(arms)
    found += _lowest(arms)
    found += _curve(arms)
    found += _rivals(arms)
    seeds = min((len(arm["seeds"]) for arm in arms), default=0)
    if seeds < 2:
        found.append("One seed alone: there are no intervals, and nothing here is told from chance.")
    elif seeds < 5:
        found.append(f"Only {seeds} seeds: the intervals are wide, and a spread of {seeds} figures says little.")
    return found


def by_name(arms: Sequence[Entry], name: str) -> Entry | None:
    return next((arm for arm in arms if arm["arm"] == name), None)


def verdict(gain: dict[str, Any]) -> str:
    """What the interval of a gain says."""
    if gain["lower"] is None:
        return "one pair, no interval"
    if gain["lower"] > 0:
        return "better"
    return "worse" if gain["upper"] < 0 else "not told from no difference"


def excludes_zero(gain: dict[str, Any]) -> str:
    """`yes` for a gain above zero; otherwise how not."""
    if gain["lower"] is None:
        return "not to be told from one pair"
    if gain["lower"] > 0:
        return "yes"
    return "no, it is a loss" if gain["upper"] < 0 else "no"


def points(gain: dict[str, Any]) -> str:
    """A difference of rates, in percentage points."""
    return signed(gain, 100, 1) + " points"


def signed(gain: dict[str, Any], scale: float = 1.0, digits: int = 4) -> str:
    """A difference with its sign and, where there is one, its interval."""
    value, lower, upper = (None if gain[key] is None else scale * gain[key] for key in ("value", "lower", "upper"))
    shown = f"{value:+.{digits}f}"
    if lower is not None:
        shown += f" [{lower:+.{digits}f}, {upper:+.{digits}f}]"
    return shown.replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _half_against_all(whole: Entry | None) -> list[str]:
    if whole is None or HALF not in whole["gains"]:
        return []
    gain = whole["gains"][HALF][AIM]
    return [
        f"All real data against half of it, specificity at FNR 1 %: {points(gain)}, {verdict(gain)}. That is what "
        "synthetic NG could win back."
    ]


def _gains(arms: Sequence[Entry], synthetic: Sequence[Entry]) -> list[str]:
    others = [arm for arm in arms if arm["ng_share"] == 1.0 and not is_remedy(arm["arm"]) and arm["against"] == HALF]
    told = [
        f"{_short(arm)} {points(arm['gains'][HALF][AIM])}, {verdict(arm['gains'][HALF][AIM])}"
        for arm in others
        if HALF in arm["gains"]
    ]
    found = [f"Gain over half, specificity at FNR 1 %: {'; '.join(told)}."] if told else []
    held = [arm["gains"][HALF][AIM] for arm in synthetic if HALF in arm["gains"]]
    if held and all(gain["lower"] is not None and gain["lower"] <= 0 for gain in held):
        found.append("No arm of the table with synthetic NG is told to be better than half the real data alone.")
    return found


def _reaches_all(synthetic: Sequence[Entry], whole: Entry | None) -> list[str]:
    if whole is None or not synthetic:
        return []
    told = []
    for arm in synthetic:
        mean, gain = arm["measures"][AIM]["mean"], arm["gains"].get(ALL, {}).get(AIM)
        reached = "yes" if mean >= whole["measures"][AIM]["mean"] else "no"
        told.append(f"{_short(arm)} {reached} ({percent(mean)}" + (f", {points(gain)})" if gain else ")"))
    return [
        f"Goal: half + synthetic ≥ all real on specificity at FNR 1 % (all: {percent(whole['measures'][AIM]['mean'])}; "
        f"differences from it in brackets): {'; '.join(told)}."
    ]


def _spread(synthetic: Sequence[Entry], half: Entry | None) -> list[str]:
    if half is None or half["measures"][AIM]["spread"] is None or not synthetic:
        return []
    own = half["measures"][AIM]["spread"]
    told = [
        f"{_short(arm)} {'yes' if spread < own else 'no'} ({100 * spread:.2f})"
        for arm in synthetic
        if (spread := arm["measures"][AIM]["spread"]) is not None
    ]
    return [
        f"Goal: spread over seeds smaller than half's (standard deviation of specificity at FNR 1 %, {100 * own:.2f} "
        f"points): {'; '.join(told)}."
    ]


def _remedies(arms: Sequence[Entry]) -> list[str]:
    told = []
    for arm in arms:
        if is_remedy(arm["arm"]) and HALF in arm["gains"]:
            found, gain = arm["measures"][AIM], arm["gains"][HALF][AIM]
            spread = "" if found["spread"] is None else f" ± {100 * found['spread']:.1f}"
            told.append(f"{_short(arm)} {100 * found['mean']:.1f}{spread} %, {points(gain)}, {verdict(gain)}")
    return [f"Remedies, specificity at FNR 1 % and gain over half: {'; '.join(told)}."] if told else []


def _lowest(arms: Sequence[Entry]) -> list[str]:
    """Every arm's gain over half at the lowest FNR, by what its interval says."""
    by_verdict: dict[str, list[str]] = {}
    for arm in arms:
        if arm["ng_share"] == 1.0 and (gain := arm["gains"].get(HALF, {}).get(LOWEST)):
            by_verdict.setdefault(verdict(gain), []).append(f"{_short(arm)} {points(gain)}")
    parts = [f"{told}: {'; '.join(some)}" for told, some in by_verdict.items()]
    return [f"Gain over half, specificity at FNR 0.1 %. {'. '.join(parts)}."] if parts else []


def _curve(arms: Sequence[Entry]) -> list[str]:
    kind = along_curve(arms)
    pairs = [arm for arm in arms if is_along_curve(arm, kind) and arm["against"] in arm["gains"]]
    if not pairs:
        return []
    found = []
    at_aim = next((arm for arm in pairs if arm["ng_share"] == CURVE_SHARE), None)
    if at_aim is None:
        found.append(f"Goal: at {100 * CURVE_SHARE:g} % of the NG the gain's interval excludes zero: not measured.")
    else:
        gains = at_aim["gains"][at_aim["against"]]
        found.append(
            f"Goal: at {100 * CURVE_SHARE:g} % of the NG ({at_aim['n_ng']} images) the gain's interval excludes zero: "
            f"AUROC {excludes_zero(gains['auroc'])} ({signed(gains['auroc'])}); specificity at FNR 1 % "
            f"{excludes_zero(gains[AIM])} ({points(gains[AIM])})."
        )
    for measure, name in (("auroc", "AUROC"), (AIM, "specificity at FNR 1 %")):
        by_verdict: dict[str, list[str]] = {}
        for arm in pairs:
            told = verdict(arm["gains"][arm["against"]][measure])
            by_verdict.setdefault(told, []).append(f"{100 * arm['ng_share']:g} %")
        parts = "; ".join(f"{told} at {', '.join(shares)} of the NG" for told, shares in by_verdict.items())
        found.append(f"{_capital(kind)} along the curve, {name}: {parts}.")
    return found


def _rivals(arms: Sequence[Entry]) -> list[str]:
    found = []
    for measure, name, told in (("auroc", "AUROC", signed), (AIM, "specificity at FNR 1 %", points)):
        by_plain: dict[str, list[str]] = {}
        for arm in rivals(arms):
            gain = arm["gains"][placed_name(arm["against"])][measure]
            kind = arm["arm"].removeprefix(f"{arm['against']} + ")
            by_plain.setdefault(arm["against"], []).append(f"{kind} {told(gain)}, {verdict(gain)}")
        if by_plain:
            parts = ". ".join(f"With {plain}: {'; '.join(some)}" for plain, some in by_plain.items())
            found.append(f"What draws without training, less the GAN's placed defects, {name}. {parts}.")
    return found


def rivals(arms: Sequence[Entry]) -> list[Entry]:
    """What draws without training, where the GAN's placed defects on the same data were run too."""
    return [arm for arm in arms if is_rival(arm["arm"], arm["against"]) and placed_name(arm["against"]) in arm["gains"]]


def along_curve(arms: Sequence[Entry]) -> str:
    """Which synthetic NG the curve is drawn with: the GAN's placed defects, or else those run with most shares."""
    of_shares = [arm for arm in arms if arm["ng_share"] < 1.0 and arm["against"]]
    kinds = [str(arm["arm"]).removeprefix(f"{arm['against']} + ") for arm in of_shares]
    return GAN_PLACED if GAN_PLACED in kinds or not kinds else max(dict.fromkeys(kinds), key=kinds.count)


def is_along_curve(arm: Entry, kind: str) -> bool:
    """Whether it is of the curve with synthetic NG of a kind; that curve ends at all of the NG."""
    against = arm["against"]
    return bool(against) and (arm["ng_share"] < 1.0 or against == ALL) and arm["arm"] == f"{against} + {kind}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _short(arm: Entry) -> str:
    """The arm's name without what it is held against."""
    return str(arm["arm"]).removeprefix(f"{HALF} + ")
