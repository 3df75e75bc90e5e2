"""Plot of the scarce study: a dot for each seed of each arm, and the curves over the number of NG.

Notable here:
- Every training is a dot, so that a mean never hides how its seeds scatter.
- The plot brings its own background; kinds of arms differ in shape as well as colour, lines in dashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from xml.sax.saxutils import escape

from kizu.training.evaluation.curves import Axis, Curve, Frame, LineChart, Series, line_chart
from kizu.training.study.arms import ALL, HALF, Arm, Source
from kizu.training.study.figures import AIM, Measure
from kizu.training.study.findings import percent
from kizu.training.study.results import ArmSummary, NgCurve, by_arm, curve_of

WIDTH = 1200
_LABELS, _STRIP, _RIGHT = 306, 350, 800
_TOP, _ROW, _CURVE, _GAP = 84, 25, 190, 84
_INK, _TEXT, _GRID = "#1b2230", "#4a5362", "#e3e7ec"
_REAL_COLOUR = "#3d3d46"


class Kind(Enum):
    """Kind of an arm's synthetic NG: its colour, and its name in the key."""

    REAL = (_REAL_COLOUR, "real NG alone")
    BASELINE = ("#b4581a", "synthesised without learning")
    GAN = ("#1f6fb8", "synthesised by StyleGAN2-ADA")

    def __init__(self, colour: str, text: str):
        self.colour, self.text = colour, text

    @classmethod
    def of(cls, source: Source | None) -> Kind:
        """Kind of a source."""
        if source is None:
            return cls.REAL
        return cls.GAN if source.is_gan else cls.BASELINE


def render_svg(summaries: Sequence[ArmSummary]) -> str:
    """Left: specificity at FNR 1 % of each arm, by seed. Right: AUROC and that specificity over the number of NG."""
    arms = [found for found in summaries if found.arm.base.ng_share == 1.0]
    curve = curve_of(summaries)
    strip = _TOP + _ROW * len(arms)
    height = max(strip + 84, _TOP + 2 * _CURVE + _GAP + 88) if curve else strip + 84
    width = WIDTH if curve else _LABELS + _STRIP + 76
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
    if curve:
        body += _curve_panels(curve, max(len(found.seeds) for found in summaries))
    return "\n".join([*body, "</svg>\n"])


def _strip(arms: Sequence[ArmSummary], bottom: int) -> list[str]:
    values = [100 * value for found in arms for value in found.measures[AIM].values]
    margin = 0.06 * (max(values) - min(values)) or 1.0
    axis = Axis(max(0.0, min(values) - margin), min(100.0, max(values) + margin), _LABELS, _STRIP)
    body = []
    for tick in axis.ticks(gap=30.0):
        body.append(f'<path d="M{tick.at:.1f},{_TOP - 8}V{bottom}" stroke="{_GRID}"/>')
        body.append(f'<text x="{tick.at:.1f}" y="{bottom + 17}" text-anchor="middle">{tick.text} %</text>')
    known = by_arm(arms)
    levels = [known[arm] for arm in (Arm(ALL), Arm(HALF)) if arm in known]
    # The lower one's name ends at its line and the higher one's begins there: they may lie a point apart.
    for found, anchor in zip(
        sorted(levels, key=lambda level: level.measures[AIM].mean), ("end", "start"), strict=False
    ):
        [x] = axis.positions([100 * found.measures[AIM].mean])
        line = f'stroke="{_REAL_COLOUR}" stroke-dasharray="3 3" stroke-opacity=".7"'
        body.append(f'<path d="M{x:.1f},{_TOP - 8}V{bottom}" {line}/>')
        label = escape(found.arm.label)
        body.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="{anchor}" font-size="11">{label}</text>')
    body.append(f'<path d="M{_LABELS},{bottom}h{_STRIP}" stroke="#8b95a3"/>')
    for index, found in enumerate(arms):
        body += _row(found, axis, _TOP + _ROW * (index + 0.5))
    return body


def _row(found: ArmSummary, axis: Axis, y: float) -> list[str]:
    label, measure, kind = found.arm.label, found.measures[AIM], Kind.of(found.arm.source)
    [mean] = axis.positions([100 * measure.mean])
    body = [
        f'<text x="{_LABELS - 12}" y="{y + 4:.1f}" text-anchor="end" fill="{_INK}">{escape(_fitted(label))}'
        f"<title>{escape(label)}</title></text>",
        f'<path d="M{mean:.1f},{y - 9:.1f}v18" stroke="{kind.colour}" stroke-width="2.5"/>',
        f'<text x="{_LABELS + _STRIP + 10}" y="{y + 4:.1f}">{percent(measure.mean)}</text>',
    ]
    positions = axis.positions([100 * value for value in measure.values])
    for seed, value, x in zip(found.seeds, measure.values, positions, strict=True):
        title = f"{label}, seed {seed}: {percent(value)}"
        body.append(f"{_dot(kind, float(x), y)}<title>{escape(title)}</title></path>")
    return body


def _dot(kind: Kind, x: float, y: float) -> str:
    return f'<path d="{_shape(kind, x, y)}" fill="{kind.colour}" fill-opacity=".55" stroke="{kind.colour}">'


def _shape(kind: Kind, x: float, y: float) -> str:
    """Circle for real NG, square for a baseline's, triangle for a GAN's."""
    if kind is Kind.REAL:
        return f"M{x - 4:.1f},{y:.1f}a4,4 0 1 0 8,0a4,4 0 1 0 -8,0Z"
    if kind is Kind.BASELINE:
        return f"M{x - 3.5:.1f},{y - 3.5:.1f}h7v7h-7Z"
    return f"M{x:.1f},{y - 4.5:.1f}l4.6,8h-9.2Z"


def _key(x: float, y: float) -> list[str]:
    body = []
    for kind in Kind:
        body.append(f"{_dot(kind, x + 5, y - 4)}</path>")
        body.append(f'<text x="{x + 16:.0f}" y="{y}">{kind.text}</text>')
        x += 40 + 6.6 * len(kind.text)
    return body


def _fitted(name: str) -> str:
    """Label cut to the width of its column; the whole is in the tooltip."""
    return name if len(name) <= 44 else name[:43].rstrip() + "…"


def _curve_panels(curve: NgCurve, seeds: int) -> list[str]:
    """AUROC above specificity, each over the number of NG, real data alone and with synthetic NG."""
    left = _RIGHT + 44
    lines: list[tuple[Kind, str, list[ArmSummary]]] = [
        (Kind.REAL, "real alone", [alone for alone, _ in curve.points]),
        (Kind.of(curve.source), f"+ {curve.source}", [added for _, added in curve.points if added is not None]),
    ]
    lines = [line for line in lines if line[2]]
    body, x = [], float(left)
    for kind, name, _ in lines:
        body.append(f'<path d="M{x:g},50h30" {_stroke(kind)}/>')
        body.append(f'<text x="{x + 38:g}" y="54">{escape(name)}</text>')
        x += 136
    reach = [float(found.n_ng) for _, _, arms in lines for found in arms]
    x_range = (min(reach), max(reach)) if min(reach) < max(reach) else None
    bottom = _TOP
    panels: tuple[tuple[Measure, float, str], ...] = (
        ("auroc", 1.0, "AUROC"),
        (AIM, 100.0, "Specificity at FNR 1 %, in %"),
    )
    for index, (measure, scale, title) in enumerate(panels):
        top = _TOP + index * (_CURVE + _GAP)
        bottom = top + _CURVE
        frame = Frame(left, top, WIDTH - left - 24, _CURVE)
        series = [_series(name, arms, measure, scale) for _, name, arms in lines]
        chart = line_chart(series, frame=frame, log_x=True, x_range=x_range, y_range=_y_range(series))
        if chart is not None:
            body += _panel(chart, [kind for kind, _, _ in lines], title)
    shade = f"Lines: means of {seeds} seeds. Shades: their range." if seeds > 1 else "One seed."
    body.append(f'<text x="{left}" y="{bottom + 54}">With all OK images of the train split.</text>')
    body.append(f'<text x="{left}" y="{bottom + 71}">{shade}</text>')
    return body


def _series(name: str, arms: Sequence[ArmSummary], measure: Measure, scale: float) -> Series:
    """Means over seeds, within their range."""
    values = [[scale * value for value in found.measures[measure].values] for found in arms]
    return Series(
        name,
        [float(found.n_ng) for found in arms],
        [sum(some) / len(some) for some in values],
        [min(some) for some in values],
        [max(some) for some in values],
    )


def _y_range(series: Sequence[Series]) -> tuple[float, float]:
    """Range of the curves with a margin; rates mostly crowd near their upper end, so zero is left out."""
    values = [value for one in series for row in (one.lower, one.upper) for value in row or ()]
    margin = 0.05 * (max(values) - min(values)) or 0.01 * max(values) or 0.01
    return min(values) - margin, max(values) + margin


def _panel(chart: LineChart, kinds: Sequence[Kind], title: str) -> list[str]:
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
    for kind, curve in zip(kinds, chart.curves, strict=True):
        body += _line(kind, curve)
    return body


def _line(kind: Kind, curve: Curve) -> list[str]:
    body = [f'<path d="{curve.band}" fill="{kind.colour}" fill-opacity=".15"/>'] if curve.band else []
    if curve.path:
        body.append(f'<path d="{curve.path}" {_stroke(kind)}/>')
    for dot in curve.dots:
        body.append(
            f'<circle cx="{dot.x:g}" cy="{dot.y:g}" r="3" fill="{kind.colour}"><title>{escape(dot.title)} NG</title>'
            "</circle>"
        )
    return body


def _stroke(kind: Kind) -> str:
    dashes = ' stroke-dasharray="6 4"' if kind is Kind.REAL else ""
    return f'fill="none" stroke="{kind.colour}" stroke-width="2.2" stroke-linejoin="round"{dashes}'
