"""The picture of `kizu bench scarce`: a dot for each seed of each arm, and the curves over the number of NG.

Notable here:
- Every training is a dot, so that a mean never hides how its seeds scatter.
- The picture brings its own background, and tells kinds of arms by shape and lines by dashes as well as by colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from kizu.training.evaluation.curves import Axis, Frame, LineChart, Series, line_chart
from kizu.training.study.arms import ALL, HALF
from kizu.training.study.findings import AIM, Entry, along_curve, by_name, is_along_curve, percent

WIDTH = 1200
_LABELS, _STRIP, _RIGHT = 306, 350, 800
_TOP, _ROW, _CURVE, _GAP = 84, 25, 190, 84
_INK, _TEXT, _GRID = "#1b2230", "#4a5362", "#e3e7ec"
_REAL, _BASELINE, _GAN = "#3d3d46", "#b4581a", "#1f6fb8"
_ALONE = "real alone"


def render_svg(result: dict[str, Any]) -> str:
    """Left: specificity at FNR 1 % of each arm, by seed. Right: AUROC and that specificity over the number of NG."""
    arms = [arm for arm in result["arms"] if arm["ng_share"] == 1.0]
    curves = _curve_series(result["arms"])
    strip = _TOP + _ROW * len(arms)
    height = max(strip + 84, _TOP + 2 * _CURVE + _GAP + 88) if curves else strip + 84
    width = WIDTH if curves else _LABELS + _STRIP + 76
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, Segoe UI, Roboto, Noto Sans, DejaVu Sans, sans-serif" font-size="12" fill="{_TEXT}">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d5dae1"/>',
        f'<text x="20" y="30" font-size="15" font-weight="600" fill="{_INK}">Test specificity where the threshold aims '
        "at an FNR of 1 %</text>",
        *_key(20, 54),
        *_strip(arms, strip),
        f'<text x="20" y="{strip + 50}">A dot for each seed, an upright line for their mean. Dashes: mean of all and '
        "of half.</text>",
        f'<text x="20" y="{strip + 67}">The threshold comes from calibration: the FNR that came out differs by arm.'
        "</text>",
    ]
    if curves:
        body += _curve_panels(curves, len(result["settings"]["seeds"]))
    return "\n".join([*body, "</svg>\n"])


def _strip(arms: Sequence[Entry], bottom: int) -> list[str]:
    values = [100 * value for arm in arms for value in arm["measures"][AIM]["values"]]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    axis = Axis(max(0.0, min(values) - margin), min(100.0, max(values) + margin), _LABELS, _STRIP)
    body = []
    for tick in axis.ticks(gap=30.0):
        body.append(f'<path d="M{tick.at:.1f},{_TOP - 8}V{bottom}" stroke="{_GRID}"/>')
        body.append(f'<text x="{tick.at:.1f}" y="{bottom + 17}" text-anchor="middle">{tick.text} %</text>')
    held = [arm for arm in (by_name(arms, ALL), by_name(arms, HALF)) if arm]
    # The lower one's name ends at its line and the higher one's begins there: they may lie a point apart.
    for arm, anchor in zip(sorted(held, key=lambda arm: arm["measures"][AIM]["mean"]), ("end", "start"), strict=False):
        [x] = axis.places([100 * arm["measures"][AIM]["mean"]])
        line = f'stroke="{_REAL}" stroke-dasharray="3 3" stroke-opacity=".7"'
        body.append(f'<path d="M{x:.1f},{_TOP - 8}V{bottom}" {line}/>')
        body.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="{anchor}" font-size="11">{arm["arm"]}</text>')
    body.append(f'<path d="M{_LABELS},{bottom}h{_STRIP}" stroke="#8b95a3"/>')
    for place, arm in enumerate(arms):
        body += _row(arm, axis, _TOP + _ROW * (place + 0.5))
    return body


def _row(arm: Entry, axis: Axis, y: float) -> list[str]:
    measure, colour = arm["measures"][AIM], _kind(arm)[1]
    [mean] = axis.places([100 * measure["mean"]])
    body = [
        f'<text x="{_LABELS - 12}" y="{y + 4:.1f}" text-anchor="end" fill="{_INK}">{escape(_fitted(arm["arm"]))}'
        f"<title>{escape(arm['arm'])}</title></text>",
        f'<path d="M{mean:.1f},{y - 9:.1f}v18" stroke="{colour}" stroke-width="2.5"/>',
        f'<text x="{_LABELS + _STRIP + 10}" y="{y + 4:.1f}">{percent(measure["mean"])}</text>',
    ]
    for seed, value, x in zip(
        arm["seeds"], measure["values"], axis.places([100 * value for value in measure["values"]]), strict=True
    ):
        title = f"{arm['arm']}, seed {seed}: {percent(value)}"
        body.append(f"{_dot(arm, float(x), y)}<title>{escape(title)}</title></path>")
    return body


def _kind(arm: Entry) -> tuple[str, str]:
    """Of an arm: what it is, and its colour."""
    if arm["against"] is None or not arm["synthetic_ng"]:
        return "real", _REAL
    return ("gan", _GAN) if "GAN" in arm["arm"] else ("baseline", _BASELINE)


def _dot(arm: Entry, x: float, y: float) -> str:
    kind, colour = _kind(arm)
    return f'<path d="{_shape(kind, x, y)}" fill="{colour}" fill-opacity=".55" stroke="{colour}">'


def _shape(kind: str, x: float, y: float) -> str:
    """A circle for real NG, a square for a baseline's, a triangle for a GAN's."""
    if kind == "real":
        return f"M{x - 4:.1f},{y:.1f}a4,4 0 1 0 8,0a4,4 0 1 0 -8,0Z"
    if kind == "baseline":
        return f"M{x - 3.5:.1f},{y - 3.5:.1f}h7v7h-7Z"
    return f"M{x:.1f},{y - 4.5:.1f}l4.6,8h-9.2Z"


def _key(x: float, y: float) -> list[str]:
    body = []
    for kind, colour, text in (
        ("real", _REAL, "real NG alone"),
        ("baseline", _BASELINE, "drawn without learning"),
        ("gan", _GAN, "drawn by StyleGAN2-ADA"),
    ):
        body.append(f'<path d="{_shape(kind, x + 5, y - 4)}" fill="{colour}" fill-opacity=".55" stroke="{colour}"/>')
        body.append(f'<text x="{x + 16:.0f}" y="{y}">{text}</text>')
        x += 40 + 6.6 * len(text)
    return body


def _fitted(name: str) -> str:
    """Short enough for its place; the whole is in the tooltip."""
    return name if len(name) <= 44 else name[:43].rstrip() + "…"


def _curve_series(arms: Sequence[Entry]) -> dict[str, list[Series]]:
    """For each measure the two curves; nothing where no share of the NG was run."""
    if not any(arm["ng_share"] < 1.0 for arm in arms):
        return {}
    alone = [arm for arm in arms if arm["arm"] == ALL or (arm["ng_share"] < 1.0 and arm["against"] is None)]
    kind = along_curve(arms)
    drawn = [arm for arm in arms if is_along_curve(arm, kind)]
    found = {}
    for measure, scale in (("auroc", 1.0), (AIM, 100.0)):
        found[measure] = [
            _series(name, some, measure, scale) for name, some in ((_ALONE, alone), (f"+ {kind}", drawn)) if some
        ]
    return found


def _series(name: str, arms: Sequence[Entry], measure: str, scale: float) -> Series:
    """Means over seeds, within their range."""
    values = [[scale * value for value in arm["measures"][measure]["values"]] for arm in arms]
    return Series(
        name,
        [float(arm["n_ng"]) for arm in arms],
        [sum(some) / len(some) for some in values],
        [min(some) for some in values],
        [max(some) for some in values],
    )


def _curve_panels(curves: dict[str, list[Series]], seeds: int) -> list[str]:
    left = _RIGHT + 44
    body, x = [], float(left)
    for name in dict.fromkeys(one.name for some in curves.values() for one in some):
        body.append(f'<path d="M{x:g},50h30" {_stroke(name)}/>')
        body.append(f'<text x="{x + 38:g}" y="54">{name}</text>')
        x += 136
    titles = {"auroc": "AUROC", AIM: "Specificity at FNR 1 %, in %"}
    reach = [value for some in curves.values() for one in some for value in one.x]
    x_range = (min(reach), max(reach)) if min(reach) < max(reach) else None
    bottom = _TOP
    for place, (measure, some) in enumerate(curves.items()):
        top = _TOP + place * (_CURVE + _GAP)
        bottom = top + _CURVE
        frame = Frame(left, top, WIDTH - left - 24, _CURVE)
        chart = line_chart(some, frame=frame, log_x=True, x_range=x_range, y_range=_y_range(some))
        if chart is not None:
            body += _panel(chart, titles[measure])
    shade = f"Lines: means of {seeds} seeds. Shades: their range." if seeds > 1 else "One seed."
    body.append(f'<text x="{left}" y="{bottom + 54}">With all OK images of the train split.</text>')
    body.append(f'<text x="{left}" y="{bottom + 71}">{shade}</text>')
    return body


def _y_range(some: Sequence[Series]) -> tuple[float, float]:
    """What the curves reach; rates mostly crowd near their upper end, and zero is no figure to compare with."""
    values = [value for one in some for row in (one.lower, one.upper) for value in row or ()]
    margin = 0.05 * (max(values) - min(values)) or 0.01 * max(values) or 0.01
    return min(values) - margin, max(values) + margin


def _panel(chart: LineChart, title: str) -> list[str]:
    f = chart.frame
    body = [f'<text x="{f.left:g}" y="{f.top - 9:g}" font-size="13" font-weight="600" fill="{_INK}">{title}</text>']
    for tick in chart.y_ticks:
        body.append(f'<path d="M{f.left:g},{tick.at:.1f}H{f.right:g}" stroke="{_GRID}"/>')
        body.append(f'<text x="{f.left - 7:g}" y="{tick.at + 4:.1f}" text-anchor="end">{tick.text}</text>')
    for tick in chart.x_ticks:
        body.append(f'<path d="M{tick.at:.1f},{f.bottom:g}v4" stroke="#8b95a3"/>')
        body.append(f'<text x="{tick.at:.1f}" y="{f.bottom + 17:g}" text-anchor="middle">{tick.text}</text>')
    body.append(f'<path d="M{f.left:g},{f.bottom:g}H{f.right:g}" stroke="#8b95a3"/>')
    body.append(f'<text x="{f.right:g}" y="{f.bottom + 33:g}" text-anchor="end">real NG in training</text>')
    for curve in chart.curves:
        colour = _colour(curve.name)
        if curve.band:
            body.append(f'<path d="{curve.band}" fill="{colour}" fill-opacity=".15"/>')
        if curve.path:
            body.append(f'<path d="{curve.path}" {_stroke(curve.name)}/>')
        for dot in curve.dots:
            body.append(
                f'<circle cx="{dot.x:g}" cy="{dot.y:g}" r="3" fill="{colour}"><title>{escape(dot.title)} NG</title>'
                "</circle>"
            )
    return body


def _stroke(name: str) -> str:
    dashes = ' stroke-dasharray="6 4"' if name == _ALONE else ""
    return f'fill="none" stroke="{_colour(name)}" stroke-width="2.2" stroke-linejoin="round"{dashes}'


def _colour(name: str) -> str:
    """Of a curve, as of the dots of its kind."""
    if name == _ALONE:
        return _REAL
    return _GAN if "GAN" in name else _BASELINE
