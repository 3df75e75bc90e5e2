"""Distance of generated images to real ones, their variety, and how many are copies: KID, FID, precision, recall.

Notable here:
- KID is the headline: unbiased at any number of images, hence negative about half the time where nothing differs. Its
  interval resamples images; the customary spread over subsets says nothing of the images that are not there.
- The Fréchet distance is called FID only for the network that FID is defined by, and is marked biased below 2 048.
- The floor is what KID gives for real against real: a KID inside it cannot be told from none.
- Copies are told by distances among the training images themselves, so no scale has to be known beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from kizu.models.rates import Rate
from kizu.training.evaluation.features import FeatureExtractor
from kizu.training.evaluation.ranking import RESAMPLES, Estimate

UNBIASED_FRECHET = 2048
"""Images of each kind below which the covariance of 2 048 Inception features has no full rank."""
COPY_QUANTILE = 0.01
# Up to here the bootstrap takes the full kernel matrices; above, the first-order terms, which suffice there.
_EXACT = 1000
# Of larger sets a random draw of this many is used.
_LARGEST = 10_000
_BLOCK = 1024

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class NearestTraining:
    """Distances of the fakes to training images, relative to the distances among training images."""

    distances: Floats = field(repr=False, compare=False)
    """[N], from each fake to its nearest training image."""
    indices: NDArray[np.intp] = field(repr=False, compare=False)
    """[N], which training image that is."""
    median: float
    train_median: float
    """Median of the distances from each training image to the nearest different one."""
    threshold: float
    """Their 1 % quantile."""
    near_copies: Rate
    """Fakes no farther from a training image than `threshold`."""
    fresh_share: float
    """About the share of images that would do so without being copies: 1 %, or 2 / n on n < 200 training images."""

    @property
    def median_ratio(self) -> float | None:
        """`median` / `train_median`: about 1 for fresh images, near 0 for copies; None if all training images agree."""
        return self.median / self.train_median if self.train_median > 0 else None

    @property
    def memorised(self) -> bool:
        """The lower bound of the rate of near copies is above three times `fresh_share`.

        Images without what is rare lie nearer to the training images than these do to each other: plain good parts,
        held against defective ones, showed up to five times `fresh_share`, and their lower bound under three times.
        """
        return self.near_copies.lower > 3 * self.fresh_share

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "median": self.median,
            "train_median": self.train_median,
            "median_ratio": self.median_ratio,
            "threshold": self.threshold,
            "near_copies": self.near_copies.as_dict(),
            "fresh_share": self.fresh_share,
            "memorised": self.memorised,
        }


@dataclass(frozen=True)
class SynthesisMetrics:
    """All figures of one set of generated images; None where the sets cannot give one."""

    extractor: str
    """Figures of different extractors cannot be compared."""
    n_real: int
    n_fake: int
    kid: Estimate
    floor: Estimate | None
    """KID of real against real, over halves of the real images; None with fewer than four."""
    fid: float | None
    """The Fréchet distance under the Inception network of 2015-12-05, else None."""
    frechet: float | None
    """The Fréchet distance under any other extractor, else None. Never to be called FID."""
    frechet_biased: bool
    """Fewer than 2 048 images of one kind: the Fréchet distance is too large, and more so the fewer there are."""
    precision: float
    recall: float
    nearest: NearestTraining | None
    """None where no training images were given."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; holds no NaN."""
        return {
            "extractor": self.extractor,
            "n_real": self.n_real,
            "n_fake": self.n_fake,
            "kid": self.kid.as_dict(),
            "floor": self.floor.as_dict() if self.floor else None,
            "fid": self.fid,
            "frechet": self.frechet,
            "frechet_biased": self.frechet_biased,
            "precision": self.precision,
            "recall": self.recall,
            "nearest": self.nearest.as_dict() if self.nearest else None,
        }


@dataclass(frozen=True)
class Reference:
    """Features of what generated images are compared with, computed once for any number of comparisons."""

    extractor: FeatureExtractor
    real: Floats
    """[M, d], M ≥ 2."""
    train: Floats | None
    """[L, d] of the images that the generator was trained on; None: nothing is said of copies."""
    floor: Estimate | None
    """`real_floor` of `real`; None with fewer than four."""
    seed: int

    @classmethod
    def of(cls, real: Tensor, extractor: FeatureExtractor, *, train: Tensor | None = None, seed: int = 0) -> Reference:
        """Extract features; arguments as of `compare_images`."""
        of_real = _features(extractor(real))
        of_train = None
        if train is not None and len(train) > 1:
            of_train = of_real if train is real else _features(extractor(train))
        floor = real_floor(of_real, seed=seed) if len(of_real) >= 4 else None
        return cls(extractor, of_real, of_train, floor, seed)

    def compare(self, fake: Tensor) -> SynthesisMetrics:
        """All figures of `fake`, uint8 [N, C, H, W], N ≥ 2."""
        of_fake = _features(self.extractor(fake))
        distance = fid(self.real, of_fake)
        precision, recall = precision_recall(self.real, of_fake)
        is_inception = self.extractor.is_inception
        return SynthesisMetrics(
            extractor=self.extractor.name,
            n_real=len(self.real),
            n_fake=len(of_fake),
            kid=kid(self.real, of_fake, seed=self.seed),
            floor=self.floor,
            fid=distance if is_inception else None,
            frechet=None if is_inception else distance,
            frechet_biased=min(len(self.real), len(of_fake)) < UNBIASED_FRECHET,
            precision=precision,
            recall=recall,
            nearest=None if self.train is None else nearest_training_distance(self.train, of_fake),
        )


def compare_images(
    real: Tensor, fake: Tensor, extractor: FeatureExtractor, *, train: Tensor | None = None, seed: int = 0
) -> SynthesisMetrics:
    """All figures of `fake` against `real`.

    Args:
        real: uint8 [M, C, H, W], M ≥ 2.
        fake: uint8 [N, C, H, W], N ≥ 2.
        extractor: what turns images into features.
        train: uint8 [L, C, H, W], what the generator was trained on; the same tensor as `real` is fine. Without it
            nothing is said of copies.
        seed: of the bootstrap and of the halvings.
    """
    return Reference.of(real, extractor, train=train, seed=seed).compare(fake)


def kid(real: ArrayLike | Tensor, fake: ArrayLike | Tensor, *, seed: int, confidence: float = 0.95) -> Estimate:
    """Kernel distance, the unbiased MMD² with k(x, y) = (x·y / d + 1)³ (Bińkowski et al. 2018, section 4).

    Args:
        real: [M, d], M ≥ 2.
        fake: [N, d], N ≥ 2.
        seed: fixes the resamples.
        confidence: in (0, 1).

    The two-sample U-statistic over all pairs: what a mean over subsets, of 1 000 or any size, estimates with noise.

    The interval is the percentile interval of 1 000 resamples of the images, real and fake each, where pairs of an
    image with itself are left out of the sums, however often it was drawn. In simulations of Gaussian features with
    20 and 60 images, it covered 88 to 99 % at 95 % confidence where the distributions differ; where they agree it is
    about 1.7 times as wide as need be, for the bootstrap counts twice what it sees of a projection that is zero.
    With more than 1 000 images each resample is the statistic's first-order term in the multiplicities.
    """
    x, y = _pair(real, fake)
    random = np.random.default_rng(seed)
    x, y = _subsample(x, _LARGEST, random), _subsample(y, _LARGEST, random)
    across = _row_sums(x, y) / len(y), _row_sums(y, x) / len(x)
    within = tuple((_row_sums(z, z) - _diagonal(z)) / (len(z) - 1) for z in (x, y))
    value = float(within[0].mean() + within[1].mean() - 2 * across[0].mean())
    w, v = (random.multinomial(len(z), np.full(len(z), 1 / len(z)), RESAMPLES).astype(np.float64) for z in (x, y))
    if max(len(x), len(y)) <= _EXACT:
        resampled = _weighted_within(x, w) + _weighted_within(y, v)
        resampled -= 2 * ((w @ _kernel(x, y)) * v).sum(axis=1) / (len(x) * len(y))
    else:
        resampled = value + 2 * (
            (w - 1) @ (within[0] - across[0]) / len(x) + (v - 1) @ (within[1] - across[1]) / len(y)
        )
    lower, upper = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    used = "" if max(len(x), len(y)) < _LARGEST else f" of at most {_LARGEST} images"
    method = f"bootstrap over images{used}, {RESAMPLES} resamples, seed {seed}"
    return Estimate(value, min(float(lower), value), max(float(upper), value), confidence, method)


def real_floor(real: ArrayLike | Tensor, *, seed: int, confidence: float = 0.95) -> Estimate:
    """KID between two disjoint halves of the same images: mean and percentiles over 1 000 random halvings.

    Args:
        real: [M, d], M ≥ 4.

    The mean comes out near zero whatever the images, as KID is unbiased; what counts is how far single halvings reach.
    They reach farther than KID would for M against M images, since a half has M / 2.
    """
    x = _features(real)
    if len(x) < 4:
        raise ValueError(f"two halves need at least 4 images, not {len(x)}")
    random = np.random.default_rng(seed)
    x = _subsample(x, 2 * _EXACT, random)
    first = np.zeros((RESAMPLES, len(x)))
    first[:, : len(x) // 2] = 1
    first = random.permuted(first, axis=1)
    second = 1 - first
    kernel = _kernel(x, x)
    np.fill_diagonal(kernel, 0)
    m, n = len(x) // 2, len(x) - len(x) // 2
    to_first = first @ kernel
    to_second = kernel.sum(axis=1) - to_first
    values = (to_first * first).sum(axis=1) / (m * (m - 1)) + (to_second * second).sum(axis=1) / (n * (n - 1))
    values -= 2 * (to_first * second).sum(axis=1) / (m * n)
    lower, upper = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    method = f"{RESAMPLES} random halvings into {m} and {n}, seed {seed}"
    return Estimate(float(values.mean()), float(lower), float(upper), confidence, method)


def fid(real: ArrayLike | Tensor, fake: ArrayLike | Tensor) -> float:
    """Fréchet distance of Gaussians fitted to the features: |μ − μ'|² + tr(Σ + Σ' − 2(ΣΣ')^½) (Heusel et al. 2017).

    Args:
        real: [M, d], M ≥ 2.
        fake: [N, d], N ≥ 2.

    Only with features of the 2015-12-05 Inception network is it FID. With Σ = AᵀA and Σ' = BᵀB the last trace is the
    sum of the singular values of ABᵀ, which needs no square root of a matrix that may lack full rank.
    """
    x, y = _pair(real, fake)
    shift = x.mean(axis=0) - y.mean(axis=0)
    roots = [np.asarray(np.linalg.qr((z - z.mean(axis=0)) / np.sqrt(len(z) - 1), mode="r")) for z in (x, y)]
    trace = sum(float(np.square(root).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    return max(0.0, float(shift @ shift) + trace - 2 * shared)


def precision_recall(real: ArrayLike | Tensor, fake: ArrayLike | Tensor, k: int = 3) -> tuple[float, float]:
    """The share of fakes within the real images' manifold, and of real images within the fakes' (Kynkäänniemi 2019).

    Args:
        real: [M, d], M ≥ 2.
        fake: [N, d], N ≥ 2.
        k: which neighbour's distance is the radius of the ball around an image; at most M − 1 and N − 1 are used.

    Both depend on M and N: compare them at the same numbers only.
    """
    x, y = _pair(real, fake)
    return _share_within(y, x, k), _share_within(x, y, k)


def nearest_training_distance(train: ArrayLike | Tensor, fake: ArrayLike | Tensor) -> NearestTraining:
    """Distance of each fake to the nearest training image, beside the training images' distances to each other.

    Args:
        train: [L, d], L ≥ 2.
        fake: [N, d].

    Training images that are the same but for rounding do not count as each other's neighbours, so a set with
    duplicates still has a scale.
    """
    x, y = _pair(train, fake)
    indices, distances = _nearest(y, x)
    same = 1e-4 * np.sqrt(x.var(axis=0).sum())
    _, apart = _nearest(x, x, farther_than=same)
    apart = apart[apart > same]
    threshold = float(np.quantile(apart, COPY_QUANTILE)) if apart.size else 0.0
    return NearestTraining(
        distances=distances,
        indices=indices,
        median=float(np.median(distances)),
        train_median=float(np.median(apart)) if apart.size else 0.0,
        threshold=threshold,
        near_copies=Rate(int(np.count_nonzero(distances <= threshold)), len(distances)),
        fresh_share=_fresh_share(apart.size),
    )


def _kernel(x: Floats, y: Floats) -> Floats:
    return _cube(x @ y.T / x.shape[1] + 1)


def _diagonal(x: Floats) -> Floats:
    """[M], the kernel of each image with itself."""
    return _cube(np.square(x).sum(axis=1) / x.shape[1] + 1)


def _cube(x: Floats) -> Floats:
    # Several times as fast as x ** 3.
    return x * x * x


def _row_sums(x: Floats, y: Floats) -> Floats:
    """[M], Σⱼ k(xᵢ, yⱼ), in blocks of rows."""
    return np.concatenate([_kernel(x[i : i + _BLOCK], y).sum(axis=1) for i in range(0, len(x), _BLOCK)])


def _weighted_within(x: Floats, w: Floats) -> Floats:
    """Σᵢ≠ⱼ wᵢwⱼkᵢⱼ / Σᵢ≠ⱼ wᵢwⱼ for each row of multiplicities w: [B, M] → [B]."""
    kernel = _kernel(x, x)
    np.fill_diagonal(kernel, 0)
    pairs = np.square(w.sum(axis=1)) - np.square(w).sum(axis=1)
    # Of two or three images a resample may be one image alone, which has no pair and says nothing: 0 / 1.
    within: Floats = ((w @ kernel) * w).sum(axis=1) / np.maximum(pairs, 1)
    return within


def _share_within(points: Floats, manifold: Floats, k: int) -> float:
    """Share of `points` that lie in a ball around any of `manifold`, as wide as its distance to its k-th neighbour."""
    k = min(k, len(manifold) - 1)
    # Place k of the sorted distances, for at place 0 is the image itself.
    radii = [np.partition(_squared(manifold, i, manifold), k, axis=1)[:, k] for i in _starts(manifold)]
    radius = np.concatenate(radii)
    inside = [(_squared(points, i, manifold) <= radius).any(axis=1) for i in _starts(points)]
    return float(np.concatenate(inside).mean())


def _nearest(points: Floats, among: Floats, farther_than: float = -1.0) -> tuple[NDArray[np.intp], Floats]:
    """Return which of `among` is nearest to each of `points`, and its distance, among those beyond `farther_than`.

    Shapes: [N, d] and [L, d] → [N] and [N].
    """
    indices = []
    for start in _starts(points):
        squared = _squared(points, start, among)
        if farther_than >= 0:
            squared[squared <= farther_than**2] = np.inf
        indices.append(squared.argmin(axis=1))
    nearest = np.concatenate(indices)
    # Taken again from the difference, since the expanded square loses the small ones to rounding.
    return nearest, np.linalg.norm(points - among[nearest], axis=1)


def _fresh_share(size: int) -> float:
    """Nearest neighbours come in pairs that share a distance, so the quantile moves on by a pair, never by one."""
    return min(1.0, 2 * (COPY_QUANTILE * size // 2 + 1) / size) if size else 1.0


def _starts(x: Floats) -> range:
    return range(0, len(x), _BLOCK)


def _squared(points: Floats, start: int, others: Floats) -> Floats:
    """Squared distances of the block of `points` from `start` to all `others`: [≤ 1024, L]."""
    block = points[start : start + _BLOCK]
    return np.asarray(np.square(block).sum(axis=1)[:, None] + np.square(others).sum(axis=1) - 2 * block @ others.T)


def _subsample(x: Floats, most: int, random: np.random.Generator) -> Floats:
    return x if len(x) <= most else x[random.permutation(len(x))[:most]]


def _pair(real: ArrayLike | Tensor, fake: ArrayLike | Tensor) -> tuple[Floats, Floats]:
    x, y = _features(real), _features(fake)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} dimensions cannot be compared")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"at least 2 images of each kind are needed, not {len(x)} and {len(y)}")
    return x, y


def _features(features: ArrayLike | Tensor) -> Floats:
    array = features.detach().cpu().numpy() if isinstance(features, Tensor) else features
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"expected finite features [images, d], not shape {array.shape}")
    return array
