"""Training images in memory, in an order that is a pure function of seed and position.

Notable here:
- Any position of the stream can be asked for directly, so a resumed run sees exactly the images it would have seen.
- With several processes, each takes its own slice of every global batch.
- Pixels stay uint8 until they are used, and stay on the device where they fit; so does the order, a block of epochs at
  a time, so that a step never waits for the device.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from kizu.errors import UserError

BLOCK = 1 << 16
"""Places whose order is drawn at once, at least; whole epochs."""


class Batch(NamedTuple):
    """Images and what is known of each."""

    images: Tensor
    """float32 [N, C, H, W] in [−1, 1]."""
    labels: Tensor
    """Class numbers, int64 [N]; zeros where the set has no labels."""


class Batches:
    """An endless stream of batches.

    Args:
        images: uint8 [M, C, H, W].
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
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(f"expected uint8 [M, C, H, W] with M ≥ 1, not {images.dtype} {tuple(images.shape)}")
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
        self._epochs_per_block = -(-BLOCK // len(images))
        self._order = lru_cache(maxsize=2)(self._draw_block)

    def __len__(self) -> int:
        """Images in the set."""
        return len(self.images)

    def next(self) -> Batch:
        """The next batch of batch_size / world_size images, on the device."""
        local = self.batch_size // self.world_size
        start = self.position * self.batch_size + self.rank * local
        self.position += 1
        return self.at(self._places(start, local))

    def at(self, indices: Tensor) -> Batch:
        """The images at these places of the set, int64 [N]."""
        pixels = self.images[indices.to(self.images.device)]
        images = pixels.to(self.device, torch.float32) / 127.5 - 1
        return Batch(images, self.labels[indices.to(self.labels.device)])

    def _places(self, start: int, count: int) -> Tensor:
        size = self._epochs_per_block * len(self.images)
        pieces = []
        while count:
            block, offset = divmod(start, size)
            piece = self._order(block)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _draw_block(self, block: int) -> Tensor:
        first = block * self._epochs_per_block
        return torch.cat([self._permutation(first + i) for i in range(self._epochs_per_block)]).to(self.images.device)

    def _permutation(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(len(self.images), generator=generator)


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() < free // 4
