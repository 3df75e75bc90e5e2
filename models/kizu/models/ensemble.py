"""Several detectors as one: each score becomes its rank among OK images, and the ranks are combined.

Notable here:
- Detectors score in units of their own; how rare a score is among OK images is a unit that they share.
- The rank is a piecewise linear function through quantiles, rising everywhere: beyond the outermost ones it goes on in
  a straight line, so that two NG above every OK image are still told apart. It is a function of one score alone.
- Sums and clamps only; the graph stays one file without custom operators.
- Members on the maps of one backbone share them: the graph computes them once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor, nn

from kizu.models.backbones import FeatureDetector, Levels, pooled

PIECES = 16
"""Largest number of pieces of a rank's function."""


class RankScale(nn.Module):
    """A score → the share of OK images that score lower, about 0 to 1 within them and beyond that outside.

    Args:
        knots: scores, float32 [K], K ≥ 2, strictly rising.
        ranks: of these, float32 [K], strictly rising.
        slopes: (below the first knot, above the last), both positive.
    """

    knots: Tensor
    ranks: Tensor
    slopes: Tensor

    def __init__(self, knots: Tensor, ranks: Tensor, slopes: Tensor):
        super().__init__()
        if len(knots) < 2 or (knots.diff() <= 0).any() or (ranks.diff() <= 0).any() or (slopes <= 0).any():
            raise ValueError("a rank must rise with its score")
        self.register_buffer("knots", knots)
        self.register_buffer("ranks", ranks)
        self.register_buffer("slopes", slopes)

    @classmethod
    def fitted(cls, scores: ArrayLike) -> RankScale:
        """Fit the scale to the scores of OK images, at least one.

        Outside their range, a rank rises by ½ for each distance between the median and the nearest end.
        """
        s = np.asarray(scores, np.float64)
        shares = np.linspace(0, 1, min(PIECES, max(2, s.size - 1)) + 1)
        quantiles, first = np.unique(np.quantile(s, shares).astype(np.float32), return_index=True)
        kept = shares[first]
        kept[-1] = 1.0
        if quantiles.size < 2:  # every image scored alike: any scale serves
            step = max(abs(float(quantiles[0])), 1.0) * 1e-3
            quantiles, kept = np.array([quantiles[0] - step, quantiles[0] + step]), np.array([0.0, 1.0])
        middle = float(np.interp(0.5, kept, quantiles))
        least = (quantiles[-1] - quantiles[0]) * 0.05
        slopes = [0.5 / max(middle - quantiles[0], least), 0.5 / max(quantiles[-1] - middle, least)]
        knots, ranks, ends = (torch.tensor(np.asarray(v, np.float32)) for v in (quantiles, kept, slopes))
        return cls(knots, ranks, ends)

    def forward(self, score: Tensor) -> Tensor:
        """Scores of any shape → ranks of the same shape."""
        below = F.relu(self.knots[0] - score) * self.slopes[0]
        above = F.relu(score - self.knots[-1]) * self.slopes[1]
        rank = self.ranks[0] - below + above
        widths, rises = self.knots.diff(), self.ranks.diff()
        for piece in range(len(widths)):  # one at a time: together, they would take as many times a heatmap's memory
            rank = rank + ((score - self.knots[piece]) / widths[piece]).clamp(0, 1) * rises[piece]
        return rank


class Ensemble(nn.Module):
    """Detectors whose ranks are combined: x [N, C, H, W] in [−1, 1] → (score [N], heatmap [N, 1, H, W]).

    Args:
        members: each maps x to (score [N], heatmap [N, 1, h, w]).
        scales: of each, fitted on its scores.
        combine: `mean` or `max` of the ranks, for scores and for each place of the heatmap.
        weights: of each member in the mean, not negative and not all 0; left out: all alike.

    Raises:
        ValueError: numbers of members, scales and weights differ, there is no member, or a weight is negative.
    """

    weights: Tensor

    def __init__(
        self,
        members: Sequence[nn.Module],
        scales: Sequence[RankScale],
        combine: str = "mean",
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        given = np.ones(len(members)) if weights is None else np.asarray(weights, np.float64)
        if not len(members) == len(scales) == len(given) or not members or combine not in ("mean", "max"):
            raise ValueError(f"{len(members)} members, {len(scales)} scales, combined by {combine!r}")
        if (given < 0).any() or not given.any():
            raise ValueError(f"weights {given.tolist()}")
        self.members, self.scales = nn.ModuleList(members), nn.ModuleList(scales)
        self.combine = combine
        self.register_buffer("weights", torch.tensor(given / given.sum(), dtype=torch.float32))

    @property
    def backbone(self) -> nn.Module | None:
        """The first backbone of its members; None where none has one."""
        return next((member.backbone for member in self.members if isinstance(member, FeatureDetector)), None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Score images, see the class."""
        score, heatmap, _ = self._detect(x)
        return score, heatmap

    def inspect(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score images, and embed them by the first of its backbones.

        Raises:
            ValueError: no member has one.
        """
        score, heatmap, levels = self._detect(x)
        if not levels:
            raise ValueError("none of the members has a backbone")
        return score, heatmap, pooled(next(iter(levels.values())))

    def _detect(self, x: Tensor) -> tuple[Tensor, Tensor, dict[int, Levels]]:
        levels: dict[int, Levels] = {}
        scores, heatmaps = [], []
        for member, scale in zip(self.members, self.scales, strict=True):
            if isinstance(member, FeatureDetector):
                key = id(member.backbone)
                if key not in levels:
                    levels[key] = member.backbone(x)
                score, heatmap = member.detect(levels[key])
            else:
                score, heatmap = member(x)
            scores.append(scale(score))
            heatmap = F.interpolate(heatmap, size=x.shape[2:], mode="bilinear", align_corners=False)
            heatmaps.append(scale(heatmap))
        return self._combined(torch.stack(scores)), self._combined(torch.stack(heatmaps)), levels

    def _combined(self, ranks: Tensor) -> Tensor:
        if self.combine == "max":
            return ranks.amax(0)
        return (ranks * self.weights.view(-1, *[1] * (ranks.dim() - 1))).sum(0)
