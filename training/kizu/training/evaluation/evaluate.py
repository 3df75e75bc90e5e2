"""`kizu evaluate`: run a bundle's ONNX file over a data set and say what it can do.

Notable here:
- torch is not imported: what is measured is the file that ships, run as the service runs it.
- On its own data set a bundle is judged by the test split alone, found again from the recipe's seed and proven by its
  fingerprint. Anything else is possible, but the report then says loudly what the figures are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.models.bundle import Bundle, BundleManifest, Device, InputGeometry, ScoreFunction
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.pool import Progress
from kizu.training.data.sizes import check_sizes
from kizu.training.data.splits import Splits, assign_splits
from kizu.training.evaluation.detection import DetectionMetrics, compute_metrics
from kizu.training.evaluation.gallery import pick_gallery
from kizu.training.evaluation.pixels import PixelAccumulator, PixelMetrics
from kizu.training.evaluation.report import OPTIMISTIC, remarks, render_report
from kizu.training.evaluation.scoring import Scored, score_rows

SplitChoice = Literal["auto", "test", "calibration", "train", "all"]


@dataclass(frozen=True)
class Evaluation:
    """Figures and report of one evaluation."""

    metrics: DetectionMetrics
    report_html: str
    scored: Scored
    evaluated: str
    """Which images were used, to follow "on the"."""
    notes: tuple[str, ...]
    """Sentences on what the figures are worth."""
    provider: str
    """The ONNX Runtime provider that scored."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, for `--json`."""
        return {
            "evaluated": self.evaluated,
            "notes": list(self.notes),
            "provider": self.provider,
            "metrics": self.metrics.as_dict(),
        }


@dataclass(frozen=True)
class Selection:
    """Labelled rows to score."""

    rows: list[Row]
    name: str
    """Which images these are, to follow "on the"."""
    notes: list[str]
    """Sentences on what figures from these images are worth."""


def evaluate_bundle(
    bundle: Bundle,
    manifest: Manifest,
    *,
    split: SplitChoice = "auto",
    device: Device = "auto",
    batch_size: int = 16,
) -> Evaluation:
    """Score a data set with a bundle and compute every figure of the report: `choose_rows`, then `evaluate_rows`."""
    chosen = choose_rows(bundle, manifest, split)
    return evaluate_rows(bundle, manifest, chosen, device=device, batch_size=batch_size)


def choose_rows(bundle: Bundle, manifest: Manifest, split: SplitChoice) -> Selection:
    """Choose the labelled rows to score.

    Args:
        split: `auto` takes the test split of the bundle's own data set, and every labelled image of another one. The
            name of a split is only possible on the bundle's own data set, or where the manifest gives the splits.

    Raises:
        UserError: no labelled image to score, or a split that cannot be found again.
    """
    own = manifest.fingerprint() == bundle.manifest.dataset.fingerprint
    if split == "auto":
        split = "test" if own else "all"
    if split == "all":
        rows, name = _all_but_reserved(bundle, manifest, own), "whole data set"
    else:
        rows = getattr(_splits(bundle, manifest) if own else _given_splits(manifest, split), split)
        name = f"{split} split"
    rows = [row for row in rows if row.label in ("OK", "NG") and not row.synthetic]
    if not rows:
        raise UserError(
            f"{manifest.root}: the {name} has no image labelled OK or NG.", "Evaluation needs labelled images."
        )
    return Selection(rows, name, _caveats(split, own))


def evaluate_rows(
    bundle: Bundle,
    manifest: Manifest,
    chosen: Selection,
    *,
    device: Device = "auto",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """Score chosen rows with a bundle and compute every figure of the report.

    Raises:
        UserError: images smaller than the bundle accepts, all listed, or a score that is not finite.
    """
    geometry = bundle.manifest.geometry
    enlarged = check_sizes(manifest, chosen.rows, geometry)
    session = bundle.open(device)
    scored, pixels = score_with_pixels(
        session.score, geometry, manifest, chosen.rows, batch_size=batch_size, progress=progress
    )
    point = bundle.manifest.operating_point
    metrics = compute_metrics(scored, point, pixels=pixels)
    of_data = [*chosen.notes, *([enlarged] if enlarged else [])]
    report = build_report(
        bundle.manifest, session.score, manifest, scored, metrics, evaluated=chosen.name, notes=of_data
    )
    notes = (*of_data, *remarks(scored, metrics, point))
    return Evaluation(metrics, report, scored, chosen.name, notes, session.provider)


def score_with_pixels(
    score: ScoreFunction,
    geometry: InputGeometry,
    manifest: Manifest,
    rows: Sequence[Row],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> tuple[Scored, PixelMetrics | None]:
    """`score_rows`, and the pixel metrics over rows with a mask and OK rows; None where no row has a mask."""
    if not any(row.mask for row in rows):
        return score_rows(score, geometry, manifest, rows, batch_size=batch_size, progress=progress), None
    pixels = PixelAccumulator()

    def on_heatmap(index: int, image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> None:
        row = rows[index]
        if row.label == "OK":
            pixels.add(heatmap, np.zeros(image.shape[:2], dtype=bool))
        elif (mask := manifest.mask(row)) is not None:
            pixels.add(heatmap, mask)

    scored = score_rows(
        score, geometry, manifest, rows, batch_size=batch_size, progress=progress, on_heatmap=on_heatmap
    )
    return scored, pixels.result()


def build_report(
    bundle_manifest: BundleManifest,
    score: ScoreFunction,
    manifest: Manifest,
    scored: Scored,
    metrics: DetectionMetrics,
    *,
    evaluated: str,
    notes: Sequence[str] = (),
) -> str:
    """The report as HTML, with the worst images scored once more for their heatmaps; arguments as `render_report`."""
    gallery = pick_gallery(score, bundle_manifest.geometry, manifest, scored, bundle_manifest.operating_point)
    return render_report(bundle_manifest, scored, metrics, gallery, evaluated=evaluated, notes=notes)


def _all_but_reserved(bundle: Bundle, manifest: Manifest, own: bool) -> list[Row]:
    """Every row but those of the bundle's certification split, which no figure but the certificate may come from."""
    if not own or bundle.manifest.operating_point.certified_on != "certification":
        return list(manifest.rows)
    reserved = {row.path for row in _splits(bundle, manifest).certification}
    return [row for row in manifest.rows if row.path not in reserved]


def _splits(bundle: Bundle, manifest: Manifest) -> Splits:
    recipe = bundle.manifest.recipe
    try:
        seed = int(recipe.get("seed", 0))
        shares = recipe.get("splits")
        fractions = [float(shares[name]) for name in ("train", "calibration", "test")] if shares else None
        certification = float(shares.get("certification", 0)) if shares else 0.0
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{bundle.path}: the recipe's seed or splits cannot be read: {error!r}.") from error
    splits = (
        assign_splits(manifest, seed)
        if fractions is None
        else assign_splits(manifest, seed, (fractions[0], fractions[1], fractions[2]), certification)
    )
    if splits.fingerprint != bundle.manifest.dataset.split_fingerprint:
        raise UserError(
            f"{manifest.root} is the data set that {bundle.path} was trained on, but its splits cannot be found again: "
            f"they come out different from those of the training (Kizu {bundle.manifest.code_version}).",
            "Evaluate with the Kizu version that trained the bundle, or give --split all and mind that most of the "
            "images were trained on.",
        )
    return splits


def _given_splits(manifest: Manifest, split: str) -> Splits:
    rows = {name: [row for row in manifest.rows if row.split == name] for name in ("train", "calibration", "test")}
    if not rows[split]:
        raise UserError(
            f"{manifest.root} is not the data set that the bundle was trained on, and its manifest puts no image in "
            f"the {split} split.",
            "Leave --split out to evaluate all labelled images, or fill the manifest's split column.",
        )
    return Splits(rows["train"], rows["calibration"], rows["test"])


def _caveats(split: str, own: bool) -> list[str]:
    if not own:
        return [
            "This is not the data set that the model was trained on: whether its images overlap with the training's "
            "cannot be checked, and figures on images seen in training are too good."
        ]
    if split == "train":
        return [f"{OPTIMISTIC} the model was trained on these very images. They say nothing about new parts."]
    if split == "all":
        return [
            f"{OPTIMISTIC} most of these images were used to train the model or to choose its threshold. Only the test "
            "split (--split test) says how it does on new parts."
        ]
    if split == "calibration":
        return [
            f"{OPTIMISTIC} the threshold was chosen on these very images, so FNR and specificity at the operating "
            "point are not those of new parts."
        ]
    return ["This is the test split of the model's own data set: neither training nor the threshold has seen it."]
