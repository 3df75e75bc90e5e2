"""Training images in memory, in an order that is a pure function of seed and position.

Notable here:
- Any position of the stream can be asked for directly, so a resumed run sees exactly the images it would have seen.
- With several processes, each takes its own slice of every global batch.
- Where labels are rare, a batch holds so many of each stratum exactly; each stratum has an order of its own, in which
  every image comes once before any comes twice.
- Pixels stay as they are stored until they are used, and stay on the device where they fit; so does the order, a block
  of epochs at a time, so that a step never waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kizu.errors import UserError

BLOCK = 1 << 16
"""Indices whose order is sampled at once, at least; whole epochs."""


class Batch(NamedTuple):
    """Images and their class numbers."""

    images: Tensor
    """float32 [N, C, H, W] in [−1, 1]."""
    labels: Tensor
    """Class numbers, int64 [N]; zeros where the set has no labels."""
    indices: Tensor | None = None
    """Which images of the set they are, int64 [N]; None where they are of none."""


@dataclass(frozen=True)
class Truth:
    """Ground truth of images in addition to their labels."""

    masks: Tensor
    """Share of each pixel that is defect: uint8 [N, 1, H, W], 255 being all of it; zeros where it is not known."""
    located: Tensor
    """Whether the mask is known, bool [N]."""
    weights: Tensor
    """Weight in the loss, float32 [N]."""
    defects: Tensor
    """Numbers of the defect classes, int64 [N]: 0 for OK, from 1 for defects, −1 where it is not known."""
    synthetic: Tensor
    """Whether a generator made the image, bool [N]."""


class LabelledBatch(Batch):
    """A batch with ground truth beyond labels."""

    truth: Truth

    def __new__(cls, images: Tensor, labels: Tensor, truth: Truth, indices: Tensor | None = None) -> LabelledBatch:
        """Images and labels that carry `truth`."""
        batch = super().__new__(cls, images, labels, indices)
        batch.truth = truth
        return batch

    def _replace(self, **fields: Any) -> LabelledBatch:
        values = self._asdict() | fields
        return LabelledBatch(values["images"], values["labels"], self.truth, values["indices"])


class Stratum(NamedTuple):
    """Images of one sort, and how many of them a global batch holds."""

    members: Tensor
    """Their indices in the set, int64 [K], K ≥ 1."""
    per_batch: int


class Batches:
    """An endless stream of batches.

    Args:
        images: pixels from 0 to 255, uint8 or float32 [M, C, H, W].
        batch_size: images per global batch, over all processes.
        seed: fixes the order.
        labels: class numbers, int64 [M].
        rank, world_size: this process and how many there are.

    Raises:
        UserError: `batch_size` does not divide evenly over the processes.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        seed: int,
        *,
        labels: Tensor | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if images.dtype not in (torch.uint8, torch.float32) or images.ndim != 4 or not len(images):
            raise ValueError(
                f"expected uint8 or float32 [M, C, H, W] with M ≥ 1, not {images.dtype} {tuple(images.shape)}"
            )
        if labels is not None and labels.shape != images.shape[:1]:
            raise ValueError(f"{tuple(labels.shape)} labels for {len(images)} images")
        if batch_size % world_size:
            raise UserError(
                f"A batch of {batch_size} images does not divide over {world_size} processes.",
                "Choose batch_size in the recipe as a multiple of the number of processes.",
            )
        self.device = torch.device(device)
        self.images = images.to(self.device) if _fits(images, self.device) else images
        self.labels = (torch.zeros(len(images), dtype=torch.int64) if labels is None else labels).to(self.device)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.position = 0
        self.epoch = len(images)
        """Images that count as one pass."""
        self._epochs_per_block = -(-BLOCK // len(images))
        self._order = lru_cache(maxsize=2)(self._shuffle_block)

    def __len__(self) -> int:
        """Images in the set."""
        return len(self.images)

    def next(self) -> Batch:
        """The next batch of batch_size / world_size images, on the device."""
        local = self.batch_size // self.world_size
        start = self.position * self.batch_size + self.rank * local
        self.position += 1
        return self.at(self._indices(start, local))

    def at(self, indices: Tensor) -> Batch:
        """Return the images at these indices of the set, int64 [N]."""
        pixels = self.images[indices.to(self.images.device)]
        images = pixels.to(self.device, torch.float32) / 127.5 - 1
        return Batch(images, self.labels[indices.to(self.labels.device)], indices)

    def _indices(self, start: int, count: int) -> Tensor:
        size = self._epochs_per_block * len(self.images)
        pieces = []
        while count:
            block, offset = divmod(start, size)
            piece = self._order(block)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _shuffle_block(self, block: int) -> Tensor:
        first = block * self._epochs_per_block
        return torch.cat([self._permutation(first + i) for i in range(self._epochs_per_block)]).to(self.images.device)

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(len(self.images), generator=generator)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() * images.element_size() < free // 4


class LabelledBatches(Batches):
    """Batches of a set in which each stratum has its exact share, with masks and weights.

    Args:
        images, seed, labels, device, rank, world_size: as `Batches`.
        masks: uint8 [K, 1, H, W]; the first is empty.
        mask_of: which of them is an image's, int64 [M]; −1 where its defects are not located.
        weights: float32 [M].
        defects: numbers of the defect classes, int64 [M]; left out, they are the labels.
        synthetic: which a generator made, bool [M]; left out, none.
        strata: what a global batch holds of what, in sum the batch.
        epoch: images that count as one pass, so that it does not depend on how many synthetic ones there are.
    """

    def __init__(
        self,
        images: Tensor,
        seed: int,
        *,
        labels: Tensor,
        masks: Tensor,
        mask_of: Tensor,
        weights: Tensor,
        strata: Sequence[Stratum],
        epoch: int,
        defects: Tensor | None = None,
        synthetic: Tensor | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        batch_size = sum(stratum.per_batch for stratum in strata)
        super().__init__(images, batch_size, seed, labels=labels, device=device, rank=rank, world_size=world_size)
        self.masks = masks.to(self.device) if _fits(masks, self.device) else masks
        self.mask_of = mask_of.to(self.device)
        self.weights = weights.to(self.device)
        self.defects = self.labels if defects is None else defects.to(self.device)
        synthetic = torch.zeros(len(images), dtype=torch.bool) if synthetic is None else synthetic
        self.synthetic = synthetic.to(self.device)
        self.strata = [Stratum(s.members.cpu(), s.per_batch) for s in strata if s.per_batch]
        self.epoch = epoch
        # Strata alternate evenly, so that every process's slice has nearly the same shares.
        position = torch.cat([(torch.arange(s.per_batch) + 0.5) / s.per_batch for s in self.strata])
        self._interleaved = position.argsort(stable=True)
        self._stratum_order = lru_cache(maxsize=4 * len(self.strata))(self._permuted)

    def at(self, indices: Tensor) -> LabelledBatch:
        """Return the images at these indices of the set, int64 [N]."""
        images, labels, _ = super().at(indices)
        indices = indices.to(self.device)
        mask_of = self.mask_of[indices]
        masks = self.masks[mask_of.clamp(min=0).to(self.masks.device)].to(self.device)
        known = (self.weights, self.defects, self.synthetic)
        truth = Truth(masks, mask_of >= 0, *(of_set[indices] for of_set in known))
        return LabelledBatch(images, labels, truth, indices)

    def _indices(self, start: int, count: int) -> Tensor:
        batch, offset = divmod(start, self.batch_size)
        sampled = [self._sample(i, batch * s.per_batch, s.per_batch) for i, s in enumerate(self.strata)]
        return torch.cat(sampled)[self._interleaved[offset : offset + count]].to(self.images.device)

    def _sample(self, stratum: int, start: int, count: int) -> Tensor:
        """Return indices `start` … `start + count` of a stratum's own endless stream."""
        size = len(self.strata[stratum].members)
        positions = [divmod(start + i, size) for i in range(count)]
        return torch.stack([self._stratum_order(stratum, epoch)[position] for epoch, position in positions])

    def _permuted(self, stratum: int, epoch: int) -> Tensor:
        members = self.strata[stratum].members
        seed = (self.seed * 1_000_003 + epoch) * 31 + stratum + 1
        return members[torch.randperm(len(members), generator=torch.Generator().manual_seed(seed % 2**63))]


def apportion(
    batch_size: int, ng_share: float, ng: int, synthetic: int, ratio: float, *, synthetic_is_ng: bool = True
) -> tuple[int, int, int]:
    """Return how many OK, real NG and synthetic NG a batch holds.

    NG are `ng_share` of it, rounded, with at least one of either label. Of these, there are at most `ratio` synthetic
    per real NG (rounded down), and never so many that a synthetic image came more often than a real one; without real
    NG, all are synthetic.

    Args:
        ng: real NG in the set.
        synthetic: synthetic NG in the set.
        synthetic_is_ng: whether synthetic NG count among the NG's share; if not, they are beside the labelled images,
            of which real NG are `ng_share`.
    """
    if not synthetic_is_ng:
        per_image = ng_share * min(ratio, synthetic / ng) if ng else 0.0
        generated = min(int(batch_size * per_image / (1 + per_image) + 1e-9), batch_size - 2)
        ok, real, _ = apportion(batch_size - generated, ng_share, ng, 0, 0.0)
        return ok, real, generated
    positives = min(max(round(ng_share * batch_size), 1), batch_size - 1)
    if not ng:
        return batch_size - positives, 0, positives
    per_real = min(ratio, synthetic / ng)
    generated = min(int(positives * per_real / (1 + per_real) + 1e-9), positives - 1)
    return batch_size - positives, positives - generated, generated
