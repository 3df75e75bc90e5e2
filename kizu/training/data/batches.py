"""Training images in memory, in an order that is a pure function of seed and position.

Notable here:
- Any position of the stream can be asked for directly, so a resumed run sees exactly the images it would have seen.
- With several processes, each takes its own slice of every global batch.
- Pixels stay uint8 until they are used, and stay on the device where they fit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from kizu.errors import UserError


class Batches:
    """An endless stream of batches of images in [−1, 1].

    Args:
        images: uint8 [M, C, H, W].
        batch_size: images per global batch, over all processes.
        seed: fixes the order.
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
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ):
        if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
            raise ValueError(f"expected uint8 [M, C, H, W] with M ≥ 1, not {images.dtype} {tuple(images.shape)}")
        if batch_size % world_size:
            raise UserError(
                f"A batch of {batch_size} images does not divide over {world_size} processes.",
                "Choose detector.batch_size in the recipe as a multiple of the number of processes.",
            )
        self.device = torch.device(device)
        self.images = images.to(self.device) if _fits(images, self.device) else images
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.position = 0
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __len__(self) -> int:
        """Images in the set."""
        return len(self.images)

    def next(self) -> Tensor:
        """The next batch: float32 [batch_size / world_size, C, H, W] on the device."""
        local = self.batch_size // self.world_size
        start = self.position * self.batch_size + self.rank * local
        self.position += 1
        indices = [self._index(i) for i in range(start, start + local)]
        return self.at(indices)

    def at(self, indices: list[int]) -> Tensor:
        """The images at these places of the set, float32 in [−1, 1]."""
        chosen = self.images[torch.tensor(indices, device=self.images.device)]
        return chosen.to(self.device, torch.float32) / 127.5 - 1

    def _index(self, place: int) -> int:
        epoch, offset = divmod(place, len(self.images))
        return self._order(epoch)[offset]

    def _permutation(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(len(self.images), generator=generator).tolist()


def _fits(images: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return images.numel() < free // 4
