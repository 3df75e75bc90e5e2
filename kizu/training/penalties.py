"""Gradient penalties. Each is computed in fp32 whatever the autocast around it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """E (‖∇D(x̂)‖₂ − 1)² at points x̂ between real and fake images (Gulrajani et al. 2017, equation 3, without λ).

    Args:
        critic: images [N, C, H, W] → scores, one per image.
        real: [N, C, H, W].
        fake: the same shape.

    One ε ~ U(0, 1) per image; the norm is over C, H and W together.
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = real.detach().float(), fake.detach().float()
        epsilon = torch.rand(len(real), 1, 1, 1, device=real.device)
        between = torch.lerp(fake, real, epsilon).requires_grad_(True)
        (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return (gradient.flatten(1).norm(2, dim=1) - 1).square().mean()
