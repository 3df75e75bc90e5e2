"""Optimiser with a schedule, for detectors that train for a set number of steps.

Notable here:
- The schedule counts in the optimiser's own state, which checkpoints keep: a resumed run goes on where it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import AdamW


class CosineAdamW(AdamW):
    """AdamW whose rate climbs linearly over the first twentieth of `steps` and falls as a half cosine to zero.

    A group with a `factor` gets so many times the rate.

    How many steps were taken is in its state, so a resumed run goes on where it stopped.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        rate: float,
        steps: int,
        betas: tuple[float, float] = (0.9, 0.999),
    ):
        super().__init__([{**group, "taken": 0} for group in groups], lr=rate, betas=betas)
        self.peak, self.steps = rate, steps

    @property
    def done(self) -> float:
        """Share of the steps taken, in [0, 1]."""
        taken: int = self.param_groups[0]["taken"]
        return min(1.0, taken / self.steps)

    def step(self, closure: Any = None) -> Any:
        """One update."""
        for group in self.param_groups:
            group["lr"] = self.peak * group.get("factor", 1.0) * cosine(group["taken"], self.steps)
            group["taken"] += 1
        return super().step(closure)


def decayed(network: nn.Module, weight_decay: float, factor: float = 1.0) -> list[dict[str, Any]]:
    """Group the network's parameters for AdamW: decay for weights, none for biases and normalisation.

    Args:
        factor: of the learning rate.
    """
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "factor": factor},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "factor": factor},
    ]


def cosine(step: int, steps: int) -> float:
    """Return the share of the peak rate at a step (Loshchilov & Hutter 2017, equation 5, without restarts)."""
    warmup = steps // 20
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))
