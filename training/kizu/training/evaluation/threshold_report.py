"""`report.html` of a bundle whose threshold was chosen after training: certificate, curve, and the former threshold.

Notable here:
- The test figures of the former bundle belong to the former threshold, and stand under it. A bundle holds no test
  scores, so that nobody chooses a threshold by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kizu.models.bundle import BundleManifest
from kizu.models.curve import CurvePoint, ThresholdCurve
from kizu.models.operating_point import at_most
from kizu.models.rates import Rate
from kizu.training.evaluation.report import headline, page_environment

_TEST_RATES = (("fnr", "FNR"), ("specificity", "specificity"))


def render_threshold_report(former: BundleManifest, manifest: BundleManifest, curve: ThresholdCurve) -> str:
    """The report as HTML.

    Args:
        former: manifest of the bundle that the threshold was chosen for.
        manifest: the same with the new operating point.
        curve: of the bundle's calibration scores.
    """
    status, verdict = headline(manifest.operating_point)
    environment = page_environment()
    environment.filters["at_most"] = at_most
    return environment.get_template("threshold.html.j2").render(
        m=manifest,
        op=manifest.operating_point,
        former=former,
        status=status,
        verdict=verdict,
        rows=marked_points(curve, chosen=manifest.operating_point.threshold, former=former.operating_point.threshold),
        test=_test_figures(former.metrics),
    )


def marked_points(curve: ThresholdCurve, **marked: float) -> list[tuple[CurvePoint, str]]:
    """Return the curve's points and those of thresholds that have a name, ascending, with the names.

    A point that differs from a named one in no count is left out.
    """
    named = {name: curve.at(threshold) for name, threshold in marked.items()}
    counts = {_counts(point) for point in named.values()}
    points = {point.threshold: point for point in curve.steps() if _counts(point) not in counts}
    points |= {point.threshold: point for point in named.values()}
    return [
        (points[threshold], ", ".join(name for name, point in named.items() if point.threshold == threshold))
        for threshold in sorted(points)
    ]


def _counts(point: CurvePoint) -> tuple[int, int]:
    return point.fnr.count, point.specificity.count


def _test_figures(metrics: dict[str, Any]) -> Sequence[str]:
    at = metrics.get("operating_point")
    if not isinstance(at, dict):
        return []
    rates = [(name, at[key]) for key, name in _TEST_RATES if key in at]
    return [f"{name} {Rate(rate['count'], rate['total'], rate['confidence'])}" for name, rate in rates]
