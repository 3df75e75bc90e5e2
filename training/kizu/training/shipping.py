"""The graph that ships: exported, held against torch, quantised where the recipe asks for it, and scored.

Notable here:
- Threshold, certificate and heatmap range come from the scores of the very graph that ships.
- An int8 graph ships only if it ranks the calibration split as the float32 graph does. Rows that are reserved for the
  certificate take no part in that choice.
- What differs from torch by rounding to 8 bits cannot be held against it: the float32 graph is, and the int8 graph
  against itself, image by image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.models.bundle import Parity, ScoreFunction, Session
from kizu.models.inspector import Inspector
from kizu.models.operating_point import VERDICT_MARGIN, OperatingPoint, choose_operating_point
from kizu.models.quantisation import Quantisation
from kizu.training.data.manifest import NG, OK, Row
from kizu.training.evaluation.ranking import auroc
from kizu.training.evaluation.scoring import Scored, score_rows
from kizu.training.export import (
    RELATIVE_TOLERANCE,
    ParityCheck,
    export_onnx,
    largest_difference,
    one_by_one,
    torch_scorer,
)
from kizu.training.progress import RunLog
from kizu.training.quantisation import Quantised, backbone_names, plain_scorer, quantise
from kizu.training.run import Run

LARGEST_FALL = 0.002
"""AUROC on the calibration split that an int8 graph may lose."""
RANGE_IMAGES = 64
"""OK images of the train split that ranges of activations come from, at most."""
PLAIN_IMAGES = 64
"""Calibration images that an int8 graph scores without optimisations, at most."""


@dataclass(frozen=True)
class Graph:
    """An exported graph that is checked, calibrated and certified."""

    model: bytes
    session: Session
    """Scores on the CPU, whatever trained it: the reference that every other runtime is held against."""
    calibration: Scored
    certification: Scored | None
    heatmap_range: tuple[float, float]
    """Heatmap values that pictures show as cold and hot."""
    operating_point: OperatingPoint
    parity: Parity
    """Of the float32 graph with torch."""
    quantisation: Quantisation | None = None
    """None: the recipe asks for none."""


@dataclass(frozen=True)
class _Candidate:
    """A graph that may ship, with its scores of the calibration split."""

    model: bytes
    session: Session
    check: ParityCheck
    """With torch, or of an int8 graph with itself, image by image."""
    calibration: Scored
    heatmap_range: tuple[float, float]


def graph_to_ship(run: Run, inspector: Inspector, rows: Sequence[Row], log: RunLog) -> Graph:
    """Export, check, calibrate and certify.

    Args:
        rows: labelled rows that fix the threshold, or that only show the model where rows are reserved for it.

    Raises:
        ParityError: the exported graph differs from torch.
        UserError: no rows, or a score that is not finite.
    """
    log.say("exporting to ONNX")
    model = export_onnx(inspector)
    candidate = _calibrated(run, model, torch_scorer(inspector), rows, log)
    if run.recipe.export.quantise is None:
        return _certified(run, candidate, log)
    log.say("quantising to int8")
    quantised = quantise(model, backbone_names(inspector), _range_images(run))
    small = _calibrated(run, quantised.model, None, rows, log)
    found = _compared(run, small, candidate, quantised)
    log.say(found.statement())
    if not found.applied:
        return replace(_certified(run, candidate, log), quantisation=found)
    parity = candidate.check.result(_operating_point(run, candidate.calibration, None))
    return replace(_certified(run, small, log, parity), quantisation=found)


def _calibrated(
    run: Run, model: bytes, reference: ScoreFunction | None, rows: Sequence[Row], log: RunLog
) -> _Candidate:
    """Score the calibration split, and compare with the reference; None: with the graph itself, image by image."""
    if not rows:
        raise UserError(
            f"{run.manifest.root} leaves no labelled image for calibration.",
            "Add images, raise splits.calibration in the recipe, or fill the manifest's split column.",
        )
    session = Session(model, "cpu")
    check = ParityCheck(session.score, reference or one_by_one(session.score))
    extremes: list[tuple[float, float]] = []

    def note(index: int, image: NDArray[np.uint8], heatmap: NDArray[np.float32]) -> None:
        del index, image
        extremes.append((float(np.median(heatmap)), float(heatmap.max())))

    with log.bar("calibrating", len(rows)) as advance:
        scored = score_rows(
            check.score, run.recipe.image.geometry, run.manifest, rows, progress=advance, on_heatmap=note
        )
    cold, hot = np.median([low for low, _ in extremes]), np.quantile([high for _, high in extremes], 0.95)
    return _Candidate(model, session, check, scored, (float(cold), float(hot)))


def _certified(run: Run, candidate: _Candidate, log: RunLog, parity: Parity | None = None) -> Graph:
    """Score the reserved rows, where there are any, and choose the threshold.

    Args:
        parity: of the graph before it was quantised; None: of this one.
    """
    reserved, certification = run.certification, None
    if reserved:
        score = candidate.check.score if parity is None else candidate.session.score
        with log.bar("certifying", len(reserved)) as advance:
            certification = score_rows(score, run.recipe.image.geometry, run.manifest, reserved, progress=advance)
    point = _operating_point(run, candidate.calibration, certification)
    return Graph(
        candidate.model,
        candidate.session,
        candidate.calibration,
        certification,
        candidate.heatmap_range,
        point,
        parity or candidate.check.result(point),
    )


def _compared(run: Run, small: _Candidate, floats: _Candidate, quantised: Quantised) -> Quantisation:
    """Compare an int8 graph with the float32 graph on the calibration split, each with the threshold of its own."""
    own, expected = small.calibration.scores, floats.calibration.scores
    point, float_point = (_operating_point(run, candidate.calibration, None) for candidate in (small, floats))
    alone = small.check.measured(point)
    few = slice(None, None, -(-len(own) // PLAIN_IMAGES))
    plain = score_rows(plain_scorer(small.model), run.recipe.image.geometry, run.manifest, small.calibration.rows[few])
    ranks, float_ranks = _auroc(small.calibration), _auroc(floats.calibration)
    return Quantisation(
        refused=_refusal(ranks, float_ranks, alone),
        convolutions=quantised.convolutions,
        backbone_convolutions=quantised.of,
        images=len(own),
        auroc=ranks,
        float_auroc=float_ranks,
        difference=largest_difference(own, expected),
        verdicts_differing=sum(
            point.verdict(a) != float_point.verdict(b) for a, b in zip(own.tolist(), expected.tolist(), strict=True)
        ),
        batch_difference=alone.score,
        plain_difference=largest_difference(own[few], plain.scores),
        plain_images=len(plain.scores),
    )


def _refusal(ranks: float | None, float_ranks: float | None, alone: Parity) -> str | None:
    """Return why an int8 graph must not ship, to follow a comma; None where it may."""
    if ranks is None or float_ranks is None:
        return "since without OK and NG in the calibration split nothing shows that it keeps them apart"
    if float_ranks - ranks > LARGEST_FALL:
        return f"since its AUROC falls by {float_ranks - ranks:.4f}, more than {LARGEST_FALL}"
    if not alone.within(RELATIVE_TOLERANCE):
        return "since its scores depend on what else is in the batch"
    return None


def _auroc(scored: Scored) -> float | None:
    found = auroc(scored.ng, scored.ok)
    return None if found is None else found.value


def _range_images(run: Run) -> list[NDArray[np.uint8]]:
    """Return OK images of the train split, evenly over its order."""
    ok = [row for row in run.splits.train if row.label == OK]
    return [run.manifest.image(row) for row in ok[:: -(-len(ok) // RANGE_IMAGES)]]


def _operating_point(run: Run, calibration: Scored, certification: Scored | None) -> OperatingPoint:
    certifying = certification or calibration
    return choose_operating_point(
        certifying.ng,
        certifying.ok,
        target_fnr=run.recipe.target_fnr,
        confidence=run.recipe.confidence,
        target_specificity=run.recipe.target_specificity,
        review_band=run.recipe.review_band,
        tolerance=VERDICT_MARGIN,
        ng_groups=[row.group for row in certifying.rows if row.label == NG],
        draw_key=run.fingerprint,
        certified_on="calibration" if certification is None else "certification",
        other_scores=calibration.scores,
    )
