"""Results of the scarce study as a page.

Notable here:
- Next to each specificity stands the FNR that came out on the test split: a specificity alone would praise a threshold
  that misses more.
- What calibration is too small to resolve is marked, never interpolated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kizu.training.study.arms import ALL, HALF, Arm
from kizu.training.study.environment import environment_lines
from kizu.training.study.figures import AIM, MEASURES, Measure
from kizu.training.study.findings import findings_table, judged, points, sentences, signed
from kizu.training.study.plot import render_svg
from kizu.training.study.results import ArmSummary, Spread, curve_of, curve_source
from kizu.training.study.tables import markdown_table

PICTURE = "arms.svg"
TARGETS = tuple(measure for measure in MEASURES if measure != "auroc")
COMPARED: tuple[Measure, ...] = ("auroc", AIM)
MARK = "†"
BASELINES = """\
- classic: shifts, changes of size, brightness, contrast and noise, all stronger than the recipe's; no image is added.
- altered copies: the arm's own NG, altered in that way, as synthetic NG.
- cutpaste, poisson, perlin: a patch of an OK image pasted elsewhere; a patch blended in by solving Poisson's
  equation; a texture in the shape of Perlin noise. As in recipes, `generator.kind` of these names.
- real defects placed: the arm's own NG, each cut out and blended into other OK images (`poisson`, `patches = "ng"`).
- ganomaly, fanogan, draem, memory on OK alone: these detectors, preset `small`, on the same OK images; they use no NG.
- GAN whole: an image by StyleGAN2-ADA is a synthetic NG as it is. GAN placed: its defect is put into a real OK image.
""".splitlines()

HOW_TO_READ = [
    "## How to read it",
    "",
    "- The intervals of gains are Student's over seeds: a seed changes the sample of the train split, the "
    "weights and the order of images. Calibration and test split are the same throughout, so the intervals say "
    "nothing of other boards; the Clopper–Pearson bounds tell how much the test split's number of images leaves "
    "open, as if they were independent.",
    "- Many arms are compared: of twenty intervals at 95 %, one is expected to miss.",
    "- Every arm trains for as many updates as `all`, to within half an epoch; half means half of OK and NG, the "
    "same images for each arm of a seed, and a smaller share is part of a larger one.",
    *BASELINES,
]


def render_markdown(result: Mapping[str, Any], arms: Sequence[ArmSummary], pictures: str = "scarce") -> str:
    """Page of a study; contains no path and no host name, as long as `result` has none.

    Args:
        result: what ran: environment, settings, command, recipe and facts on the data.
        pictures: folder of the plot, next to the page.
    """
    table = [found for found in arms if found.arm.base.ng_share == 1.0 and found.arm.remedy is None]
    remedies = [found for found in arms if found.arm.remedy is not None]
    lines = [
        "# Scarce NG: what synthetic ones are worth",
        "",
        *_in_short(result, len(arms)),
        "",
        *_findings(arms),
        f"![Specificity of each arm, and the curve over the number of NG]({pictures}/{PICTURE})",
        "",
        "## Arms",
        "",
        *_arms(table),
        *_resolution(result, arms),
        *_gains(table),
        *(["## Remedies", "", *_arms(remedies), *_gains(remedies)] if remedies else []),
        *_curve(arms),
        *_rivals(arms),
        *_what_ran(result),
        *HOW_TO_READ,
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_report(result: Mapping[str, Any], arms: Sequence[ArmSummary], page: Path) -> None:
    """Write the page, and next to it a folder of its name with the plot."""
    pictures = page.parent / (page.stem if page.suffix else f"{page.name}-pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    page.write_text(render_markdown(result, arms, pictures.name), encoding="utf-8")
    (pictures / PICTURE).write_text(render_svg(arms), encoding="utf-8")


def _findings(arms: Sequence[ArmSummary]) -> list[str]:
    table = findings_table(arms)
    if not table.rows:
        return []
    return [*(f"- {sentence}" for sentence in sentences(arms)), "", *markdown_table(table.columns, table.rows), ""]


def _in_short(result: Mapping[str, Any], arms: int) -> list[str]:
    seeds, facts = result["settings"]["seeds"], result["facts"]
    test, calibration = facts["counts"]["test"], facts["counts"]["calibration"]
    return [
        f"`{facts['name']}`, {arms} arms × {len(seeds)} seed{'s' * (len(seeds) != 1)}. A generator sees "
        "its arm's NG alone. Thresholds come from "
        f"calibration ({calibration['OK']} OK, {calibration['NG']} NG); every figure is of the test split "
        f"({test['OK']} OK, {test['NG']} NG), which each arm meets once.",
        *(
            ["", "**A quick run**: images, updates and the generator are capped; it shows that everything runs."]
            if result["settings"].get("quick")
            else []
        ),
    ]


def _arms(arms: Sequence[ArmSummary]) -> list[str]:
    over_half = any(Arm(HALF) in found.gains for found in arms)
    columns = (
        "arm", "OK", "NG", "synthetic", "AUROC",
        *(f"specificity at FNR {100 * target:g} %" for target in TARGETS),
        *(["gain over half at FNR 1 %"] if over_half else []), "seconds",
    )  # fmt: skip
    rows = [
        (
            found.arm.label,
            *(str(count) for count in (found.n_ok, found.n_ng, found.synthetic_ng)),
            _mean(found.measures["auroc"]),
            *(_specificity(found, target) for target in TARGETS),
            *([points(found.gains[Arm(HALF)][AIM]) if Arm(HALF) in found.gains else "–"] if over_half else []),
            f"{'≥ ' if found.interrupted else ''}{found.seconds:.0f}",
        )
        for found in arms
    ]
    return [
        *markdown_table(columns, rows),
        "",
        "Mean ± standard deviation over seeds; in brackets the lowest lower and the highest upper 95 % Clopper–Pearson "
        "bound of any seed; then the FNR that the threshold gave on the test split. Gains are means of differences "
        "paired by seed with their 95 % interval. Seconds are of a training with its generator, wherever that was "
        "trained, and its tests."
        + (" ≥: it was interrupted, and only what followed is counted." if any(a.interrupted for a in arms) else ""),
        "",
    ]


def _resolution(result: Mapping[str, Any], arms: Sequence[ArmSummary]) -> list[str]:
    limited = [target for target in TARGETS if any(found.at[target].resolution_limited for found in arms)]
    if not limited:
        return []
    has = result["facts"]["counts"]["calibration"]["NG"]
    needed = ", ".join(f"{100 * target:g} % needs {1 / target:.0f}" for target in limited)
    return [
        f"{MARK} Not resolved: an FNR of {needed} NG in calibration, and there are {has}. The threshold is their "
        "lowest score, and what it gives is no statement on that FNR.",
        "",
    ]


def _gains(arms: Sequence[ArmSummary]) -> list[str]:
    columns = ("difference", "AUROC", *(f"at FNR {100 * target:g} %, points" for target in TARGETS))
    rows = []
    for found in arms:
        for other in (Arm(HALF), Arm(ALL)):
            if (found.arm, other) != (Arm(HALF), Arm(ALL)) and (gains := found.gains.get(other)):
                cells = (signed(gains["auroc"]), *(signed(gains[target], 100, 1) for target in TARGETS))
                rows.append((f"{found.arm.label} − {other.label}", *cells))
    if not rows:
        return []
    lead = "Differences of AUROC and of specificity, paired by seed, with 95 % intervals:"
    return [lead, "", *markdown_table(columns, rows), ""]


def _section(title: str, lead: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {title}", "", lead, "", *markdown_table(columns, rows), ""]


def _curve(arms: Sequence[ArmSummary]) -> list[str]:
    curve, rows = curve_of(arms), []
    if curve is None:
        return []
    for alone, added in curve.points:
        row = [f"{100 * alone.arm.base.ng_share:g} %", str(alone.n_ng)]
        for measure in COMPARED:
            row.append(_measure(alone, measure))
            row.append(_measure(added, measure) if added else "–")
            row.append(_gain(added, alone.arm, measure) if added else "–")
        rows.append(row)
    columns = ("of the NG", "NG", "AUROC, real alone", f"+ {curve.source}", "gain",
               "specificity at FNR 1 %, real alone", f"+ {curve.source}", "gain")  # fmt: skip
    return _section(
        "The curve over the number of NG", "All OK images of the train split, and so much of its NG.", columns, rows
    )


def _rivals(arms: Sequence[ArmSummary]) -> list[str]:
    source = curve_source(arms)
    shown = [
        found
        for found in arms
        if (found.arm.gan_rival in found.gains)
        or (found.arm.base.ng_share < 1.0 and found.arm.source not in (None, source))
    ]
    if not shown:
        return []
    against_gan = any(found.arm.gan_rival in found.gains for found in shown)
    rows = []
    for found in shown:
        row = [found.arm.label, str(found.n_ng)]
        for measure in COMPARED:
            row += [_measure(found, measure), _gain(found, found.arm.reference, measure)]
            row += [_gain(found, found.arm.gan_rival, measure)] if against_gan else []
        rows.append(row)
    over = ["over real alone", *(["over GAN placed"] if against_gan else [])]
    columns = ("arm", "NG", "AUROC", *over, "specificity at FNR 1 %", *over)
    title = "Other synthetic NG" + (", against the GAN's placed defects" if against_gan else "")
    return _section(title, "On the same real data.", columns, rows)


def _what_ran(result: Mapping[str, Any]) -> list[str]:
    facts, settings = result["facts"], result["settings"]
    counts = "; ".join(f"{split} {n['OK']} OK, {n['NG']} NG" for split, n in facts["counts"].items())
    groups = f" in {facts['groups']} groups, none of them in two splits" if facts["groups"] else ""
    at_once = f"{settings['parallel']} at a time, {settings['threads']} thread{'s' * (settings['threads'] != 1)} each"
    return [
        "## What ran",
        "",
        *environment_lines(result["environment"]),
        f"- Data: {facts['name']}: {counts}{groups}; fingerprint {facts['fingerprint'][:16]}, of the splits "
        f"{facts['split_fingerprint'][:16]}",
        f"- Seeds: {', '.join(map(str, settings['seeds']))}; {at_once}",
        "- Command:",
        "",
        f"      {result['command']}",
        "",
        "- Recipe:",
        "",
        *(f"      {line}" for line in json.dumps(result["recipe"], indent=1, ensure_ascii=False).splitlines()),
        "",
    ]


def _specificity(found: ArmSummary, target: float) -> str:
    at = found.at[target]
    bounds = at.specificity
    mark = f" {MARK}" if at.resolution_limited else ""
    return (
        f"{_measure(found, target)} [{100 * bounds.lower:.1f}, {100 * bounds.upper:.1f}], "
        f"FNR {100 * at.fnr.mean:.2f} %{mark}"
    )


def _gain(found: ArmSummary, other: Arm | None, measure: Measure) -> str:
    if other is None or other not in found.gains:
        return "–"
    return judged(found.gains[other][measure], signed if measure == "auroc" else points)


def _measure(found: ArmSummary, measure: Measure) -> str:
    return _mean(found.measures[measure], 1 if measure == "auroc" else 100)


def _mean(measure: Spread, scale: float = 1.0) -> str:
    """Format a mean; rates in per cent with `scale` 100."""
    digits, unit = (4, "") if scale == 1 else (1, " %")
    spread = "" if measure.spread is None else f" ± {scale * measure.spread:.{digits}f}"
    return f"{scale * measure.mean:.{digits}f}{spread}{unit}"
