"""How a classifier trains: on OK, real NG and synthetic NG (network: `kizu.models.classifier`).

Notable here:
- Every batch holds a fixed share of NG, however rare they are; the set is never reweighted instead.
- The image's label teaches through the pool, masks and boxes teach the map directly, both halves of it equally.
- Three losses: `bce`; `pauc` for the NG that score lowest; `neyman-pearson`, which bounds one error and lowers the
  other.
- AdamW with a warm-up and a cosine; the average of the weights scores. Its two calibration numbers are fitted once, on
  images held out of training, so the score is a logit that means what it says. Calibration and test stay unseen.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.optim import AdamW

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.classifier import PRESETS, Classifier, ClassifierConfig, ResNetBackbone
from kizu.training import options
from kizu.training.augment.classic import augmented
from kizu.training.data.batches import Batch, LabelledBatch
from kizu.training.loop import Ema, Losses, Phase, Stage
from kizu.training.recipe import AugmentSection, DetectorSection

SIZE = ("height", "width", "channels")
STEEPEST = 50.0
"""Bound of the fitted slope and of its inverse: even scores that tell nothing keep their order."""


@dataclass(frozen=True)
class ClassifierTraining:
    """How it trains; fields are options of `[detector.options]`."""

    loss: str = "bce"
    """`bce`, `pauc` or `neyman-pearson`."""
    ng_share: float = 0.5
    """Share of NG in every batch."""
    fnr: float = 0.1
    """`pauc`: share of the NG, those that score lowest, that are ranked. `neyman-pearson`: the bound on missed NG."""
    multiplier: float = 4.0
    """`neyman-pearson`: λ, what exceeding the bound costs."""
    dense_weight: float = 1.0
    """Weight of the map's loss where defects are located; 0: none."""
    label_smoothing: float = 0.0
    """ε: labels are 1 − ε/2 and ε/2."""
    synthetic_weight: float = 1.0
    """Weight of a synthetic image in the loss."""
    synthetic_ratio: float = 1.0
    """At most this many synthetic NG per real one in a batch; 0: none."""
    weight_decay: float = 0.05
    ema_decay: float = 0.998
    weights: str | None = None
    """A local file with torchvision's weights of the backbone; left out: from scratch."""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {self.loss!r}")
        bounds = {"ng_share": (0, 1), "fnr": (0, 1), "label_smoothing": (-1e-9, 1), "ema_decay": (-1e-9, 1)}
        for name, (low, high) in bounds.items():
            if not low < getattr(self, name) < high:
                raise ValueError(f"{name} must lie between {max(low, 0)} and {high}, not {getattr(self, name)}")
        for name in ("multiplier", "dense_weight", "synthetic_weight", "synthetic_ratio", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Σ w·v / Σ w; 0 where no weight is left."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-12)


def bce(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Weighted mean of −t·log σ(s) − (1 − t)·log(1 − σ(s)), t = y·(1 − ε) + ε/2 (smoothing: Szegedy et al. 2016)."""
    targets = labels * (1 - smoothing) + smoothing / 2
    return weighted_mean(F.binary_cross_entropy_with_logits(logits, targets, reduction="none"), weights)


def partial_auc(logits: Tensor, labels: Tensor, weights: Tensor, share: float) -> Tensor:
    """Weighted mean over pairs of softplus(s_OK − s_NG), of every OK with the ⌈share · n⌉ NG that score lowest.

    The area over FNR ≤ `share` counts just these pairs (Narasimhan & Agarwal, "A structural SVM based approach for
    optimizing partial AUC", 2013, with the classes' roles exchanged), here with a logistic surrogate of a pair's order.
    """
    ng, ok = labels > 0.5, labels <= 0.5
    if not ng.any() or not ok.any():
        return logits.sum() * 0
    lowest = logits[ng].topk(max(1, math.ceil(share * int(ng.sum()) - 1e-9)), largest=False)
    pairs = F.softplus(logits[ok][None] - lowest.values[:, None])
    return weighted_mean(pairs, weights[ng][lowest.indices][:, None] * weights[ok][None])


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
    """½·(mean of −log σ(m) over defect places + mean of −log(1 − σ(m)) over clear ones), of located images.

    A place is defect if a pixel under it is at least half defect, and clear if none is defect at all.

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


class CosineAdamW(AdamW):
    """AdamW whose rate climbs linearly over the first twentieth of `steps` and falls as a half cosine to zero.

    How many steps were taken is in its state, so a resumed run goes on where it stopped.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], rate: float, steps: int):
        super().__init__([{**group, "taken": 0} for group in groups], lr=rate)
        self.peak, self.steps = rate, steps

    def step(self, closure: Any = None) -> Any:
        """One update."""
        for group in self.param_groups:
            group["lr"] = self.peak * cosine(group["taken"], self.steps)
            group["taken"] += 1
        return super().step(closure)


def cosine(step: int, steps: int) -> float:
    """Share of the peak rate at a step (Loshchilov & Hutter 2017, equation 5, without restarts)."""
    warmup = steps // 20
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))


def fit_logit(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """(a, b) with a > 0 such that σ(a·s + b) fits the labels (Platt 1999, with his smoothed targets).

    The targets (n_NG + 1) / (n_NG + 2) and 1 / (n_OK + 2) keep both finite where the scores separate the labels.
    """
    s, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    ng, ok = y.sum(), (1 - y).sum()
    targets = np.where(y > 0.5, (ng + 1) / (ng + 2), 1 / (ok + 2))
    middle, spread = s.mean(), s.std() or 1.0
    z = (s - middle) / spread

    def loss(p: np.ndarray) -> tuple[float, np.ndarray]:
        slope = math.exp(p[0])
        logits = slope * z + p[1]
        residual = 0.5 * (1 + np.tanh(logits / 2)) - targets
        value = float(np.mean(np.logaddexp(0, logits) - targets * logits))
        return value, np.array([np.mean(residual * z) * slope, np.mean(residual)])

    limit = math.log(STEEPEST)
    found = minimize(loss, np.zeros(2), jac=True, bounds=[(-limit, limit), (None, None)], method="L-BFGS-B")
    slope = math.exp(found.x[0]) / spread
    return float(slope), float(found.x[1] - slope * middle)


class ClassifierMethod:
    """One stage, one phase; `average` is what scores."""

    learns_from_ng = True

    def __init__(self, geometry: InputGeometry, section: DetectorSection):
        self.config, self.training = configure(geometry, section)
        self.section = section
        self.augment = AugmentSection()
        self.notes: list[str] = []
        """What a person should know of how it was made."""
        classifier = Classifier(self.config)
        if self.training.weights is not None:
            if not isinstance(classifier.backbone, ResNetBackbone):
                raise UserError(
                    "detector.options.weights: the backbone 'plain' has no weights to start from.",
                    "Choose the preset resnet18 or resnet34, or leave weights out.",
                )
            self.notes.append(load_backbone(classifier.backbone, Path(self.training.weights)))
        self.networks = nn.ModuleDict({"classifier": classifier, "average": copy.deepcopy(classifier)})
        self._last_logits: Tensor | None = None

    @property
    def classifier(self) -> Classifier:
        """The network that trains."""
        return cast(Classifier, self.networks["classifier"])

    @property
    def average(self) -> Classifier:
        """The network that scores."""
        return cast(Classifier, self.networks["average"])

    def detector(self) -> nn.Module:
        """The average."""
        return self.average

    def stages(self, images: int) -> list[Stage]:
        """`epochs` passes, counted in the camera's images."""
        steps = max(1, round(self.section.epochs * images / self.section.batch_size))
        parameters = list(self.classifier.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.training.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = CosineAdamW(groups, self.section.learning_rate or 2e-3, steps)
        phase = Phase("fit", self.classifier, optimizer, self._losses)
        average = Ema(self.classifier, self.average, self.training.ema_decay)
        return [Stage("classifier", steps, [phase], averages=[average], problem=self._collapse)]

    @torch.no_grad()
    def samples(self, images: Tensor) -> Tensor:
        """Images, and where the average sees defects: P(NG) of each place, black to white."""
        heat = torch.sigmoid(self.average(images)[1].float()) * 2 - 1
        return torch.cat([images, heat.expand_as(images)])

    @torch.no_grad()
    def calibrate(self, images: Tensor, owners: Tensor, labels: Tensor) -> None:
        """Fit `slope` and `offset` on images that did not train; an image scores as its worst tile.

        Args:
            images: uint8 [M, C, h, w].
            owners: which image each tile is of, int64 [M].
            labels: of the images, 0 or 1, int64 [K].
        """
        self.average.eval()
        device = self.average.slope.device
        pieces = [
            self.average.pooled(self.average.logits(piece.to(device, torch.float32) / 127.5 - 1)).float().cpu()
            for piece in images.split(64)
        ]
        scores = torch.full((len(labels),), -torch.inf).scatter_reduce(0, owners, torch.cat(pieces), "amax")
        slope, offset = fit_logit(scores.numpy(), labels.numpy())
        self.average.slope.fill_(slope)
        self.average.offset.fill_(offset)
        ng = int(labels.sum())
        self.notes.append(f"scores calibrated on {len(labels) - ng} OK and {ng} NG held out of training")

    def _losses(self, batch: Batch) -> Losses:
        truth = batch.truth if isinstance(batch, LabelledBatch) else None
        masks = None if truth is None else truth.masks.float() / 255
        images, masks = augmented(batch.images, masks, self.augment)
        labels = batch.labels.float()
        weights = torch.ones_like(labels) if truth is None else truth.weights
        places = self.classifier.logits(images).float()
        logits = self.classifier.pooled(places)
        self._last_logits = logits.detach()
        image = LOSSES[self.training.loss](logits, labels, weights, self.training)
        if truth is None or masks is None or not self.training.dense_weight:
            return {"total": image}
        dense = dense_bce(places, masks, truth.located, weights)
        return {"total": image + self.training.dense_weight * dense, "image": image, "dense": dense}

    def _collapse(self) -> str | None:
        spread = cast(Tensor, self._last_logits).std().item()
        return "all images get the same score" if spread < 1e-6 else None


def configure(geometry: InputGeometry, section: DetectorSection) -> tuple[ClassifierConfig, ClassifierTraining]:
    """Both configurations, from the preset and `[detector.options]`.

    Raises:
        UserError: unknown preset or option, or a value out of range.
    """
    size = {"height": geometry.height, "width": geometry.width, "channels": geometry.channels}
    preset = options.preset(PRESETS, section.preset, f"detector '{section.kind}'")
    known = options.known_options(ClassifierConfig, *SIZE) + options.known_options(ClassifierTraining)
    options.check_names(section.options, sorted(known), "detector.options", f"'{section.kind}'")
    values = {**preset, **section.options}
    shape = options.configure(ClassifierConfig, size, values, "detector.options", least=1)
    return shape, options.configure(ClassifierTraining, {}, values, "detector.options")


def load_backbone(backbone: ResNetBackbone, path: Path) -> str:
    """Load torchvision's weights of a ResNet; returns what was and was not used of the file.

    Raises:
        UserError: the file is missing, is no file of weights, lacks one that is needed, or has one of another shape.
    """
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
    given |= {name: own[name] for name in own if name not in given and name.endswith(".num_batches_tracked")}
    missing = sorted(set(own) - set(given))
    differing = sorted(name for name in set(own) & set(given) if own[name].shape != given[name].shape)
    if missing or differing:
        shown = ", ".join((missing + differing)[:5])
        raise UserError(
            f"detector.options.weights: {path} does not fit: {len(missing)} of {len(own)} tensors are missing and "
            f"{len(differing)} have another shape ({shown}, …).",
            "Use the weights of the very backbone that detector.preset names.",
        )
    unused = sorted({name.split(".")[0] for name in set(given) - set(own)})
    backbone.load_state_dict({name: given[name] for name in own}, strict=True)
    return f"{len(own)} tensors from {path.name}; not needed of it: {', '.join(unused) or 'nothing'}"
