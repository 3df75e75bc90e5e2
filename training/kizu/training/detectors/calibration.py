"""Platt scaling: two numbers, fitted on images held out of training, make a score a logit of P(NG)."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from torch import Tensor, nn

from kizu.training.training_set import HeldOut

STEEPEST = 50.0
"""Bound of the fitted slope and of its inverse: even scores that tell nothing keep their order."""


def fit_logit(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """(a, b) with a > 0 such that σ(a·s + b) fits the labels (Platt 1999, with his smoothed targets).

    The targets (n_NG + 1) / (n_NG + 2) and 1 / (n_OK + 2) keep both finite where the scores separate the labels.
    """
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    ng, ok = y.sum(), (1 - y).sum()
    targets = np.where(y > 0.5, (ng + 1) / (ng + 2), 1 / (ok + 2))
    middle, spread = s.mean(), s.std() or 1.0
    z = (s - middle) / spread

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        slope = math.exp(p[0])
        logits = slope * z + p[1]
        residual = 0.5 * (1 + np.tanh(logits / 2)) - targets
        value = float(np.mean(np.logaddexp(0, logits) - targets * logits))
        return value, np.array([np.mean(residual * z) * slope, np.mean(residual)])

    limit = math.log(STEEPEST)
    found = minimize(loss, np.zeros(2), jac=True, bounds=[(-limit, limit), (None, None)], method="L-BFGS-B")
    slope = math.exp(found.x[0]) / spread
    return float(slope), float(found.x[1] - slope * middle)


@torch.no_grad()
def calibrate(network: nn.Module, held_out: HeldOut) -> str:
    """Fit a detector's `slope` and `offset`, its two buffers of shape []; returns what a person should know of it.

    An image scores as its worst tile. What the network was calibrated to before does not matter.
    """
    slope, offset = cast(Tensor, network.slope), cast(Tensor, network.offset)
    network.eval()
    slope.fill_(1.0)
    offset.fill_(0.0)
    pieces = [
        network(piece.to(slope.device, torch.float32) / 127.5 - 1)[0].float().cpu()
        for piece in torch.split(held_out.images, 64)
    ]
    labels = held_out.labels
    scores = torch.full((len(labels),), -torch.inf).scatter_reduce(0, held_out.owners, torch.cat(pieces), "amax")
    a, b = fit_logit(scores.numpy(), labels.numpy())
    slope.fill_(a)
    offset.fill_(b)
    ng = int(labels.sum())
    return f"scores calibrated on {len(labels) - ng} OK and {ng} NG held out of training"
