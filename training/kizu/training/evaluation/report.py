"""`report.html`: one file, no script, no request to anywhere, that tells a quality engineer what the model can do.

Notable here:
- A Content-Security-Policy in the page itself forbids every external request; charts are inline SVG, images data URIs.
- Autoescaping is on: file names and defect names come from outside.
- What the data cannot show is said in a sentence in its place, never left as a blank or drawn as a zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import jinja2

from kizu.models.bundle import BundleManifest
from kizu.models.operating_point import OperatingPoint
from kizu.models.rates import GroupedRate, Rate
from kizu.training.evaluation import charts
from kizu.training.evaluation.detection import DetectionMetrics
from kizu.training.evaluation.gallery import EMPTY_GALLERY, Gallery
from kizu.training.evaluation.scoring import Scored

OPTIMISTIC = "OPTIMISTIC:"
"""How a note begins that must not be overlooked."""


def render_report(
    manifest: BundleManifest,
    scored: Scored,
    metrics: DetectionMetrics,
    gallery: Gallery = EMPTY_GALLERY,
    *,
    evaluated: str = "test split",
    notes: Sequence[str] = (),
) -> str:
    """The report as HTML.

    Args:
        manifest: of the bundle that was evaluated: its certificate, data set, parity and provenance.
        evaluated: which images the figures are from, to follow "on the".
        notes: sentences shown at the top, such as the caveat that figures are optimistic.
    """
    status, verdict = headline(manifest.operating_point)
    return (
        page_environment()
        .get_template("report.html.j2")
        .render(
            m=manifest,
            op=manifest.operating_point,
            metrics=metrics,
            gallery=gallery,
            status=status,
            verdict=verdict,
            evaluated=evaluated,
            notes=[note for note in notes if not note.startswith(OPTIMISTIC)],
            warnings=[
                *(note for note in notes if note.startswith(OPTIMISTIC)),
                *remarks(metrics, manifest.operating_point),
            ],
            missing=missing(metrics),
            roc=charts.roc_chart(scored, metrics.operating_point),
            histogram=charts.histogram(scored, manifest.operating_point),
            frame={"left": charts.LEFT, "top": charts.TOP, "width": charts.WIDTH, "height": charts.HEIGHT},
        )
    )


def headline(operating_point: OperatingPoint) -> tuple[str, str]:
    """(`good`, `warn` or `bad`, the certificate in a few words); `good` only where it holds for new parts."""
    target = f"{100 * operating_point.target_fnr:.6g} %"
    if operating_point.for_new_parts:
        return "good", f"FNR certified to be at most {target}"
    if operating_point.certified:
        return "warn", f"FNR certified to be at most {target} for parts of the groups that were seen, not for new ones"
    if operating_point.basis in ("above-target", "smallest-certifiable"):
        return "warn", f"The target FNR of {target} is not certified"
    return "bad", "The FNR is unknown"


def missing(metrics: DetectionMetrics) -> str | None:
    """Why some figures are unknown, in a sentence; None where both labels are there."""
    if not metrics.n_ng and not metrics.n_ok:
        return "There are no labelled images in this set, so it says nothing about the detector."
    if not metrics.n_ng:
        return "There are no NG images in this set: FNR and AUROC are unknown."
    if not metrics.n_ok:
        return "There are no OK images in this set: specificity and AUROC are unknown."
    return None


def remarks(metrics: DetectionMetrics, operating_point: OperatingPoint) -> list[str]:
    """Return warnings that these figures call for."""
    found = _contradiction(metrics, operating_point.certified_fnr)
    if 0 < metrics.n_ng < 30:
        images = "NG image was" if metrics.n_ng == 1 else "NG images were"
        found.append(f"Only {metrics.n_ng} {images} scored: read the bounds, not the figures between them.")
    found += _for_new_groups(metrics)
    if metrics.auroc is not None and metrics.auroc.upper < 0.5:
        found.append(
            "OK parts score higher than NG parts: the detector ranks the wrong way round. Check the labels first."
        )
    return found


def _contradiction(metrics: DetectionMetrics, certified: float | None) -> list[str]:
    """Return that the NG miss the certificate, where they do; parts of few groups do not speak for new ones."""
    fnr, by_groups = metrics.operating_point.fnr_at_threshold, metrics.new_groups.fnr_at_threshold
    if certified is None or not fnr.total or fnr.lower <= certified:
        return []
    allowed = f"{100 * certified:.3g} %"
    if by_groups is not None and by_groups.lower <= certified:
        return [
            f"NG of these groups pass more often than the {allowed} that the certificate allows for new parts: {fnr}. "
            f"So few groups do not contradict it; for new groups they say {by_groups}."
        ]
    return [
        f"These images contradict the certificate: it allows an FNR of {allowed}, and here it is {by_groups or fnr}. "
        "The NG here are not like the NG of calibration: look at their classes before relying on it."
    ]


def _for_new_groups(metrics: DetectionMetrics) -> list[str]:
    """Return what the rates are for parts of new groups, where parts came in groups."""
    new = metrics.new_groups
    rates = (("FNR", new.fnr), ("specificity", new.specificity))
    said = [f"{name} {rate}" for name, rate in rates if rate is not None]
    if not said:
        return []
    return [
        f"For parts of new groups: {', '.join(said)}. All other intervals here count every image as independent: they "
        "speak for parts of these groups only."
    ]


def page_environment() -> jinja2.Environment:
    """Templates of the pages that ship with a bundle, with filters for rates."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kizu.training.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = _percent
    environment.filters["bounds"] = _bounds
    return environment


def _percent(rate: Rate) -> str:
    """The observed share alone, as `str(rate)` writes it."""
    return "–" if rate.value is None else str(rate).split(" [")[0]


def _bounds(rate: Rate | GroupedRate) -> str:
    """The interval alone, as `str(rate)` writes it."""
    return "" if rate.value is None else str(rate).split("[")[1].split("]")[0].replace(", ", " – ") + " %"
