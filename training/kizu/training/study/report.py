"""The figures of `kizu bench scarce` as a page. Works on plain data, as the run writes it.

Notable here:
- Beside each specificity stands the FNR that came out on the test split: a specificity alone would praise a threshold
  that misses more.
- What calibration is too small to resolve is marked, never interpolated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kizu.training.study.arms import ALL, HALF, is_remedy, placed_name
from kizu.training.study.environment import environment_lines
from kizu.training.study.figures import MEASURES
from kizu.training.study.findings import (
    AIM,
    Entry,
    along_curve,
    by_name,
    findings,
    is_along_curve,
    points,
    rivals,
    signed,
)
from kizu.training.study.plot import render_svg

PICTURE = "arms.svg"
TARGETS = tuple(str(measure) for measure in MEASURES if measure != "auroc")
MARK = "†"
BASELINES = """\
- classic: shifts, changes of size, brightness, contrast and noise, all stronger than the recipe's; no image is added.
- altered copies: the arm's own NG, altered in that way, as synthetic NG.
- cutpaste, poisson, perlin: a patch of an OK image pasted elsewhere; a patch blended in by solving Poisson's
  equation; a texture in the shape of Perlin noise. As in recipes, `generator.kind` of these names.
- real defects placed: the arm's own NG, each cut out and blended into other OK images (`poisson`, `patches = "ng"`).
- ganomaly, fanogan, draem, memory on OK alone: these detectors, preset `small`, on the same OK images; they use no NG.
- GAN whole: what StyleGAN2-ADA draws is a synthetic NG as it is. GAN placed: its defect is put into a real OK image.
""".splitlines()

HOW_TO_READ = [
    "## How to read it",
    "",
    "- The intervals of gains are Student's over seeds: a seed changes what is drawn from the train split, the "
    "weights and the order of images. Calibration and test split are the same throughout, so the intervals say "
    "nothing of other boards; the Clopper–Pearson bounds tell how much the test split's number of images leaves "
    "open, as if they were independent.",
    "- Many arms are compared: of twenty intervals at 95 %, one is expected to miss.",
    "- Every arm trains for as many updates as `all`, to within half an epoch; half means half of OK and NG, the "
    "same images for each arm of a seed, and a smaller share is part of a larger one.",
    *BASELINES,
]


def render_markdown(result: dict[str, Any], pictures: str = "scarce") -> str:
    """The page; contains no path and no host name, as long as `result` has none.

    Args:
        result: of the benchmark.
        pictures: folder of the plot, beside the page.
    """
    arms: list[Entry] = result["arms"]
    table = [arm for arm in arms if arm["ng_share"] == 1.0 and not is_remedy(arm["arm"])]
    remedies = [arm for arm in arms if is_remedy(arm["arm"])]
    lines = [
        "# Scarce NG: what synthetic ones are worth",
        "",
        *_in_short(result),
        "",
        *(f"- {sentence}" for sentence in findings(arms)),
        "",
        f"![Specificity of each arm, and the curve over the number of NG]({pictures}/{PICTURE})",
        "",
        "## Arms",
        "",
        *_arms(table),
        *_resolution(result),
        *_gains(table),
        *(["## Remedies", "", *_arms(remedies), *_gains(remedies)] if remedies else []),
        *_curve(arms),
        *_rivals(arms),
        *_what_ran(result),
        *HOW_TO_READ,
    ]
    return "\n".join(lines).rstrip() + "\n"


def write_report(result: dict[str, Any], page: Path) -> None:
    """Write the page, and beside it a folder of its name with the plot."""
    pictures = page.parent / (page.stem if page.suffix else f"{page.name}-pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    page.write_text(render_markdown(result, pictures.name), encoding="utf-8")
    (pictures / PICTURE).write_text(render_svg(result), encoding="utf-8")


def _in_short(result: dict[str, Any]) -> list[str]:
    seeds, facts = result["settings"]["seeds"], result["facts"]
    test, calibration = facts["counts"]["test"], facts["counts"]["calibration"]
    return [
        f"`{facts['name']}`, {len(result['arms'])} arms × {len(seeds)} seed{'s' * (len(seeds) != 1)}. A generator sees "
        "its arm's NG alone. Thresholds come from "
        f"calibration ({calibration['OK']} OK, {calibration['NG']} NG); every figure is of the test split "
        f"({test['OK']} OK, {test['NG']} NG), which each arm meets once.",
        *(
            ["", "**A quick run**: images, updates and the generator are capped; it shows that everything runs."]
            if result["settings"].get("quick")
            else []
        ),
    ]


def _arms(arms: Sequence[Entry]) -> list[str]:
    over_half = any(HALF in arm["gains"] for arm in arms)
    columns = (
        "arm", "OK", "NG", "synthetic", "AUROC",
        *(f"specificity at FNR {100 * float(target):g} %" for target in TARGETS),
        *(["gain over half at FNR 1 %"] if over_half else []), "seconds",
    )  # fmt: skip
    rows = [
        (
            arm["arm"],
            *(str(arm[key]) for key in ("n_ok", "n_ng", "synthetic_ng")),
            _mean(arm["measures"]["auroc"]),
            *(_specificity(arm, target) for target in TARGETS),
            *([points(arm["gains"][HALF][AIM]) if HALF in arm["gains"] else "–"] if over_half else []),
            f"{'≥ ' if arm['interrupted'] else ''}{arm['seconds']:.0f}",
        )
        for arm in arms
    ]
    return [
        *_table(columns, rows),
        "",
        "Mean ± standard deviation over seeds; in brackets the lowest lower and the highest upper 95 % Clopper–Pearson "
        "bound of any seed; then the FNR that the threshold gave on the test split. Gains are means of differences "
        "paired by seed with their 95 % interval. Seconds are of a training with its generator, wherever that was "
        "trained, and its tests."
        + (" ≥: it was interrupted, and only what followed is counted." if any(a["interrupted"] for a in arms) else ""),
        "",
    ]


def _resolution(result: dict[str, Any]) -> list[str]:
    limited = [t for t in TARGETS if any(arm["at"][t]["resolution_limited"] for arm in result["arms"])]
    if not limited:
        return []
    has = result["facts"]["counts"]["calibration"]["NG"]
    needed = ", ".join(f"{100 * float(t):g} % needs {1 / float(t):.0f}" for t in limited)
    return [
        f"{MARK} Not resolved: an FNR of {needed} NG in calibration, and there are {has}. The threshold is their "
        "lowest score, and what it gives is no statement on that FNR.",
        "",
    ]


def _gains(arms: Sequence[Entry]) -> list[str]:
    names = ("AUROC", *(f"at FNR {100 * float(target):g} %, points" for target in TARGETS))
    rows = []
    for arm in arms:
        for other in (HALF, ALL):
            if arm["arm"] in (HALF, ALL) and (arm["arm"], other) != (ALL, HALF):
                continue
            if gains := arm["gains"].get(other):
                cells = (signed(gains["auroc"]), *(signed(gains[target], 100, 1) for target in TARGETS))
                rows.append((f"{arm['arm']} − {other}", *cells))
    if not rows:
        return []
    return ["Differences of AUROC and of specificity, paired by seed, with 95 % intervals:", "",
            *_table(("difference", *names), rows), ""]  # fmt: skip


def _section(title: str, lead: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"## {title}", "", lead, "", *_table(columns, rows), ""]


def _curve(arms: Sequence[Entry]) -> list[str]:
    plain = [arm for arm in arms if arm["ng_share"] < 1.0 and arm["against"] is None]
    if not plain:
        return []
    kind, rows = along_curve(arms), []
    for arm in sorted(plain, key=lambda arm: arm["ng_share"]) + [a for a in [by_name(arms, ALL)] if a]:
        other = next((a for a in arms if a["against"] == arm["arm"] and is_along_curve(a, kind)), None)
        row = [f"{100 * arm['ng_share']:g} %", str(arm["n_ng"])]
        for measure, told in (("auroc", signed), (AIM, points)):
            scale = 1 if measure == "auroc" else 100
            row.append(_mean(arm["measures"][measure], scale))
            row.append(_mean(other["measures"][measure], scale) if other else "–")
            row.append(told(other["gains"][arm["arm"]][measure]) if other else "–")
        rows.append(row)
    columns = ("of the NG", "NG", "AUROC, real alone", f"+ {kind}", "gain",
               "specificity at FNR 1 %, real alone", f"+ {kind}", "gain")  # fmt: skip
    return _section(
        "The curve over the number of NG", "All OK images of the train split, and so much of its NG.", columns, rows
    )


def _rivals(arms: Sequence[Entry]) -> list[str]:
    kind, held = along_curve(arms), rivals(arms)
    of_shares = [arm for arm in arms if arm["ng_share"] < 1.0 and arm["against"] and not is_along_curve(arm, kind)]
    shown = [arm for arm in arms if arm in held or arm in of_shares]
    if not shown:
        return []
    against_gan = any(placed_name(arm["against"]) in arm["gains"] for arm in shown)
    rows = []
    for arm in shown:
        row = [arm["arm"], str(arm["n_ng"])]
        for measure, told in (("auroc", signed), (AIM, points)):
            row.append(_mean(arm["measures"][measure], 1 if measure == "auroc" else 100))
            for other in (arm["against"], *([placed_name(arm["against"])] if against_gan else [])):
                row.append(told(arm["gains"][other][measure]) if other in arm["gains"] else "–")
        rows.append(row)
    over = ["over real alone", *(["over GAN placed"] if against_gan else [])]
    columns = ("arm", "NG", "AUROC", *over, "specificity at FNR 1 %", *over)
    title = "Other synthetic NG" + (", against the GAN's placed defects" if against_gan else "")
    return _section(title, "On the same data, in their place.", columns, rows)


def _what_ran(result: dict[str, Any]) -> list[str]:
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


def _specificity(arm: Entry, target: str) -> str:
    at = arm["at"][target]
    bounds = at["specificity"]
    mark = f" {MARK}" if at["resolution_limited"] else ""
    return (
        f"{_mean(arm['measures'][target], 100)} [{100 * bounds['lower']:.1f}, {100 * bounds['upper']:.1f}], "
        f"FNR {100 * at['fnr']['mean']:.2f} %{mark}"
    )


def _mean(measure: dict[str, Any], scale: float = 1.0) -> str:
    """Of rates in per cent with `scale` 100."""
    digits, unit = (4, "") if scale == 1 else (1, " %")
    spread = "" if measure["spread"] is None else f" ± {scale * measure['spread']:.{digits}f}"
    return f"{scale * measure['mean']:.{digits}f}{spread}{unit}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    align = ["---", *["---:"] * (len(columns) - 1)]
    return ["| " + " | ".join(row) + " |" for row in [columns, align, *rows]]
