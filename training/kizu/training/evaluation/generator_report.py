"""`generator.html`: what a generator draws and how far that is from real images, for a quality engineer's eyes.

Notable here:
- Like `report.html`: one file, no script, no request to anywhere, charts as inline SVG, names from outside escaped.
- Small images are PNG, pixel for pixel, enlarged without smoothing: nothing looks better than it is.
- A low KID alone never earns praise: an image that is a copy has the lowest KID of all, so copies are judged first.
- The Fréchet distance is called FID only where the measurement itself does.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kizu.training.evaluation.curves import Level, LineChart, Series, line_chart, turning_point
from kizu.training.evaluation.kid_fid import UNBIASED_FRECHET, NearestTraining

Line = dict[str, Any]
"""A line of `metrics.jsonl`."""

COLUMNS, ROWS = 8, 6
"""Images of each kind shown, at most; of each class one row."""
TILE = 128
"""Pixels of an image's longer side in the page, at most."""
STATION = 80
"""Likewise of an image of the walk."""
TABLE_ROWS = 24


@dataclass(frozen=True)
class Picture:
    """Several images as one."""

    uri: str
    width: int
    """How wide it is shown at most, in CSS pixels."""
    pixelated: bool
    count: int


@dataclass(frozen=True)
class Pair:
    """Real images beside generated ones; `name` is empty where classes are not told apart."""

    name: str
    trained_on: int | None
    real: Picture | None
    fake: Picture | None


@dataclass(frozen=True)
class Plot:
    """A chart with what the template writes around it; None for a chart that has nothing to show."""

    title: str
    chart: LineChart | None
    caption: str


@dataclass(frozen=True)
class Verdict:
    """The last measurement in words; `status` is good, warn or bad."""

    status: str
    headline: str
    sentences: tuple[str, ...]


def render_generator_report(
    *,
    title: str,
    facts: Mapping[str, str],
    metrics: Sequence[Line],
    real: Tensor,
    fake: Tensor,
    strip: Tensor,
    classes: Sequence[tuple[str, int]],
    nearest: Tensor | None = None,
    real_classes: Sequence[str] | None = None,
    fake_classes: Sequence[str] | None = None,
    between: int = 8,
    heuristic: str = "r_t",
    target: float = 0.6,
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML.

    Args:
        facts: of the run, shown as name and value.
        metrics: the lines of `metrics.jsonl`, in order; none where nothing was measured.
        real: uint8 [R, C, H, W], of which as many are shown as there is room for.
        fake: likewise [F, C, H, W].
        strip: uint8 [S, C, H, W], a walk through w as `synthesis.interpolation` makes it.
        classes: each defect class with the number of its training images.
        nearest: uint8 [K, 2, C, H, W], generated images each followed by the training image nearest to it.
        real_classes: the class of each real image; with `fake_classes` every class gets a row of its own.
        fake_classes: the class of each generated image.
        between: images of `strip` from one station to the next; one row.
        heuristic: what p follows: `r_t` or `r_v`.
        target: of the heuristic.
        notes: sentences shown at the top.
    """
    measured = [line for line in metrics if line["extractor"] == metrics[-1]["extractor"]]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kizu.training.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["figure"] = figure
    environment.filters["percent"] = percent
    return environment.get_template("generator.html.j2").render(
        title=title,
        facts=facts,
        classes=classes,
        notes=notes,
        verdict=judge(measured),
        last=measured[-1] if measured else None,
        lines=_table(measured),
        measurements=len(measured),
        left_out=len(metrics) - len(measured),
        pairs=_pairs(real, fake, classes, real_classes, fake_classes),
        by_class=real_classes is not None and fake_classes is not None,
        strip=mosaic(strip, between, STATION) if len(strip) else None,
        nearest=[mosaic(pair, 2) for pair in nearest] if nearest is not None else [],
        plots=plots(measured, heuristic, target),
        unbiased=UNBIASED_FRECHET,
    )


def nearest_pairs(fake: Tensor, train: Tensor, found: NearestTraining, count: int = 12) -> Tensor:
    """The fakes that lie nearest to a training image, nearest first, each with that image: uint8 [K, 2, C, H, W].

    Args:
        fake: the images that `found` was measured on, [N, C, H, W].
        train: the training images likewise, [L, C, H, W].
    """
    chosen = np.argsort(found.distances, kind="stable")[:count]
    return torch.stack([fake[torch.from_numpy(chosen)], train[torch.from_numpy(found.indices[chosen])]], dim=1)


def judge(lines: Sequence[Line]) -> Verdict:
    """Assess the last measurement, and state what it cannot show."""
    if not lines:
        return Verdict(
            "warn",
            "Nothing was measured",
            ("How far these images are from real ones is unknown. Look at them, and let no rate rest on them.",),
        )
    last = lines[-1]
    status, headline, sentence = _distance(last)
    if last["nearest"] and last["nearest"]["memorised"]:
        status, headline = "bad", "The generator repeats its training images"
    elif not last["nearest"] and status == "good":
        status, headline = "warn", f"{headline}, but nothing is known of copies"
    found = [sentence, _copies(last), _variety(last), _frechet(last), _course(lines)]
    return Verdict(status, headline, tuple(text for text in found if text))


def _distance(last: Line) -> tuple[str, str, str]:
    """Status, headline and sentence on KID and its floor."""
    kid, floor = last["kid"], last["floor"]
    count = f"{last['n_fake']} generated against {last['n_real']} real images, seen by {last['extractor']}"
    begin = f"KID is {interval(kid)} after {last['kimg']:.3g} thousand images shown ({count})."
    if floor is None:
        more = "There are too few real images to tell how small a KID could be."
        return "warn", "Whether KID is small cannot be told", f"{begin} {more}"
    reach = f"halves of the real images reach {figure(floor['lower'])} to {figure(floor['upper'])} against each other"
    if kid["value"] <= floor["upper"]:
        more = f"That is within the floor: {reach}. By KID the two cannot be told apart."
        return "good", "By KID, not to be told from real images", f"{begin} {more}"
    if kid["lower"] <= floor["upper"]:
        more = f"That is above the floor ({reach}), but the interval reaches into it: more images would tell."
        return "warn", "Near to real images, perhaps not quite there", f"{begin} {more}"
    more = f"That is above the floor: {reach}. The images differ from real ones in ways that features can see."
    return "warn", "The images can be told from real ones", f"{begin} {more}"


def _copies(last: Line) -> str:
    nearest = last["nearest"]
    if not nearest:
        return "Whether images were memorised was not measured."
    rate = nearest["near_copies"]
    share = (
        f"{rate['count']} of {rate['total']} generated images ({percent(rate['rate'])}, interval "
        f"{percent(rate['lower'])} to {percent(rate['upper'])}) lie as near to a training image as only the closest "
        f"training images lie to each other; among images that are no copies about {percent(nearest['fresh_share'])} "
        "do."
    )
    if nearest["memorised"]:
        return f"Memorised: {share} A low KID means nothing here. More real images are needed, or a shorter training."
    return f"No sign of memorising: {share}"


def _variety(last: Line) -> str:
    return (
        f"{percent(last['precision'])} of the generated images fall among the real ones (precision), and "
        f"{percent(last['recall'])} of the real ones fall among the generated (recall): what is missing from recall "
        "are defects, or variants of them, that are not drawn."
    )


def _frechet(last: Line) -> str:
    value = last["frechet"] if last["fid"] is None else last["fid"]
    if value is None:
        return ""
    biased = f", too large for want of {UNBIASED_FRECHET} images of each kind" if last["frechet_biased"] else ""
    if last["fid"] is None:
        return (
            f"The Fréchet distance under these features is {value:.4g}{biased}; it is not FID and not comparable to it."
        )
    return f"FID is {value:.4g}{biased}."


def _course(lines: Sequence[Line]) -> str:
    """A warning where KID was clearly smaller before."""
    best, last = min(lines, key=lambda line: line["kid"]["value"]), lines[-1]
    if last["kid"]["lower"] <= best["kid"]["upper"]:
        return ""
    return (
        f"KID was smaller on the way: {interval(best['kid'])} at {best['kimg']:.3g} thousand images. The last weights "
        "are kept all the same; a rise like this often means that the training images were learned by heart."
    )


def plots(lines: Sequence[Line], heuristic: str = "r_t", target: float = 0.6) -> list[Plot]:
    """The curves of a training; empty where nothing was measured."""
    if not lines:
        return []
    return [
        _kid_plot(lines),
        _frechet_plot(lines),
        _share_plot(lines),
        _copies_plot(lines),
        *_ada_plot(lines, heuristic, target),
    ]


def _kid_plot(lines: Sequence[Line]) -> Plot:
    floor = lines[-1]["floor"]
    kids = [line["kid"] for line in lines]
    levels = [Level("real against real", floor["value"], floor["lower"], floor["upper"])] if floor else []
    turn = turning_point([kid["value"] for kid in kids], floor["upper"] if floor else None)
    bounds = ([kid["lower"] for kid in kids], [kid["upper"] for kid in kids])
    series = Series("KID", _kimg(lines), [kid["value"] for kid in kids], *bounds)
    caption = f"The shade is the {100 * kids[-1]['confidence']:g} % interval."
    if floor:
        caption += " The grey band is the floor: KID of real images against real ones."
    if turn:
        caption += " The axis is linear near zero and logarithmic above."
    return Plot(f"KID, by {lines[-1]['extractor']}", line_chart([series], levels=levels, linear_until=turn), caption)


def _frechet_plot(lines: Sequence[Line]) -> Plot:
    last = lines[-1]
    key = "frechet" if last["fid"] is None else "fid"
    name = f"Fréchet distance, by {last['extractor']}" if key == "frechet" else f"FID, by {last['extractor']}"
    taken = [line for line in lines if line[key] is not None]
    values = [line[key] for line in taken]
    series = Series("Fréchet distance" if key == "frechet" else "FID", _kimg(taken), values)
    about = "Not FID: the features are others. " if key == "frechet" else ""
    if last["frechet_biased"]:
        about += (
            f"Biased: too large with fewer than {UNBIASED_FRECHET} images of each kind; compare at equal numbers only."
        )
    return Plot(name, line_chart([series], y_range=(0.0, 1.05 * max([*values, 1e-6]))), about)


def _share_plot(lines: Sequence[Line]) -> Plot:
    series = [Series(key, _kimg(lines), [line[key] for line in lines]) for key in ("precision", "recall")]
    caption = "Precision: generated images among the real ones. Recall: real images among the generated ones."
    return Plot("Precision and recall", line_chart(series, y_range=(0.0, 1.0)), caption)


def _copies_plot(lines: Sequence[Line]) -> Plot:
    taken = [line for line in lines if line["nearest"] and line["nearest"]["near_copies"]["rate"] is not None]
    if not taken:
        return Plot("Near copies of training images", None, "Not measured.")
    rates = [line["nearest"]["near_copies"] for line in taken]
    rows = ([100 * rate[key] for rate in rates] for key in ("rate", "lower", "upper"))
    fresh = 100 * taken[-1]["nearest"]["fresh_share"]
    series = Series("near copies, %", _kimg(taken), *rows)
    caption = (
        f"Share of the generated images, in %. The grey line is what images that are no copies show: {fresh:.3g} %."
    )
    chart = line_chart([series], levels=[Level("no copies", fresh)])
    return Plot("Near copies of training images", chart, caption)


def _ada_plot(lines: Sequence[Line], heuristic: str, target: float) -> list[Plot]:
    """None where nothing was adapted."""
    if not any(line["p"] or line["r"] for line in lines):
        return []
    series = [Series(name, _kimg(lines), [line[key] for line in lines]) for name, key in (("p", "p"), (heuristic, "r"))]
    low = min(0.0, *(line["r"] for line in lines))
    caption = (
        f"p, the probability of each augmentation, rises while {heuristic} is above its target {target:g} (grey line): "
        "the sign that the discriminator overfits."
    )
    chart = line_chart(series, levels=[Level("target", target)], y_range=(1.1 * low, 1.0))
    return [Plot(f"Augmentation: p and {heuristic}", chart, caption)]


def _kimg(lines: Sequence[Line]) -> list[float]:
    return [line["kimg"] for line in lines]


def _table(lines: Sequence[Line]) -> list[Line]:
    """At most `TABLE_ROWS` lines, evenly spread, the last among them."""
    if len(lines) <= TABLE_ROWS:
        return list(lines)
    indices = np.linspace(0, len(lines) - 1, TABLE_ROWS).round().astype(int)
    return [lines[index] for index in indices]


def _pairs(
    real: Tensor,
    fake: Tensor,
    classes: Sequence[tuple[str, int]],
    real_classes: Sequence[str] | None,
    fake_classes: Sequence[str] | None,
) -> list[Pair]:
    if real_classes is None or fake_classes is None:
        room = COLUMNS * ROWS
        return [Pair("", None, _mosaic_or_none(real[:room]), _mosaic_or_none(fake[:room]))]
    if len(real_classes) != len(real) or len(fake_classes) != len(fake):
        raise ValueError(f"{len(real_classes)} and {len(fake_classes)} classes for {len(real)} and {len(fake)} images")
    return [
        Pair(
            name, count, _mosaic_or_none(_of(real, real_classes, name)), _mosaic_or_none(_of(fake, fake_classes, name))
        )
        for name, count in classes
    ]


def _of(images: Tensor, classes: Sequence[str], name: str) -> Tensor:
    """The first images of a class, one row of them."""
    return images[[i for i, found in enumerate(classes) if found == name][:COLUMNS]]


def _mosaic_or_none(images: Tensor) -> Picture | None:
    return mosaic(images, COLUMNS) if len(images) else None


def mosaic(images: Tensor, columns: int, shown: int = TILE) -> Picture:
    """uint8 [N, C, H, W], C 1 or 3, N ≥ 1 → rows of `columns`, transparent between them; tiles `shown` wide at most."""
    tiles = [_tile(image) for image in images.permute(0, 2, 3, 1).cpu().numpy()]
    height, width, channels = tiles[0].shape
    gap = max(1, width // 24)
    rows = -(-len(tiles) // columns)
    sheet = np.zeros((rows * (height + gap) - gap, columns * (width + gap) - gap, channels + 1), np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width, :channels] = tile
        sheet[y : y + height, x : x + width, channels] = 255
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    enlarged = shown / max(height, width)
    return Picture(uri, round(sheet.shape[1] * enlarged), enlarged > 1.5, len(tiles))


def _tile(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W, C], made smaller where it is larger than TILE."""
    if max(image.shape[:2]) <= TILE:
        return image
    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    picture.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return np.asarray(picture).reshape(picture.height, picture.width, image.shape[2])


def figure(value: float) -> str:
    """Four decimals, with a true minus."""
    return f"{value:.4f}".replace("-", "−")


def percent(share: float) -> str:
    """A share in per cent, to a tenth."""
    return f"{100 * share:.1f}\u00a0%"


def interval(estimate: Mapping[str, float]) -> str:
    """A figure with its bounds."""
    return f"{figure(estimate['value'])} [{figure(estimate['lower'])}, {figure(estimate['upper'])}]"
