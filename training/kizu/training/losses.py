"""Losses that methods share. Discriminators give logits; no sigmoid is ever applied twice.

Notable here:
- `ADVERSARIAL` holds the losses that a method may choose between, by name. Each pair is what both networks minimise, a
  mean over the batch; penalties and their weights are the caller's.
- "non-saturating" is −E log D(G(z)), not the minimax E log(1 − D(G(z))), whose gradient dies when D is confident.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kizu.models.gaussian import gaussian_kernel, separable_filter

SSIM_SIGMA, SSIM_RADIUS = 1.5, 5
SSIM_K1, SSIM_K2 = 0.01, 0.03


class AdversarialLoss(NamedTuple):
    """Losses of a discriminator and of its generator."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    """(logits of real, logits of fake), any shape → scalar."""
    generator: Callable[[Tensor], Tensor]
    """Logits of fake → scalar."""


def bce_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½·[−log σ(D(x)) − log(1 − σ(D(x̂)))], averaged over the batch (Goodfellow et al. 2014, halved as in GANomaly)."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def non_saturating_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """−E log σ(D(x)) − E log(1 − σ(D(G(z)))) (Goodfellow et al. 2014, equation 1)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def non_saturating_generator(fake_logits: Tensor) -> Tensor:
    """−E log σ(D(G(z))) (Goodfellow et al. 2014, section 3)."""
    return F.softplus(-fake_logits).mean()


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """E max(0, 1 − D(x)) + E max(0, 1 + D(G(z))) (Miyato et al. 2018, equation 16). Its generator's has no hinge."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def lsgan_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½·E (D(x) − b)² + ½·E (D(G(z)) − a)² with a = 0, b = 1 (Mao et al. 2017, equations 2 and 9)."""
    return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())


def lsgan_generator(fake_logits: Tensor) -> Tensor:
    """½·E (D(G(z)) − c)² with c = 1 (Mao et al. 2017, equations 2 and 9)."""
    return 0.5 * (fake_logits - 1).square().mean()


def wasserstein_critic(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """E D(G(z)) − E D(x), which the critic minimises (Arjovsky et al. 2017, equation 2)."""
    return fake_scores.mean() - real_scores.mean()


def wasserstein_generator(fake_scores: Tensor) -> Tensor:
    """−E D(G(z))."""
    return -fake_scores.mean()


ADVERSARIAL: dict[str, AdversarialLoss] = {
    "non-saturating": AdversarialLoss(non_saturating_discriminator, non_saturating_generator),
    "hinge": AdversarialLoss(hinge_discriminator, wasserstein_generator),
    "lsgan": AdversarialLoss(lsgan_discriminator, lsgan_generator),
    "wasserstein": AdversarialLoss(wasserstein_critic, wasserstein_generator),
}
"""The Wasserstein pair needs a Lipschitz critic: `gradient_penalty` or `spectral_normalised`."""


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean of `focal_terms`."""
    return focal_terms(logits, targets, gamma).mean()


def focal_terms(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """−(1 − p)^γ · log p of each, with p what σ(logits) gives to targets in {0, 1} (Lin et al. 2017, equation 4)."""
    signed = logits * (1 - 2 * targets)  # the log-odds of being wrong
    return torch.sigmoid(signed) ** gamma * F.softplus(signed)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w·v / Σ w; 0 where no weight is left."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Mean structural similarity of images [N, C, H, W] in [−1, 1], 1 where they are equal.

    Equation 13 of Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with
    its Gaussian window (11 pixels, σ = 1.5) wherever that fits inside the image, of each channel on its own.

    Raises:
        ValueError: the images are smaller than the window.
    """
    if min(a.shape[2:]) <= 2 * SSIM_RADIUS:
        raise ValueError(f"images of {a.shape[2]}x{a.shape[3]} are smaller than the window")
    x, y = (a + 1) / 2, (b + 1) / 2
    count = a.shape[1]
    window = gaussian_kernel(SSIM_SIGMA, SSIM_RADIUS, like=x)
    moments = separable_filter(torch.cat([x, y, x * x, y * y, x * y], 1), window)
    mean_x, mean_y, square_x, square_y, product = torch.split(moments, count, 1)
    c1, c2 = SSIM_K1**2, SSIM_K2**2
    variances = square_x - mean_x.square() + square_y - mean_y.square()
    covariance = product - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    similarity: Tensor = luminance * (2 * covariance + c2) / (variances + c2)
    return similarity.mean()
