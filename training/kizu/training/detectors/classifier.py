"""Training of the classifier: on OK, real NG and synthetic NG (network: `kizu.models.classifier`).

Notable here:
- Every batch holds a fixed share of NG, however rare they are; the set is never reweighted instead.
- The image's label teaches through the pool, masks and boxes teach the map directly, both halves of it equally.
- A pretrained backbone is frozen while the head finds its place, then trains at a low rate with it.
- Three losses: `bce`; `pauc` for the NG that score lowest; `neyman-pearson`, which bounds one error and lowers the
  other.
- AdamW with a warm-up and a cosine; the average of the weights scores. Its two calibration numbers are fitted once, on
  images held out of training, so the score is a logit that means what it says. Calibration and test stay unseen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from kizu.errors import UserError
from kizu.models.backbones import PretrainedBackbone
from kizu.models.bundle import PretrainedWeights
from kizu.models.classifier import PRESETS, Classifier, ClassifierConfig, ResNetBackbone, TimmBackbone
from kizu.models.config import STRICT
from kizu.training.augment.classic import augmented
from kizu.training.data.batches import Batch, LabelledBatch, Truth
from kizu.training.detectors.calibration import calibrate
from kizu.training.detectors.method import DetectorContext, UnpreparedMethod
from kizu.training.loop import Ema, Losses, Phase, Stage
from kizu.training.losses import weighted_mean
from kizu.training.optimisers import CosineAdamW, decayed
from kizu.training.options import Presets
from kizu.training.pretrained import PretrainedOptions, described, fitting, load_pretrained
from kizu.training.recipe import AugmentSection
from kizu.training.training_set import Sampling, TrainingSet

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "falling": lambda done: 1 - done,
    "rising": lambda done: done,
}
"""Share of training done → what a synthetic image's weight is multiplied by."""


@dataclass(frozen=True, config=STRICT)
class ClassifierTraining:
    """Training options of `[detector.options]`."""

    loss: Literal["bce", "pauc", "neyman-pearson"] = "bce"
    """`bce`, `pauc` or `neyman-pearson`."""
    ng_share: float = Field(default=0.5, gt=0, lt=1)
    """Share of NG in every batch."""
    fnr: float = Field(default=0.1, gt=0, lt=1)
    """`pauc`: share of the NG, those that score lowest, that are ranked. `neyman-pearson`: the bound on missed NG."""
    multiplier: float = Field(default=4.0, ge=0)
    """`neyman-pearson`: λ, what exceeding the bound costs."""
    dense_weight: float = Field(default=1.0, ge=0)
    """Weight of the map's loss where defects are located; 0: none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε: labels are 1 − ε/2 and ε/2."""
    synthetic_weight: float = Field(default=1.0, ge=0)
    """Weight of a synthetic image in the loss."""
    synthetic_ratio: float = Field(default=1.0, ge=0)
    """At most this many synthetic NG per real one in a batch; 0: none."""
    synthetic_schedule: Literal["constant", "falling", "rising"] = "constant"
    """Weight of synthetic images over the training: `constant`, `falling` to nothing, or `rising` from it."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Of AdamW."""
    ema_decay: float = Field(default=0.998, ge=0, lt=1)
    """Decay of the averaged weights, which score."""
    weights: str | None = None
    """A local file with the backbone's weights: torchvision's for a ResNet, left out: from scratch; timm's for another
    network, left out: those of `tf_efficientnet_lite0` that come with Kizu."""
    backbone_rate: float = Field(default=0.1, ge=0, le=1)
    """Pretrained backbones: their learning rate, as a share of the head's; 0: they stay frozen."""
    head_share: float = Field(default=0.1, ge=0, le=1)
    """Pretrained backbones: share of the updates in which only the head trains."""

    @property
    def synthetic_is_ng(self) -> bool:
        """Always."""
        return True

    @property
    def needs_ng(self) -> bool:
        """Always: it tells two labels apart."""
        return True

    @property
    def unlabelled_share(self) -> float:
        """None: it learns from labels alone."""
        return 0.0


def bce(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Weighted mean of −t·log σ(s) − (1 − t)·log(1 − σ(s)), t = y·(1 − ε) + ε/2 (smoothing: Szegedy et al. 2016)."""
    targets = labels * (1 - smoothing) + smoothing / 2
    return weighted_mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), weights)


def partial_auc(logits: Tensor, labels: Tensor, weights: Tensor, share: float) -> Tensor:
    """Weighted mean over pairs of softplus(s_OK − s_NG), of every OK with the ⌈share · n⌉ NG that score lowest.

    The area over FNR ≤ `share` counts just these pairs (Narasimhan & Agarwal, "A structural SVM based approach for
    optimizing partial AUC", 2013, with the classes' roles exchanged), here with a logistic surrogate of a pair's order.
    """
    # In float64: a third of 3 NG is one of them, not two. Of equal logits any may be taken.
    ng, ok = (labels > 0.5).double(), (labels <= 0.5).to(weights.dtype)
    count = (share * ng.sum() - 1e-9).ceil().clamp(min=1)
    rank = logits.masked_fill(ng == 0, torch.inf).argsort(stable=True).argsort()
    lowest = ((rank < count) & (ng > 0)).to(weights.dtype)
    pairs = F.softplus(logits[None] - logits[:, None])
    return weighted_mean(pairs, (weights * lowest)[:, None] * (weights * ok)[None])


def neyman_pearson(logits: Tensor, labels: Tensor, weights: Tensor, bound: float, multiplier: float) -> Tensor:
    """R_OK + λ·max(0, R_NG − α), with R_OK and R_NG the means of log₂(1 + eˢ) over OK and log₂(1 + e⁻ˢ) over NG.

    min R_OK subject to R_NG ≤ α with convex surrogates that bound the error rates (Rigollet & Tong, "Neyman–Pearson
    classification, convexity and stochastic constraints", 2011), the constraint as an exact penalty: NG weigh λ while
    they exceed the bound, and nothing once they keep it.
    """
    missed = weighted_mean(F.softplus(-logits), weights * labels) / math.log(2)
    false_calls = weighted_mean(F.softplus(logits), weights * (1 - labels)) / math.log(2)
    return false_calls + multiplier * F.relu(missed - bound)


def dense_bce(logits: Tensor, masks: Tensor, located: Tensor, weights: Tensor) -> Tensor:
    """½·(mean of −log σ(m) over defect pixels of the map + mean of −log(1 − σ(m)) over clear ones), of located images.

    A pixel of the map is defect if an image pixel under it is at least half defect, clear if none is defect at all.

    Args:
        logits: [N, 1, h', w'].
        masks: in [0, 1], [N, 1, H, W].
        located: bool [N].
        weights: [N].
    """
    highest = F.adaptive_max_pool2d(masks, logits.shape[2:])
    of_image = (located * weights)[:, None, None, None]
    defect, clear = (highest >= 0.5) * of_image, (highest <= 0) * of_image
    return 0.5 * (weighted_mean(F.softplus(-logits), defect) + weighted_mean(F.softplus(logits), clear))


Loss = Callable[[Tensor, Tensor, Tensor, ClassifierTraining], Tensor]
LOSSES: dict[str, Loss] = {
    "bce": lambda s, y, w, t: bce(s, y, w, t.label_smoothing),
    # The ranking alone would leave the logits' level free.
    "pauc": lambda s, y, w, t: bce(s, y, w, t.label_smoothing) + partial_auc(s, y, w, t.fnr),
    "neyman-pearson": lambda s, y, w, t: neyman_pearson(s, y, w, t.fnr, t.multiplier),
}


class ClassifierMethod(UnpreparedMethod):
    """One stage, one phase; `average` is what scores."""

    uses_unlabelled = False
    learns_from_ng = True
    presets: ClassVar[Presets] = PRESETS
    configs: ClassVar[tuple[type, ...]] = (ClassifierConfig, ClassifierTraining)

    def __init__(self, context: DetectorContext):
        options = context.options(self.presets, *self.configs)
        self.config = options.make(ClassifierConfig, **context.size)
        self.training = options.make(ClassifierTraining)
        self.section = context.section
        self.sampling: Sampling | None = self.training
        self.augment: AugmentSection | None = AugmentSection()
        self.notes: list[str] = []
        """Remarks for the report on how it was made."""
        self._of_others: list[PretrainedWeights] = []
        loaded = self._load_pretrained()  # first: it says what is wrong with a backbone's name
        classifier = Classifier(self.config)
        if loaded is not None:
            cast(TimmBackbone, classifier.backbone).network.load_state_dict(loaded.state_dict())
        elif self.training.weights is not None:
            self.notes.append(load_backbone(classifier.backbone, Path(self.training.weights)))
        classifier.to(memory_format=torch.channels_last)  # on a CPU, too, a tenth to a quarter faster
        self.networks = nn.ModuleDict({"classifier": classifier, "average": copy.deepcopy(classifier)})
        self._last_logits: Tensor | None = None
        self._optimizer: CosineAdamW | None = None

    @property
    def classifier(self) -> Classifier:
        """The network that trains."""
        return cast(Classifier, self.networks["classifier"])

    @property
    def average(self) -> Classifier:
        """The network that scores."""
        return cast(Classifier, self.networks["average"])

    @property
    def pretrained(self) -> list[PretrainedWeights]:
        """The backbone's, which the run goes on training."""
        return self._of_others

    def detector(self) -> nn.Module:
        """The average."""
        return self.average

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes, counted in the camera's images."""
        steps = max(1, round(self.section.epochs * images / self.section.batch_size))
        if self.config.pretrained is None:
            return [self._stage("classifier", self.classifier, steps, decayed(self.classifier, self._decay))]
        first = min(steps - 1, round(self.training.head_share * steps)) if self.training.backbone_rate else steps
        head = decayed(self.classifier.head, self._decay)
        tuned = decayed(self.classifier.backbone, self._decay, self.training.backbone_rate)
        stages = [self._stage("head", self.classifier.head, first, head)] if first else []
        if first < steps:
            stages.append(self._stage("classifier", self.classifier, steps - first, [*head, *tuned]))
        return stages

    def _stage(self, name: str, trains: nn.Module, steps: int, groups: list[dict[str, Any]]) -> Stage:
        optimizer = self._optimizer = CosineAdamW(groups, self.section.learning_rate or 2e-3, steps)
        phase = Phase("fit", trains, optimizer, self._losses)
        average = Ema(self.classifier, self.average, self.training.ema_decay)
        return Stage(name, steps, [phase], averages=[average], problem=self._collapse)

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Images, and where the average sees defects: P(NG) of each place, black to white."""
        heat = torch.sigmoid(self.average(images)[1].float()) * 2 - 1
        return torch.cat([images, heat.expand_as(images)])

    @property
    def _decay(self) -> float:
        return self.training.weight_decay

    def _load_pretrained(self) -> PretrainedBackbone | None:
        if self.config.pretrained is None:
            return None
        backbone, weights = load_pretrained(self.config.pretrained, PretrainedOptions(self.training.weights))
        self._of_others = [weights.model_copy(update={"frozen": not self.training.backbone_rate})]
        self.notes.append(f"features: {described(weights)}")
        return backbone

    def finish(self, training: TrainingSet) -> None:
        """Calibrate on what was held out, if anything was."""
        if training.held_out is not None:
            self.notes.append(calibrate(self.average, training.held_out))

    def _losses(self, batch: Batch) -> Losses:
        truth = batch.truth if isinstance(batch, LabelledBatch) else None
        masks = None if truth is None else truth.masks.float() / 255
        images, masks = augmented(batch.images, masks, self.augment or AugmentSection())
        labels = batch.labels.float()
        weights = torch.ones_like(labels) if truth is None else self._weights(truth)
        logit_map = self.classifier.logits(images).float()
        logits = self.classifier.pooled(logit_map)
        self._last_logits = logits.detach()
        image = LOSSES[self.training.loss](logits, labels, weights, self.training)
        if truth is None or masks is None or not self.training.dense_weight:
            return {"total": image}
        dense = dense_bce(logit_map, masks, truth.located, weights)
        return {"total": image + self.training.dense_weight * dense, "image": image, "dense": dense}

    def _weights(self, truth: Truth) -> Tensor:
        done = 0.0 if self._optimizer is None else self._optimizer.done
        factor = SCHEDULES[self.training.synthetic_schedule](done)
        return torch.where(truth.synthetic, truth.weights * factor, truth.weights)

    def _collapse(self) -> str | None:
        spread = cast(Tensor, self._last_logits).std().item()
        return "all images get the same score" if spread < 1e-6 else None


def load_backbone(backbone: nn.Module, path: Path) -> str:
    """Load torchvision's weights of a ResNet; return a remark on what of the file was used.

    Raises:
        UserError: the backbone is none; the file is missing, is no file of weights, lacks one that is needed, or has
            one of another shape.
    """
    if not isinstance(backbone, ResNetBackbone):
        raise UserError(
            "detector.options.weights: no file of weights fits this backbone; it trains from scratch.",
            "Choose the preset resnet18 or resnet34, or leave weights out.",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"detector.options.weights: {path} cannot be read: {error}",
            "Give the path of a file that torchvision offers for this backbone; Kizu downloads nothing.",
        ) from error
    own = backbone.state_dict()
    given = (
        {name: value for name, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
    )
    remedy = "Use the weights of the very backbone that detector.preset names."
    backbone.load_state_dict(fitting(own, given, f"{path} does not fit", remedy, shown=5), strict=True)
    unused = sorted({name.split(".")[0] for name in set(given) - set(own)})
    return f"{len(own)} tensors from {path.name}; not needed of it: {', '.join(unused) or 'nothing'}"
