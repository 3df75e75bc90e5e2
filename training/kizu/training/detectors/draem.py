"""Training of DRAEM: on OK images, half of them with an anomaly drawn in (networks and paper: `kizu.models.draem`).

Notable here:
- The reconstruction is held to the image before the anomaly (L2 + SSIM), the map to the anomaly's mask (focal loss).
- Anomalies are filled from other images of the same batch: no textures from elsewhere.
- Light and position vary a little before the anomaly is drawn, as `[augment]` allows, so that neither is an anomaly.
- Adam with a warm-up and a cosine to nothing; the average of the weights scores.
"""

from __future__ import annotations

import copy
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT
from kizu.models.draem import DRAEM, PRESETS, DRAEMConfig
from kizu.training.augment.anomalies import perlin_anomalies
from kizu.training.augment.classic import augmented
from kizu.training.data.batches import Batch
from kizu.training.detectors.method import DetectorContext, OneClassMethod
from kizu.training.loop import Ema, Losses, Phase, Stage
from kizu.training.losses import focal, ssim
from kizu.training.optimisers import CosineAdamW
from kizu.training.options import Presets
from kizu.training.recipe import AugmentSection

RATE = 2e-3
"""Peak of the learning rate. The paper's 1e-4 needs its 700 epochs."""


@dataclass(frozen=True, config=STRICT)
class DRAEMTraining:
    """Training options of `[detector.options]`."""

    anomalous: float = Field(default=0.5, gt=0, lt=1)
    """Share of every batch that gets an anomaly."""
    shapes: float = Field(default=0.5, ge=0, le=1)
    """Share of these whose anomaly is strokes, spots and rectangles; the others' are Perlin noise."""
    ssim_weight: float = Field(default=1.0, ge=0)
    """Weight of 1 − SSIM next to the reconstruction's squared error (λ of equation 1)."""
    gamma: float = Field(default=2.0, ge=0)
    """γ of the focal loss; 0 makes it a cross-entropy."""
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the averaged weights, which score."""


class DRAEMMethod(OneClassMethod):
    """One stage, one phase; `average` is what scores."""

    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (DRAEMConfig, DRAEMTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.config = options.make(DRAEMConfig, **context.size)
        self.training = options.make(DRAEMTraining)
        self.section = context.section
        self.augment = AugmentSection()
        self.notes = []
        # Channels last: its convolutions take two thirds of the time on a CPU, too.
        trained = DRAEM(self.config).to(memory_format=torch.channels_last)
        self.networks = nn.ModuleDict({"draem": trained, "average": copy.deepcopy(trained)})
        self._last_logits: Tensor | None = None

    @property
    def trained(self) -> DRAEM:
        """The networks that train."""
        return cast(DRAEM, self.networks["draem"])

    @property
    def average(self) -> DRAEM:
        """The networks that score."""
        return cast(DRAEM, self.networks["average"])

    def detector(self) -> nn.Module:
        """The average."""
        return self.average

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes over the images."""
        steps = max(1, round(self.section.epochs * images / self.section.batch_size))
        groups = [{"params": list(self.trained.parameters()), "weight_decay": 0.0}]
        optimizer = CosineAdamW(groups, self.section.learning_rate or RATE, steps)
        phase = Phase("fit", self.trained, optimizer, self._losses)
        average = Ema(self.trained, self.average, self.training.ema_decay)
        return [Stage("draem", steps, [phase], averages=[average], problem=self._collapse)]

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Images, with anomalies, reconstructed, and P(anomaly) of each pixel, black to white."""
        changed, _ = perlin_anomalies(images, images.roll(1, 0), shapes=self.training.shapes)
        reconstruction, logits = self.average.both(changed)
        heat = torch.sigmoid(logits.float()) * 2 - 1
        return torch.cat([images, changed, reconstruction.clamp(-1, 1), heat.expand_as(images)])

    def _losses(self, batch: Batch) -> Losses:
        images, _ = augmented(batch.images, None, self.augment or AugmentSection())
        inputs, masks = self._with_anomalies(images)
        reconstruction, logits = self.trained.both(inputs.contiguous(memory_format=torch.channels_last))
        reconstruction, logits = reconstruction.float(), logits.float()
        self._last_logits = logits.detach()
        with torch.autocast(images.device.type, enabled=False):
            squared = F.mse_loss(reconstruction, images)
            structure = 1 - ssim(reconstruction, images)
            segmentation = focal(logits, masks, self.training.gamma)
        total = squared + self.training.ssim_weight * structure + segmentation
        return {"total": total, "squared": squared, "structure": structure, "segmentation": segmentation}

    def _with_anomalies(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Anomalies in the first `anomalous` of a batch, filled from its neighbours; and their masks."""
        count = min(max(round(self.training.anomalous * len(images)), 1), len(images) - 1)
        sources = images.roll(1, 0)[:count]
        changed, masks = perlin_anomalies(images[:count], sources, shapes=self.training.shapes)
        clean = images[count:]
        return torch.cat([changed, clean]), torch.cat([masks, torch.zeros_like(clean[:, :1])])

    def _collapse(self) -> str | None:
        spread = cast(Tensor, self._last_logits).std().item()
        return "all pixels get the same logit" if spread < 1e-6 else None
