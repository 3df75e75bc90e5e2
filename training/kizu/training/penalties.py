"""Penalties on gradients and a bound on weights.

Notable here:
- Penalties are fp32 whatever the autocast around them: a squared gradient soon leaves the range or the precision of
  16 bits. `r1` and `PathLength` get the result of a forward pass that the caller ran; that pass is the caller's to run
  with autocast off.
- Each states its normalisation, since published code differs by factors of 2 to N·H·W here.
- Every penalty is differentiated again, so nothing in the networks may lack a second derivative.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


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
        length: Tensor = gradient.flatten(1).norm(2, dim=1)
        return (length - 1).square().mean()


def r1(logits: Tensor, images: Tensor, gamma: float) -> Tensor:
    """γ/2 · E ‖∇ₓD(x)‖² on real images (Mescheder et al. 2018, equation 9).

    Args:
        logits: D(x), one per image; of several per image the sum is differentiated.
        images: x [N, C, H, W], the leaf that requires a gradient and that the forward pass began with. If it was
            augmented on the way, the gradient goes through the augmentation (Karras et al. 2020).
        gamma: γ, in the notation with the ½.

    The square is summed over C, H and W, then averaged over the N images; so γ has to grow with the resolution.
    """
    (gradient,) = torch.autograd.grad(logits.float().sum(), images, create_graph=True)
    return gamma / 2 * gradient.float().square().flatten(1).sum(1).mean()


def r1_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """`r1` with its forward pass, in fp32: (penalty, logits).

    Args:
        discriminator: images [N, C, H, W] → logits, its augmentation included.
        real: [N, C, H, W].
        gamma: γ, in the notation with the ½.
    """
    with torch.autocast(real.device.type, enabled=False):
        images = real.detach().float().requires_grad_(True)
        logits = discriminator(images)
        return r1(logits, images, gamma), logits


class PathLength(nn.Module):
    """E (‖J_wᵀ y‖₂ − a)²: steps in w of one length shall change images by one length (Karras et al. 2020b, equation 4).

    Args:
        decay: how far the running mean a moves towards a batch's mean length.
        reduce: mean over the processes of a 0-dim tensor, so that all have the same a.

    a starts at 0 and is a constant to the gradient. Hold this in the method's networks, for checkpoints to have a; it
    moves in eval mode as well, where the training loop puts what no optimiser trains.
    """

    mean: Tensor

    def __init__(self, decay: float = 0.01, reduce: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.decay = decay
        self.reduce = reduce
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, images: Tensor, ws: Tensor) -> Tensor:
        """Images [N, C, H, W] and the ws [N, num_ws, w_dim] that they were made from → the penalty, without its weight.

        y ~ N(0, 1)/√(H·W). The length is √(mean over num_ws of the sum over w_dim of (Jᵀy)²); the penalty is the mean
        over N.
        """
        noise = torch.randn_like(images, dtype=torch.float32) / math.sqrt(images.shape[2] * images.shape[3])
        (gradient,) = torch.autograd.grad((images.float() * noise).sum(), ws, create_graph=True)
        # The root's slope is infinite at 0, where a generator that ignores ws would turn the gradient into NaN.
        lengths = gradient.float().square().sum(2).mean(1).clamp_min(1e-12).sqrt()
        batch_mean = lengths.detach().mean()
        if self.reduce is not None:
            batch_mean = self.reduce(batch_mean)
        mean = self.mean.lerp(batch_mean, self.decay)
        self.mean.copy_(mean)
        return (lengths - mean).square().mean()


def spectral_normalised(module: nn.Module) -> nn.Module:
    """W/σ(W) for each `weight` of at least 2 dimensions in `module`, which is changed (Miyato et al. 2018, equation 8).

    σ is estimated by one power iteration on out × (in·k·k) per forward pass in train mode, none in eval mode; inside
    `torch.nn.utils.parametrize.cached()` there is one per block, however many passes it holds. The gradient goes
    through σ, with its singular vectors held constant (equation 12).

    A layer's `gain`, the run-time scale of the equalised learning rate, becomes 1: σ = 1 fixes the scale already.
    What is normalised stays so; optimisers and averages are to be made afterwards.
    """
    for layer in list(module.modules()):
        weight = layer._parameters.get("weight")
        if weight is None or weight.ndim < 2:
            continue
        if isinstance(getattr(layer, "gain", None), float):
            layer.gain = 1.0  # type: ignore[assignment]
        spectral_norm(layer, "weight")
    return module
