"""Losses that adversarial methods share. Discriminators give logits; no sigmoid is ever applied twice."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bce_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½·[−log σ(D(x)) − log(1 − σ(D(x̂)))], averaged over the batch (Goodfellow et al. 2014, halved as in GANomaly)."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def wasserstein_critic(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """E D(G(z)) − E D(x), which the critic minimises (Arjovsky et al. 2017, equation 2)."""
    return fake_scores.mean() - real_scores.mean()


def wasserstein_generator(fake_scores: Tensor) -> Tensor:
    """−E D(G(z))."""
    return -fake_scores.mean()
