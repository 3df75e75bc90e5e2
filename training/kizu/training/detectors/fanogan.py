"""Training of f-AnoGAN (networks and paper: `kizu.models.fanogan`).

Notable here:
- Stage one is a WGAN-GP: five critic updates per generator update, Adam 1e-4 (0, 0.9), λ = 10.
- Stage two trains the encoder alone (izi_f, section 2.2); generator and critic are frozen and in eval mode.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Adam, RMSprop

from kizu.models.fanogan import PRESETS, FAnoGAN, FAnoGANConfig
from kizu.models.layers import pad_to
from kizu.training.data.batches import Batch
from kizu.training.detectors.method import DetectorContext, OneClassMethod
from kizu.training.loop import Losses, Phase, Stage
from kizu.training.losses import wasserstein_critic, wasserstein_generator
from kizu.training.options import Presets
from kizu.training.penalties import gradient_penalty

CRITIC_UPDATES = 5
PENALTY_WEIGHT = 10.0
"""λ of Gulrajani et al. 2017."""


class FAnoGANMethod(OneClassMethod):
    """Two stages: `wgan-gp`, then `encoder`; each shows its first phase `epochs` passes over the images."""

    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (FAnoGANConfig,)

    def __init__(self, context: DetectorContext):
        self.config = context.options(self.presets, *self.configs).make(FAnoGANConfig, **context.size)
        self.section = context.section
        self.notes = []
        self.networks = FAnoGAN(self.config)
        self._fixed_noise = torch.randn(8, self.config.latent, generator=torch.Generator().manual_seed(0))
        self._last_generated: Tensor | None = None

    def detector(self) -> nn.Module:
        """The networks are their own detector."""
        return self.networks

    def stages(self, images: int) -> list[Stage]:
        """WGAN-GP, then the encoder."""
        nets, rate = self.networks, self.section.learning_rate or 1e-4
        batches = self.section.epochs * images / self.section.batch_size
        critic = Phase(
            "critic", nets.critic, Adam(nets.critic.parameters(), rate, (0.0, 0.9)), self._critic_losses, CRITIC_UPDATES
        )
        generator = Phase(
            "generator", nets.generator, Adam(nets.generator.parameters(), rate, (0.0, 0.9)), self._generator_losses
        )
        encoder = Phase("encoder", nets.encoder, RMSprop(nets.encoder.parameters(), rate / 2), self._encoder_losses)
        return [
            Stage("wgan-gp", max(1, round(batches / CRITIC_UPDATES)), [critic, generator], problem=self._collapse),
            Stage("encoder", max(1, round(batches)), [encoder]),
        ]

    def samples(self, images: Tensor) -> Tensor:
        """Generated images, then images, their reconstructions, and the differences."""
        reconstruction = self.networks.reconstruct(images)
        height, width = images.shape[2:]
        generated = self.networks.generator(self._fixed_noise.to(images.device))[:, :, :height, :width]
        return torch.cat([generated, images, reconstruction, (images - reconstruction).abs() - 1])

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), self.config.latent, device=x.device)

    def _critic_losses(self, batch: Batch) -> Losses:
        x = pad_to(batch.images, *self.config.padded)
        with torch.no_grad():
            fake = self.networks.generator(self._noise(x))
        # One call for both: no layer of the critic looks across images.
        real_scores, fake_scores = self.networks.critic(torch.cat([x, fake]))[0].float().chunk(2)
        wasserstein = wasserstein_critic(real_scores, fake_scores)
        penalty = gradient_penalty(lambda images: self.networks.critic(images)[0], x, fake)
        return {"total": wasserstein + PENALTY_WEIGHT * penalty, "distance": -wasserstein, "penalty": penalty}

    def _generator_losses(self, batch: Batch) -> Losses:
        fake = self.networks.generator(self._noise(batch.images))
        self._last_generated = fake.detach()
        return {"total": wasserstein_generator(self.networks.critic(fake)[0].float())}

    def _encoder_losses(self, batch: Batch) -> Losses:
        image, features, _ = self.networks.residuals(pad_to(batch.images, *self.config.padded))
        image, features = image.float().mean(), features.float().mean()
        return {"total": image + self.config.kappa * features, "image": image, "features": features}

    def _collapse(self) -> str | None:
        spread = cast(Tensor, self._last_generated).float().std(0).mean().item()
        return "the generator makes one image from every noise" if spread < 1e-4 else None
