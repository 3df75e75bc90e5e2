"""Training of a K + 1 semi-supervised GAN (networks and papers: `kizu.models.semi_supervised`).

Notable here:
- The discriminator learns classes from labels, and from all of the camera's images, labelled or not, that they are
  real; its generator's images, and by choice synthetic NG, are the class "generated".
- The generator matches the mean of the discriminator's features, and does not try to deceive it: that is what serves
  classification (Salimans et al. 2016, section 3.1). No minibatch discrimination, which does not.
- By default real and generated images pass the discriminator's batch norm in one batch, so generated ones move the
  logits of real ones in training, and the running statistics. Of what was tried, this learned best from few labels.
  `batch_norm = "apart"` keeps them apart. During the generator's turn the running statistics are in use, and nothing
  moves them.
- An NG image without a defect class may be of any: its loss is that of NG as a whole.
- D: AdamW, warm-up, cosine; its average scores. G: the same with the paper's β₁ = 0.5 and rate 3·10⁻⁴, no decay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kizu.models.config import STRICT
from kizu.models.semi_supervised import (
    PRESETS,
    SemiSupervisedConfig,
    SemiSupervisedDiscriminator,
    SemiSupervisedGenerator,
    ng_log_odds,
)
from kizu.training.augment.classic import augmented
from kizu.training.data.batches import Batch, LabelledBatch, Truth
from kizu.training.data.labelled import UNKNOWN, UNSPECIFIED
from kizu.training.detectors.calibration import calibrate
from kizu.training.detectors.classifier import dense_bce, load_backbone
from kizu.training.detectors.method import DetectorContext, UnpreparedMethod
from kizu.training.loop import Ema, Losses, Phase, Stage
from kizu.training.losses import weighted_mean
from kizu.training.optimisers import CosineAdamW, decayed
from kizu.training.options import Presets
from kizu.training.recipe import AugmentSection
from kizu.training.training_set import Sampling, TrainingSet


@dataclass(frozen=True, config=STRICT)
class SemiSupervisedTraining:
    """Training options of `[detector.options]`."""

    classes: Literal["defects", "binary"] = "defects"
    """`defects`: one NG class per defect class of the train split; `binary`: one NG class."""
    ng_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of NG among the labelled images of a batch."""
    unlabelled_share: float = Field(default=0.5, ge=0, le=1)
    """Share of unlabelled images in a batch, where there are any."""
    unsupervised_weight: float = Field(default=1.0, ge=0)
    """Weight of what is learned without labels."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Share of the training over which that weight rises from 0; 0: at once."""
    synthetic: Literal["generated", "ng"] = "generated"
    """Class of synthetic NG: `generated`, or `ng`."""
    synthetic_share: float = Field(default=0.5, ge=0, le=1)
    """`generated`: weight of synthetic NG in that class's term; the rest is the generator's."""
    synthetic_ratio: float = Field(default=1.0, ge=0)
    """At most this many synthetic NG per real one in a batch; 0: none."""
    synthetic_weight: float = Field(default=1.0, ge=0)
    """`ng`: weight of a synthetic image in the loss."""
    batch_norm: Literal["together", "apart"] = "together"
    """Real and generated images pass the discriminator's batch norm in one batch (`together`), or each kind in its own,
    of which only the real ones' moves the running statistics (`apart`)."""
    matching: Literal["l1", "l2"] = "l1"
    """Distance of mean features: `l1` (the authors' code) or `l2`, squared (their paper)."""
    dense_weight: float = Field(default=1.0, ge=0)
    """Weight of the map's loss where defects are located; 0: none."""
    generator_rate: float = Field(default=3e-4, gt=0)
    """The generator's learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of the discriminator's AdamW."""
    ema_decay: float = Field(default=0.998, ge=0, le=1)
    """Decay of the averaged weights, which score."""
    weights: str | None = None
    """A local file with torchvision's weights of the backbone; left out: from scratch."""

    @property
    def synthetic_is_ng(self) -> bool:
        """True if synthetic NG count among the NG's share."""
        return self.synthetic == "ng"

    @property
    def needs_ng(self) -> bool:
        """Always: it tells two labels apart."""
        return True


def possible_classes(labels: Tensor, defects: Tensor, classes: int) -> Tensor:
    """Mark the K real classes that each image may be of: bool [N, K].

    OK is class 0; NG is its defect's class, or any but 0 where that is not known or there is one NG class only; an
    unlabelled image may be of any.

    Args:
        labels: 0, 1 or `UNKNOWN`, int64 [N].
        defects: int64 [N], `UNSPECIFIED` where it is not known.
        classes: K.
    """
    number = torch.arange(classes, device=labels.device)
    free = (defects == UNSPECIFIED) | (classes == 2)
    ng = (number == defects[:, None]) | (free[:, None] & (number > 0))
    known = torch.where((labels == 1)[:, None], ng, number == 0)
    return known | (labels == UNKNOWN)[:, None]


def class_loss(logits: Tensor, possible: Tensor) -> Tensor:
    """−log P(one of the possible classes | real), [N, K] → [N]; cross-entropy where one is possible."""
    return torch.logsumexp(logits, 1) - torch.logsumexp(logits.masked_fill(~possible, -torch.inf), 1)


def real_loss(logits: Tensor) -> Tensor:
    """−log P(real) = −log(Z / (Z + 1)) = softplus(−log Z), [N, K] → [N] (Salimans et al. 2016, section 5)."""
    return F.softplus(-torch.logsumexp(logits, 1))


def generated_loss(logits: Tensor) -> Tensor:
    """−log P(generated) = log(Z + 1) = softplus(log Z), [N, K] → [N]."""
    return F.softplus(torch.logsumexp(logits, 1))


def feature_matching(real: Tensor, generated: Tensor, distance: str) -> Tensor:
    """Distance of mean features [F]: `l1`, mean |a − b|; `l2`, ‖a − b‖² (Salimans et al. 2016, section 3.1)."""
    difference = real - generated
    return difference.abs().mean() if distance == "l1" else difference.square().sum()


class SemiSupervisedMethod(UnpreparedMethod):
    """One stage: the discriminator's turn, then the generator's; `average` is what scores."""

    uses_unlabelled = True
    learns_from_ng = True
    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (SemiSupervisedConfig, SemiSupervisedTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.training = options.make(SemiSupervisedTraining)
        classes = 2 if self.training.classes == "binary" else 1 + max(1, len(context.defects))
        self.config = options.make(SemiSupervisedConfig, **context.size, real_classes=classes)
        self.section = context.section
        self.sampling: Sampling | None = self.training
        self.augment: AugmentSection | None = AugmentSection()
        self.notes: list[str] = []
        discriminator = SemiSupervisedDiscriminator(self.config)
        if self.training.weights is not None:
            self.notes.append(load_backbone(discriminator.backbone, Path(self.training.weights)))
        self.networks = nn.ModuleDict(
            {
                "discriminator": discriminator,
                "generator": SemiSupervisedGenerator(self.config),
                "average": copy.deepcopy(discriminator),
            }
        )
        self._optimizer: CosineAdamW | None = None
        self._last_scores: Tensor | None = None

    @property
    def discriminator(self) -> SemiSupervisedDiscriminator:
        """The network that trains."""
        return cast(SemiSupervisedDiscriminator, self.networks["discriminator"])

    @property
    def generator(self) -> SemiSupervisedGenerator:
        """The generator that it trains against."""
        return cast(SemiSupervisedGenerator, self.networks["generator"])

    @property
    def average(self) -> SemiSupervisedDiscriminator:
        """The network that scores."""
        return cast(SemiSupervisedDiscriminator, self.networks["average"])

    def detector(self) -> nn.Module:
        """The average."""
        return self.average

    def finish(self, training: TrainingSet) -> None:
        """Calibrate on what was held out, if anything was."""
        if training.held_out is not None:
            self.notes.append(calibrate(self.average, training.held_out))

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes over the camera's images, labelled or not, for each of the two networks."""
        steps = max(1, round(self.section.epochs * images / self.section.batch_size))
        groups = decayed(self.discriminator, self.training.weight_decay)
        self._optimizer = CosineAdamW(groups, self.section.learning_rate or 2e-3, steps)
        against = CosineAdamW(decayed(self.generator, 0.0), self.training.generator_rate, steps, betas=(0.5, 0.999))
        phases = [
            Phase("D", self.discriminator, self._optimizer, self._d_losses),
            Phase("G", self.generator, against, self._g_losses),
        ]
        average = Ema(self.discriminator, self.average, self.training.ema_decay)
        return [Stage("semi-supervised", steps, phases, averages=[average], problem=self._collapse)]

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Images, where the average sees defects (P(NG) of each place, black to white), and generated images."""
        heat = torch.sigmoid(self.average(images)[1].float()) * 2 - 1
        fixed = torch.randn(len(images), self.config.latent, generator=torch.Generator().manual_seed(0))
        return torch.cat([images, heat.expand_as(images), self.generator(fixed.to(images.device)).float()])

    def _d_losses(self, batch: Batch) -> Losses:
        truth, count = _truth(batch), len(batch.images)
        with torch.no_grad():
            fakes = self._generate(max(2, count // 2), batch.images.device)
        masks = F.pad(truth.masks.float() / 255, (0, 0, 0, 0, 0, 0, 0, len(fakes)))
        images, moved = augmented(torch.cat([batch.images, fakes.float()]), masks, self.augment or AugmentSection())
        assert moved is not None
        logit_map, fake_map = self._logit_maps(images[:count], images[count:])
        logits, fake_logits = self.discriminator.pooled(logit_map), self.discriminator.pooled(fake_map)
        self._last_scores = ng_log_odds(torch.cat([logits, fake_logits]).detach())
        supervised, real, generated = self._terms(logits, fake_logits, batch.labels, truth)
        ramp = self._ramp()
        losses = {"classes": supervised, "real": real, "generated": generated}
        total = supervised + ramp * 0.5 * (real + generated)
        if self.training.dense_weight:
            weights = truth.weights * self._labelled(batch.labels, truth)
            losses["dense"] = dense_bce(ng_log_odds(logit_map)[:, None], moved[:count], truth.located, weights)
            total = total + self.training.dense_weight * losses["dense"]
        return {"total": total, **losses}

    def _logit_maps(self, real: Tensor, fakes: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of the real classes' logits of both kinds of images, float32."""
        if self.training.batch_norm == "together":
            logits = self.discriminator.logits(torch.cat([real, fakes])).float()
            return logits[: len(real)], logits[len(real) :]
        of_real = self.discriminator.logits(real).float()
        with _untraced(self.discriminator):
            return of_real, self.discriminator.logits(fakes).float()

    def _terms(self, logits: Tensor, fakes: Tensor, labels: Tensor, truth: Truth) -> tuple[Tensor, Tensor, Tensor]:
        """(classes of the labelled, "real" of the camera's, "generated" of fakes and of synthetic NG)."""
        labelled = self._labelled(labels, truth)
        possible = possible_classes(labels, truth.defects, logits.shape[1])
        supervised = weighted_mean(class_loss(logits, possible), truth.weights * labelled)
        real = weighted_mean(real_loss(logits), (~truth.synthetic).float())
        synthetic_ng = ((labels == 1) & truth.synthetic & (self.training.synthetic == "generated")).float()
        share = self.training.synthetic_share * (synthetic_ng.sum() > 0)
        generated = generated_loss(fakes).mean()
        return supervised, real, (1 - share) * generated + share * weighted_mean(generated_loss(logits), synthetic_ng)

    def _g_losses(self, batch: Batch) -> Losses:
        truth = _truth(batch)
        fakes = self._generate(len(batch.images), batch.images.device).float()
        with _scoring(self.discriminator):
            generated = self.discriminator.penultimate(self._altered(fakes)).float()
            with torch.no_grad():
                features = self.discriminator.penultimate(self._altered(batch.images)).float()
        unlabelled = (batch.labels == UNKNOWN).float()
        # The data as it comes, without the NG's larger share, wherever there is some.
        weights = torch.where(unlabelled.sum() > 0, unlabelled, (~truth.synthetic).float())
        real = (features * weights[:, None]).sum(0) / weights.sum().clamp(min=1)
        return {"total": feature_matching(real, generated.mean(0), self.training.matching)}

    def _labelled(self, labels: Tensor, truth: Truth) -> Tensor:
        """1 where an image's label teaches, else 0: float32 [N]."""
        labelled = labels != UNKNOWN
        if self.training.synthetic == "generated":
            labelled &= ~((labels == 1) & truth.synthetic)
        return labelled.float()

    def _generate(self, count: int, device: torch.device) -> Tensor:
        result: Tensor = self.generator(torch.randn(count, self.config.latent, device=device))
        return result

    def _altered(self, images: Tensor) -> Tensor:
        return augmented(images, None, self.augment or AugmentSection())[0]

    def _ramp(self) -> float:
        done = 1.0 if self._optimizer is None else self._optimizer.done
        risen = min(1.0, done / self.training.ramp) if self.training.ramp else 1.0
        return self.training.unsupervised_weight * risen

    def _collapse(self) -> str | None:
        spread = cast(Tensor, self._last_scores).std().item()
        return "all images get the same score" if spread < 1e-6 else None


def _truth(batch: Batch) -> Truth:
    if not isinstance(batch, LabelledBatch):
        raise TypeError("a semi-supervised detector needs batches that know which images are synthetic")
    return batch.truth


@contextmanager
def _scoring(network: nn.Module) -> Iterator[None]:
    """The network in eval mode, so that its batch norm neither notices nor mixes the images."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _untraced(network: nn.Module) -> Iterator[None]:
    """Batch norm of the network as it is, but that no running statistic follows."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
