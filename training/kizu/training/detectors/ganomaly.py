"""Training of GANomaly (networks and paper: `kizu.models.ganomaly`).

Notable here:
- The adversarial loss matches the discriminator's features (equation 2), not its decision.
- The discriminator is initialised again when its loss vanishes, as in the authors' experiments.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from kizu.models.ganomaly import PRESETS, GANomaly, GANomalyConfig
from kizu.models.layers import init_dcgan, pad_to
from kizu.training.data.batches import Batch
from kizu.training.detectors.method import DetectorContext, OneClassMethod
from kizu.training.loop import Losses, Phase, Stage
from kizu.training.losses import bce_discriminator
from kizu.training.options import Presets

ADVERSARIAL_WEIGHT, CONTEXT_WEIGHT, ENCODER_WEIGHT = 1.0, 50.0, 1.0
"""w_adv, w_con, w_enc of equation 4, with the values of section 4."""
VANISHED_LOSS = 1e-5


class GANomalyMethod(OneClassMethod):
    """One stage: the discriminator's turn, then the generator's."""

    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (GANomalyConfig,)

    def __init__(self, context: DetectorContext):
        self.config = context.options(self.presets, *self.configs).make(GANomalyConfig, **context.size)
        self.section = context.section
        self.notes = []
        self.networks = GANomaly(self.config)
        self._last_latent: Tensor | None = None

    def detector(self) -> nn.Module:
        """The networks are their own detector."""
        return self.networks

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes over the images for each of the two optimisers."""
        rate = self.section.learning_rate or 2e-4
        nets = self.networks
        phases = [
            Phase("D", nets.discriminator, Adam(nets.discriminator.parameters(), rate, (0.5, 0.999)), self._d_losses),
            Phase("G", nets.generator, Adam(nets.generator.parameters(), rate, (0.5, 0.999)), self._g_losses),
        ]
        steps = max(1, round(self.section.epochs * images / self.section.batch_size))
        return [Stage("ganomaly", steps, phases, at_control=self._revive, problem=self._collapse)]

    def samples(self, images: Tensor) -> Tensor:
        """Images, their reconstructions, and the differences."""
        reconstruction = self.networks.reconstruct(images)
        return torch.cat([images, reconstruction, (images - reconstruction).abs() - 1])

    def _d_losses(self, batch: Batch) -> Losses:
        x = pad_to(batch.images, *self.networks.padded)
        with torch.no_grad():
            # The second encoder has no part in this, and its batch-norm statistics should not notice it.
            reconstruction = self.networks.generator.reconstruct(x)
        real, _ = self.networks.discriminator(x)
        fake, _ = self.networks.discriminator(reconstruction)
        return {"total": bce_discriminator(real.float(), fake.float())}

    def _g_losses(self, batch: Batch) -> Losses:
        x = pad_to(batch.images, *self.networks.padded)
        reconstruction, z, z_hat = self.networks.generator(x)
        _, real_features = self.networks.discriminator(x)
        _, fake_features = self.networks.discriminator(reconstruction)
        adversarial = F.mse_loss(fake_features.float(), real_features.float())
        context = F.l1_loss(reconstruction.float(), x)
        encoder = F.mse_loss(z_hat.float(), z.float())
        self._last_latent = z.detach()
        total = ADVERSARIAL_WEIGHT * adversarial + CONTEXT_WEIGHT * context + ENCODER_WEIGHT * encoder
        return {"total": total, "adversarial": adversarial, "context": context, "encoder": encoder}

    def _revive(self, losses: dict[str, float]) -> None:
        if losses["D/total"] < VANISHED_LOSS:
            init_dcgan(self.networks.discriminator)

    def _collapse(self) -> str | None:
        spread = cast(Tensor, self._last_latent).float().std(0).mean().item()
        return "all images get the same latent" if spread < 1e-6 else None
