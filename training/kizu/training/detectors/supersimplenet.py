"""Training of SuperSimpleNet on any mixture of OK, NG and synthetic NG (paper: `kizu.models.supersimplenet`).

Notable here:
- Half of the OK in a batch become NG by noise on their features, inside regions of low-frequency noise. That is all it
  has where there is no NG, and it goes on where there are: kinds of defect that nobody has photographed look like none
  of those that somebody has.
- Masks and boxes teach the map, labels the score: an NG whose defects are not located teaches the score alone.
- The backbone is frozen and its features are computed once, of several altered copies of each image (`feature_views`).
- Sets whose features exceed `MEMORY` go through the backbone at every step instead: slower, the same otherwise.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.models.config import STRICT
from kizu.models.supersimplenet import PRESETS, Heads, SuperSimpleNet, SuperSimpleNetConfig
from kizu.training.augment.anomalies import perlin_noise
from kizu.training.augment.classic import augmented
from kizu.training.data.batches import Batch, LabelledBatch
from kizu.training.detectors.calibration import calibrate
from kizu.training.detectors.feature_views import FeatureViews, feature_pieces, feature_views, ok_images
from kizu.training.detectors.method import BackboneMethod, DetectorContext
from kizu.training.loop import Losses, Phase, Stage
from kizu.training.losses import focal_terms, weighted_mean
from kizu.training.optimisers import CosineAdamW
from kizu.training.options import Presets
from kizu.training.pretrained import PretrainedOptions
from kizu.training.progress import RunLog
from kizu.training.recipe import AugmentSection
from kizu.training.training_set import Sampling, TrainingSet

MEMORY = 3 << 30
"""Bytes of precomputed features, at most."""
LEARNING_RATE = 2e-3


@dataclass(frozen=True, config=STRICT)
class SuperSimpleNetTraining(PretrainedOptions):
    """Training options of `[detector.options]`."""

    steps: int = Field(default=700, ge=1)
    """Updates at least; more where `epochs` passes take more."""
    noise: float = Field(default=0.6, ge=0)
    """Standard deviation of the noise on features, which are standardised: 1 is their own spread over OK images."""
    noisy_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the OK in a batch that noise makes NG."""
    ng_share: float = Field(default=0.33, gt=0, lt=1)
    """Share of NG in every batch, where there are any."""
    map_weight: float = Field(default=5.0, ge=0)
    """Weight of the map's loss; the score's is 1."""
    truncation: float = Field(default=0.0, ge=0)
    """Weight of the truncated L1 loss of the map beside its focal loss."""
    focus: float = Field(default=2.0, ge=0)
    """γ of the focal losses."""
    views: int = Field(default=4, ge=1)
    """Copies of each NG, the first as it is, the others altered as `[augment]` allows."""
    ok_views: int = Field(default=1, ge=1)
    """Copies of each OK."""
    synthetic_weight: float = Field(default=1.0, ge=0)
    """Weight of a synthetic image in the loss."""
    synthetic_ratio: float = Field(default=1.0, ge=0)
    """At most this many synthetic NG per real one in a batch; 0: none."""

    @property
    def synthetic_is_ng(self) -> bool:
        """Always."""
        return True

    @property
    def unlabelled_share(self) -> float:
        """None: it learns from labels alone."""
        return 0.0

    @property
    def needs_ng(self) -> bool:
        """Noise stands in for NG where there are none."""
        return False


def truncated_l1(logits: Tensor, targets: Tensor, margin: float = 0.5) -> Tensor:
    """max(0, m − s·z), s = ±1 by the target: nothing is gained beyond the margin (SimpleNet, equation 6)."""
    return F.relu(margin - (2 * targets - 1) * logits)


class SuperSimpleNetMethod(BackboneMethod):
    """One stage, one phase on precomputed features."""

    uses_unlabelled = False
    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (SuperSimpleNetConfig, SuperSimpleNetTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.config = options.make(SuperSimpleNetConfig, **context.size)
        self.training = options.make(SuperSimpleNetTraining)
        self.section = context.section
        self.sampling: Sampling | None = self.training
        self.augment: AugmentSection | None = AugmentSection()
        self.learns_from_ng = True
        backbone, weights = context.backbones.load(self.config, self.training)
        self._detector = SuperSimpleNet(self.config, backbone)
        super().__init__(self._detector, weights)
        self.networks = nn.ModuleDict({"heads": self._detector.heads})
        # Sampled here, where resumed runs sample the same.
        self._seed = int(torch.randint(2**31, ()))
        self._views: FeatureViews | None = None

    @property
    def heads(self) -> Heads:
        """What trains."""
        return self._detector.heads

    def prepare(self, training: TrainingSet, log: RunLog) -> None:
        """Standardise the features on OK images, and compute those of the set.

        Raises:
            UserError: there is no OK image.
        """
        batches = training.batches
        self._detector.backbone.to(batches.device)
        ok = ok_images(batches, self._seed)
        if self.config.score == "both" and not (batches.labels == 1).any():
            self.heads.parts.copy_(torch.tensor([0.0, 1.0]))
        count = 0
        total = squares = torch.zeros((), dtype=torch.float64)
        for piece in feature_pieces(batches, self._features, ok):
            of_place = piece.double().movedim(1, 0).flatten(1)
            count += of_place.shape[1]
            total, squares = total + of_place.sum(1), squares + of_place.square().sum(1)
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        self.heads.mean.copy_(mean[:, None, None])
        # A channel that never varies on OK images says nothing; as it is, it would be divided by zero.
        floor = 1e-3 * variance.mean().sqrt().clamp(min=1e-12)
        self.heads.std.copy_(variance.sqrt().clamp(min=floor)[:, None, None])
        views = torch.where(batches.labels.cpu() == 1, self.training.views, self.training.ok_views)
        rows, columns = self.config.grid(8)
        if int(views.sum()) * self.heads.mean.shape[0] * rows * columns * 2 <= MEMORY:
            augment = self.augment or AugmentSection()
            with log.bar("computing features", int(views.sum())) as advance:
                self._views = feature_views(batches, self._features, views, augment, self._seed, advance)

    def finish(self, training: TrainingSet) -> None:
        """Calibrate on what was held out, if anything was."""
        if training.held_out is not None:
            self.notes.append(calibrate(self._detector, training.held_out))

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes, counted in the camera's images, but at least `steps` updates."""
        steps = max(self.training.steps, round(self.section.epochs * images / self.section.batch_size))
        adaptor = list(self.heads.adaptor.parameters())
        rest = [p for name, p in self.heads.named_parameters() if not name.startswith("adaptor.")]
        groups = [{"params": adaptor, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 1e-5}]
        optimizer = CosineAdamW(groups, self.section.learning_rate or LEARNING_RATE, steps)
        return [Stage("heads", steps, [Phase("fit", self.heads, optimizer, self._losses, clip=1.0)])]

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Images, and where the map sees defects: P(NG) of each place, black to white."""
        heat = torch.sigmoid(self._detector(images)[1].float()) * 2 - 1
        return torch.cat([images, heat.expand_as(images)])

    def _features(self, images: Tensor) -> Tensor:
        return self._detector.features(self._detector.backbone(images))

    def _losses(self, batch: Batch) -> Losses:
        truth = batch.truth if isinstance(batch, LabelledBatch) else None
        features, defect = self._batch_features(batch)
        labels = batch.labels.float()
        adapted, noisy = self._noised(self.heads.adapt(features), labels)
        score, places = self.heads(adapted)
        score, places = score.float(), places.float()
        weights = torch.ones_like(labels) if truth is None else truth.weights
        located = torch.ones_like(labels) if truth is None else truth.located.float()
        target = torch.maximum((defect >= 0.5).float(), noisy)
        # A place with a sliver of a defect is neither.
        known = ((defect >= 0.5) | (defect <= 0) | (noisy > 0)).float()
        of_place = focal_terms(places, target, self.training.focus)
        if self.training.truncation:
            of_place = of_place + self.training.truncation * truncated_l1(places, target)
        dense = weighted_mean(of_place, known * (weights * located)[:, None, None, None])
        image_label = torch.maximum(labels, noisy.amax((1, 2, 3)))
        image = weighted_mean(focal_terms(score, image_label, self.training.focus), weights)
        return {"total": image + self.training.map_weight * dense, "image": image, "map": dense}

    def _batch_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if self._views is not None:
            features, defect = self._views.sample(cast(Tensor, batch.indices))
            return features.to(batch.images.device), defect.to(batch.images.device)
        images = batch.images
        masks = images.new_zeros(len(images), 1, *images.shape[2:])
        if isinstance(batch, LabelledBatch):
            masks = batch.truth.masks.float() / 255
        images, moved = augmented(images, masks, self.augment or AugmentSection())
        with torch.no_grad():
            features = self._features(images)
        return features, F.adaptive_max_pool2d(cast(Tensor, moved), features.shape[2:])

    def _noised(self, adapted: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Noise on some OK images' features, inside regions; and these regions, [N, 1, h, w]."""
        n, _, rows, columns = adapted.shape
        device = adapted.device
        noise = perlin_noise(n, rows, columns, finest=2.0, device=device)
        # A region is the highest third to twentieth of an image's noise field.
        share = 0.02 + 0.28 * torch.rand(n, 1, device=device) ** 2
        ranked = noise.flatten(1).sort(1, descending=True).values
        level = ranked.gather(1, (share * rows * columns).long().clamp(max=rows * columns - 1))
        chosen = (torch.rand(n, device=device) < self.training.noisy_share) & (labels == 0)
        region = (noise > level[:, :, None]) & chosen[:, None, None]
        noisy = region[:, None].to(adapted.dtype)
        return adapted + noisy * self.training.noise * torch.randn_like(adapted), noisy
