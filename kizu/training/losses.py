"""Losses that adversarial methods share. Discriminators give logits; no sigmoid is ever applied twice.

Notable here:
- `ADVERSARIAL` holds the losses that a method may choose between, by name. Each pair is what both networks minimise, a
  mean over the batch; penalties and their weights are the caller's.
- "non-saturating" is −E log D(G(z)), not the minimax E log(1 − D(G(z))), whose gradient dies when D is confident.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(NamedTuple):
    """What a discriminator and its generator minimise."""

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
