"""Results of `benchmarks.limited` as a page and as a picture. Works on plain data, as the run writes it.

Notable here:
- The last measurement counts, never the best: among few images the best KID belongs to whoever copies them best.
- The sentences follow rules (`limited_gap`), so the page also says where augmentation did not help.
- The picture brings its own background and tells its lines by dashes too; it reads on white, on black and in grey.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.limited_gap import (
    PLAIN,
    ArmRecord,
    augmented,
    augments_of,
    by_images,
    by_seed,
    gaps_of,
    growth,
    last_line,
)
from kizu.training.evaluation.curves import Frame, Level, LineChart, Series, line_chart, turning_point
from kizu.training.evaluation.kid_fid import UNBIASED_FRECHET
from kizu.training.study.environment import environment_lines
from kizu.training.study.tables import markdown_table

_COLOURS = {"ada": "#1f6fb8", "diffaugment": "#c8501f", PLAIN: "#3d3d46"}
_DASHES = {"diffaugment": "7 3", PLAIN: "2 3"}
_PANEL, _TOP, _BOTTOM, _LEFT = 300, 66, 92, 58


def render_markdown(result: dict[str, Any], pictures: str = "limited-data") -> str:
    """Page of a result; contains no path and no host name, as long as `result` has none.

    Args:
        result: of the benchmark.
        pictures: folder of plot and grids, next to the page.
    """
    arms: list[ArmRecord] = result["arms"]
    lines = [
        "# Few NG images: StyleGAN2-ADA with and without augmentation",
        "",
        *(f"- {sentence}" for sentence in findings(arms)),
        "",
        f"![KID against images shown]({pictures}/curves.svg)",
        "",
        *_what_ran(result),
        *_final_kid(result),
        *_gaps(arms),
        *_ends(arms),
        *_curves(arms),
        *_samples(arms, pictures),
    ]
    return "\n".join(lines).rstrip() + "\n"


def picture_name(arm: ArmRecord) -> str:
    """File name of an arm's sample grid; of several seeds only the first is shown."""
    return f"{arm['augment']}-{arm['count'] or 'all'}.png"


def findings(arms: Sequence[ArmRecord]) -> list[str]:
    """Sentences on the gaps and on memorising, also where augmentation did not help."""
    found = []
    for augment in augmented(arms):
        gaps = gaps_of(arms, augment)
        parts = [f"{images} images {gap}" for images, gap in gaps]
        if parts:
            found.append(
                f"KID at the end, {PLAIN} − {augment} (above 0: {augment} is better): " + "; ".join(parts) + "."
            )
            found.append(growth(augment, gaps))
    copying = [_name(arm) for arm in arms if last_line(arm)["nearest"] and last_line(arm)["nearest"]["memorised"]]
    if len({arm["seed"] for arm in arms}) == 1:
        found.append(
            "One training per arm: intervals are over images, and another seed may change more than they span."
        )
    found.append("Memorised, by the share of near copies: " + (", ".join(copying) or "no arm") + ".")
    return found


def _what_ran(result: dict[str, Any]) -> list[str]:
    facts, settings, last = result["facts"], result["settings"], last_line(result["arms"][0])
    return [
        "## What ran",
        "",
        *environment_lines(result["environment"]),
        f"- Data: {facts['crops']} NG crops of the train split; split fingerprint {facts['split_fingerprint'][:16]}",
        f"- Measured by {last['extractor']} with {last['n_fake']} generated images against {last['n_real']} real ones, "
        "the same for every arm",
        "- Settings: " + ", ".join(f"{name} {_setting(value)}" for name, value in settings.items()),
        "- Command:",
        "",
        f"      {result['command']}",
        "",
    ]


def _final_kid(result: dict[str, Any]) -> list[str]:
    arms, floor = result["arms"], result["facts"]["floor"]
    augments = augments_of(arms)
    rows = [
        (str(images), *(_kid_cell(list(by_seed(group, augment).values())) for augment in augments))
        for images, group in by_images(arms)
    ]
    seeds = len({arm["seed"] for arm in arms})
    shown = "With 95 % intervals over images" if seeds == 1 else f"The mean of {seeds} seeds, with their range"
    each = [
        (_name(arm), *(_interval(line["kid"]) for line in (last_line(arm), _best(arm))), f"{_best(arm)['kimg']:.3g}")
        for arm in arms
    ]
    return [
        "## KID at the end",
        "",
        f"{shown}. Real against real: {_interval(floor)}; a KID inside does not differ significantly from none.",
        "",
        *markdown_table(("images", *augments), rows),
        "",
        "Each arm, with 95 % intervals over images; nothing was chosen by the smallest KID on the way.",
        "",
        *markdown_table(("arm", "at the end", "smallest on the way", "at kimg"), each),
        "",
    ]


def _gaps(arms: Sequence[ArmRecord]) -> list[str]:
    rows = [
        (str(images), f"{PLAIN} − {augment}", str(gap), ", ".join(f"{one:+.4f}" for one in gap.seeds))
        for augment in augmented(arms)
        for images, gap in gaps_of(arms, augment)
    ]
    if not rows:
        return ["## The gap", "", f"`{PLAIN}` or every augmentation is missing, so there is no gap to measure.", ""]
    return [
        "## The gap",
        "",
        *markdown_table(("images", "KID", "difference", "each seed"), rows),
        "",
        "The intervals are approximate: the root of the sum of squares of the half-widths of the two KIDs, as if these "
        "were independent, though they share the real images. They say nothing of what another training would give.",
        "",
    ]


def _ends(arms: Sequence[ArmRecord]) -> list[str]:
    first = last_line(arms[0])
    name, key = ("FID", "fid") if first["fid"] is not None else ("Fréchet distance", "frechet")
    rows = []
    for arm in arms:
        last, nearest = last_line(arm), last_line(arm)["nearest"]
        rows.append(
            (
                _name(arm),
                f"{last['precision']:.3f}",
                f"{last['recall']:.3f}",
                _rate(nearest["near_copies"]) if nearest else "–",
                f"{100 * nearest['fresh_share']:.1f} %" if nearest else "–",
                ("yes" if nearest["memorised"] else "no") if nearest else "–",
                f"{last['p']:.2f}",
                f"{last['r']:.2f}" if arm["augment"] == "ada" else "–",
                "–" if last[key] is None else f"{last[key]:.4g}",
                f"{arm['seconds']:.0f}",
            )
        )
    columns = ("arm", "precision", "recall", "near copies", "without copying", "memorised", "p", "r", name, "seconds")
    other = "" if key == "fid" else f" The Fréchet distance is that of {first['extractor']}'s features, not FID."
    biased = f" It is biased, too large for want of {UNBIASED_FRECHET} images." if first["frechet_biased"] else ""
    return [
        "## At the end of each training",
        "",
        *markdown_table(columns, rows),
        "",
        "Near copies are generated images as near to a training image of their own arm as only the closest of these "
        "are to each other. Precision and recall are against all real images, those included that an arm never saw."
        f"{other}{biased}",
        "",
    ]


def _curves(arms: Sequence[ArmRecord]) -> list[str]:
    lines = ["## KID on the way", ""]
    augments = augments_of(arms)
    for images, group in by_images(arms):
        found = {augment: _stations(group, augment) for augment in augments}
        stations = sorted({kimg for kids in found.values() for kimg in kids})
        rows = [(f"{kimg:.4g}", *(_range(found[augment].get(kimg, [])) for augment in augments)) for kimg in stations]
        lines += [f"### {images} images", "", *markdown_table(("kimg", *augments), rows), ""]
    return lines


def _stations(group: Iterable[ArmRecord], augment: str) -> dict[float, list[dict[str, Any]]]:
    """The KIDs of every seed, by thousand images shown."""
    found: dict[float, list[dict[str, Any]]] = {}
    for arm in group:
        for line in arm["curve"] if arm["augment"] == augment else ():
            found.setdefault(line["kimg"], []).append(line["kid"])
    return dict(sorted(found.items()))


def _samples(arms: Sequence[ArmRecord], pictures: str) -> list[str]:
    first = min(arm["seed"] for arm in arms)
    augments = augments_of(arms)
    rows = []
    for images, group in by_images(arms):
        shown = {arm["augment"]: f"[grid]({pictures}/{picture_name(arm)})" for arm in group if arm["seed"] == first}
        rows.append((str(images), *(shown.get(augment, "–") for augment in augments)))
    return [
        "## Samples",
        "",
        f"Not picked by hand, seed {first}; [real crops]({pictures}/real.png) for comparison.",
        "",
        *markdown_table(("images", *augments), rows),
        "",
    ]


def render_svg(result: dict[str, Any]) -> str:
    """KID against thousand images shown, a panel for each number of training images, all on one scale."""
    arms: list[ArmRecord] = result["arms"]
    floor = result["facts"]["floor"]
    kids = [line["kid"] for arm in arms for line in arm["curve"]]
    # Above ten times the floor or about zero, no one scale shows both: straight near zero, logarithmic above.
    turn = turning_point([kid["value"] for kid in kids], floor["upper"])
    bounds = [floor["lower"], floor["upper"], *(kid[key] for kid in kids for key in ("lower", "upper"))]
    margin = 0.04 * (max(bounds) - min(bounds))
    y_range = (1.2 * min(bounds), 1.3 * max(bounds)) if turn else (min(bounds) - margin, max(bounds) + margin)
    x_range = (0.0, max(line["kimg"] for arm in arms for line in arm["curve"]))
    groups = by_images(arms)
    width, height = _LEFT + _PANEL * len(groups) + 14, 420
    body = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, Segoe UI, Roboto, Noto Sans, sans-serif" font-size="12" fill="#4a5362">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff" stroke="#d5dae1"/>',
        f'<text x="{_LEFT}" y="26" font-size="15" font-weight="600" fill="#1b2230">KID against images shown, by '
        f"{escape(last_line(arms[0])['extractor'])}</text>",
    ]
    for index, (images, group) in enumerate(groups):
        frame = Frame(_LEFT + _PANEL * index, _TOP, _PANEL - 24, height - _TOP - _BOTTOM)
        level = Level("real against real", floor["value"], floor["lower"], floor["upper"])
        series = [_series(group, augment) for augment in augments_of(group)]
        chart = line_chart(series, frame=frame, levels=[level], x_range=x_range, y_range=y_range, linear_until=turn)
        if chart is not None:
            body += _panel(chart, f"{images} training images", first=index == 0)
    body += [*_legend(augments_of(arms), height - 38), *_below(len({arm["seed"] for arm in arms}), turn, height - 14)]
    return "\n".join([*body, "</svg>\n"])


def _series(group: Sequence[ArmRecord], augment: str) -> Series:
    """Over seeds the mean, within the lowest and the highest bound."""
    stations = _stations(group, augment)
    kids = list(stations.values())
    return Series(
        augment,
        list(stations),
        [sum(kid["value"] for kid in some) / len(some) for some in kids],
        [min(kid["lower"] for kid in some) for some in kids],
        [max(kid["upper"] for kid in some) for some in kids],
    )


def _panel(chart: LineChart, title: str, *, first: bool) -> list[str]:
    f = chart.frame
    body = [f'<text x="{f.left:g}" y="{f.top - 12:g}" font-size="13" fill="#1b2230">{escape(title)}</text>']
    for level in chart.levels:
        if level.band:
            y, height = level.band
            body.append(
                f'<rect x="{f.left:g}" y="{y:.1f}" width="{f.width:g}" height="{max(height, 1):.1f}" fill="#b9c1cc" '
                'fill-opacity=".55"/>'
            )
    for tick in chart.y_ticks:
        body.append(f'<path d="M{f.left:g},{tick.at:.1f}H{f.right:g}" stroke="#e3e7ec"/>')
        if first:
            body.append(f'<text x="{f.left - 7:g}" y="{tick.at + 4:.1f}" text-anchor="end">{tick.text}</text>')
    for tick in chart.x_ticks:
        body.append(f'<text x="{tick.at:.1f}" y="{f.bottom + 16:g}" text-anchor="middle">{tick.text}</text>')
    body.append(f'<path d="M{f.left:g},{f.bottom:g}H{f.right:g}" stroke="#8b95a3"/>')
    for curve in chart.curves:
        colour = _colour(curve.name)
        if curve.band:
            body.append(f'<path d="{curve.band}" fill="{colour}" fill-opacity=".16"/>')
        if curve.path:
            body.append(f'<path d="{curve.path}" {_stroke(curve.name)}/>')
        for dot in curve.dots:
            body.append(
                f'<circle cx="{dot.x:g}" cy="{dot.y:g}" r="2.6" fill="{colour}"><title>{escape(dot.title)}</title>'
                "</circle>"
            )
    return body


def _legend(augments: Sequence[str], y: float) -> list[str]:
    body, x = [], float(_LEFT)
    for augment in augments:
        body.append(f'<path d="M{x:g},{y - 4:g}h30" {_stroke(augment)}/>')
        body.append(f'<text x="{x + 37:g}" y="{y:g}" fill="#1b2230">{escape(augment)}</text>')
        x += 62 + 7.5 * len(augment)
    body.append(f'<rect x="{x:g}" y="{y - 10:g}" width="30" height="12" fill="#b9c1cc" fill-opacity=".55"/>')
    body.append(f'<text x="{x + 37:g}" y="{y:g}" fill="#1b2230">real against real</text>')
    return body


def _below(seeds: int, turn: float | None, y: float) -> list[str]:
    shade = "95 % intervals" if seeds == 1 else f"mean of {seeds} seeds, from the lowest to the highest bound"
    scale = "; linear near zero, logarithmic above" if turn else ""
    return [f'<text x="{_LEFT}" y="{y:g}">To the right: thousand images shown. Shades: {shade}{scale}.</text>']


def _colour(augment: str) -> str:
    return _COLOURS.get(augment, "#1c7c4d")


def _stroke(augment: str) -> str:
    dashes = f' stroke-dasharray="{_DASHES[augment]}"' if augment in _DASHES else ""
    return f'fill="none" stroke="{_colour(augment)}" stroke-width="2.2" stroke-linejoin="round"{dashes}'


def _name(arm: ArmRecord) -> str:
    return f"{arm['augment']}, {arm['images']} images, seed {arm['seed']}"


def _best(arm: ArmRecord) -> dict[str, Any]:
    line: dict[str, Any] = min(arm["curve"], key=lambda line: line["kid"]["value"])
    return line


def _kid_cell(arms: Sequence[ArmRecord]) -> str:
    return _range([last_line(arm)["kid"] for arm in arms])


def _range(kids: Sequence[dict[str, Any]]) -> str:
    """One KID with its interval; of several the mean and the range."""
    if len(kids) < 2:
        return _interval(kids[0]) if kids else "–"
    values = [kid["value"] for kid in kids]
    return f"{sum(values) / len(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def _interval(entry: dict[str, Any]) -> str:
    return f"{entry['value']:.4f} [{entry['lower']:.4f}, {entry['upper']:.4f}]"


def _rate(rate: dict[str, Any]) -> str:
    if rate["rate"] is None:
        return "–"
    bounds = f"{100 * rate['lower']:.1f}, {100 * rate['upper']:.1f}"
    return f"{100 * rate['rate']:.1f} % [{bounds}] ({rate['count']}/{rate['total']})"


def _setting(value: object) -> str:
    """A list with spaces; of a path, its last part."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else PurePath(str(value)).name


def write_report(result: dict[str, Any], arms: Path, page: Path) -> None:
    """Write the page, and a folder of its name with the plot and the sample grids that `arms` holds."""
    pictures = page.parent / (page.stem if page.suffix else f"{page.name}-pictures")
    pictures.mkdir(parents=True, exist_ok=True)
    page.write_text(render_markdown(result, pictures.name), encoding="utf-8")
    (pictures / "curves.svg").write_text(render_svg(result), encoding="utf-8")
    shutil.copyfile(arms / "real.png", pictures / "real.png")
    lowest = min(arm["seed"] for arm in result["arms"])
    for arm in result["arms"]:
        if arm["seed"] == lowest:
            folder = f"{arm['augment']}-{arm['count'] or 'all'}-seed{lowest}"
            shutil.copyfile(arms / folder / "samples.png", pictures / picture_name(arm))
