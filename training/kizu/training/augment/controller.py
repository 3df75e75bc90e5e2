"""The adaptive part of ADA: a probability p that follows how far the discriminator overfits (Karras et al. 2020, §3).

Notable here:

- All state is in buffers, the counter of steps included: a checkpoint holds it, and a resumed run goes on alike.
- Nothing asks the device for a value; what happens every few steps only is computed in each and selected on the device.
- p is bounded above. The paper finds that near 1 the augmentations leak into the generated images.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Where running sums keep the logits of training, validation and generated images.
TRAIN, VALIDATION, GENERATED = range(3)


class AdaController(nn.Module):
    """Raises p while the overfitting heuristic r is over its target, and lowers it while under.

    Args:
        target: of r, which is 0 without overfitting and 1 with complete overfitting.
        speed_kimg: thousands of images in which p could go from 0 to 1; may be changed at any time.
        initial_p: p to begin with.
        max_p: upper bound of p.
        heuristic: r_t = E[sign D(train)], or r_v = (E D(train) − E D(validation)) / (E D(train) − E D(generated)).
        every: steps between two changes of p.
        reduce: averages a tensor over all processes; not saved.
    """

    p: Tensor
    r: Tensor
    steps: Tensor
    sums: Tensor

    def __init__(
        self,
        *,
        target: float = 0.6,
        speed_kimg: float = 500.0,
        initial_p: float = 0.0,
        max_p: float = 0.8,
        heuristic: str = "r_t",
        every: int = 4,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if heuristic not in ("r_t", "r_v"):
            raise ValueError(f"heuristic must be 'r_t' or 'r_v', not {heuristic!r}")
        if not 0 <= initial_p <= max_p <= 1:
            raise ValueError(f"need 0 ≤ initial_p ≤ max_p ≤ 1, not {initial_p} and {max_p}")
        if speed_kimg <= 0 or every < 1:
            raise ValueError(f"speed_kimg and every must be positive, not {speed_kimg} and {every}")
        self.target = target
        self.speed_kimg = speed_kimg
        self.max_p = max_p
        self.heuristic = heuristic
        self.every = every
        self.reduce = reduce
        self.register_buffer("p", torch.tensor(float(initial_p)))
        self.register_buffer("r", torch.tensor(0.0))  # at the last change
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("sums", torch.zeros(2, 3))  # of values, and how many; since the last change

    @torch.no_grad()
    def observe(self, real_logits: Tensor) -> None:
        """Takes in D's logits, of any shape, on augmented training images; for r_t."""
        self._add(TRAIN, torch.sign(real_logits.detach().float()))

    @torch.no_grad()
    def observe_validation(self, train_logits: Tensor, validation_logits: Tensor, generated_logits: Tensor) -> None:
        """Takes in D's logits, of any shapes, on images trained with, held out, and generated; for r_v."""
        self._add(TRAIN, train_logits.detach().float())
        self._add(VALIDATION, validation_logits.detach().float())
        self._add(GENERATED, generated_logits.detach().float())

    @torch.no_grad()
    def update(self, batch_size: int) -> None:
        """Once for each step of the discriminator on batch_size images over all processes; changes p every so often.

        p stays as it is if nothing was observed since, or if r is not a number.
        """
        self.steps += 1
        due = self.steps % self.every == 0
        sums = self.reduce(self.sums) if self.reduce is not None else self.sums
        r = self._heuristic(sums)
        counts = due & torch.isfinite(r)
        step = torch.sign(r - self.target) * (batch_size * self.every / (self.speed_kimg * 1000))
        self.p.copy_(torch.where(counts, (self.p + step).clamp(0, self.max_p), self.p))
        self.r.copy_(torch.where(counts, r, self.r))
        self.sums.copy_(torch.where(due, 0.0, self.sums))

    def _heuristic(self, sums: Tensor) -> Tensor:
        """r from sums and counts [2, 3]; not finite if there is nothing to tell it from."""
        mean = sums[0] / sums[1]
        if self.heuristic == "r_t":
            return mean[TRAIN]
        return (mean[TRAIN] - mean[VALIDATION]) / (mean[TRAIN] - mean[GENERATED])

    def _add(self, which: int, values: Tensor) -> None:
        self.sums[0, which] += values.sum()
        self.sums[1, which] += values.numel()
