"""Several detectors become one: their scores' ranks among OK images, and how much each of them counts.

Notable here:
- Ranks are fitted on OK images of the train split that none of the detectors trained on, so that they are those of
  images yet to come.
- Beside detectors that NG taught, one that knows OK parts alone counts by how well it tells the train split's NG from
  those images: it has seen neither. Where it sees nothing of them, an equal say would hide what the others learned; it
  keeps some, for kinds of defect that nobody has labelled.
- Nothing here looks at the calibration split, whose NG certify the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from kizu.models.ensemble import Ensemble, RankScale
from kizu.models.inspector import Inspector
from kizu.training.data.manifest import NG, Row
from kizu.training.detectors.method import DetectorMethod
from kizu.training.evaluation.ranking import auroc
from kizu.training.evaluation.scoring import Scored, score_rows
from kizu.training.export import torch_scorer
from kizu.training.progress import RunLog
from kizu.training.run import Run

LEAST_WEIGHT = 0.1
"""Of a detector that tells the NG of the train split no better than chance; 1 is that of one that learned from them."""
MOST_NG = 200
"""NG that weights are taken from, at most."""


def combined(run: Run, members: Sequence[DetectorMethod], log: RunLog) -> tuple[nn.Module, list[str]]:
    """Return the one detector, or an ensemble of all; and what the report is to say of it."""
    if len(members) == 1:
        return members[0].detector(), []
    informed = [method.learns_from_ng for method in members]
    weigh = run.recipe.combine == "weighted" and any(informed) and not all(informed)
    ng = _ng(run.training) if weigh else []
    scales, weights = [], []
    for index, method in enumerate(members):
        rows = run.ranking if informed[index] else [*run.ranking, *ng]
        scored = _scored(run, method, rows, f"ranking by detector {index + 1}", log)
        scales.append(RankScale.fitted(scored.ok))
        weights.append(1.0 if informed[index] else weight_of(scored))
    notes = []
    if ng:
        shares = [f"{section.kind} {w:.2f}" for section, w in zip(run.recipe.detector, weights, strict=True)]
        notes.append(f"weights by what each sees of the train split's NG: {', '.join(shares)}")
        log.say(notes[0])
    how = "max" if run.recipe.combine == "max" else "mean"
    return Ensemble([method.detector() for method in members], scales, how, weights if ng else None), notes


def weight_of(scored: Scored) -> float:
    """How much a detector counts that has not seen these images: (2 · AUROC − 1)², `LEAST_WEIGHT` at least.

    1 where there are no NG to judge it by.
    """
    ranking = auroc(scored.ng, scored.ok)
    return 1.0 if ranking is None else max(LEAST_WEIGHT, max(0.0, 2 * ranking.value - 1) ** 2)


def _ng(rows: Sequence[Row]) -> list[Row]:
    """Real NG, of more than `MOST_NG` every so many-th, since rows come sorted by kind of defect."""
    found = [row for row in rows if row.label == NG and not row.synthetic]
    return found[:: -(-len(found) // MOST_NG)] if found else []


def _scored(run: Run, method: DetectorMethod, rows: Sequence[Row], doing: str, log: RunLog) -> Scored:
    geometry = run.recipe.image.geometry
    score = torch_scorer(Inspector(method.detector(), geometry))
    with log.bar(doing, len(rows)) as advance:
        return score_rows(score, geometry, run.manifest, rows, progress=advance)
