"""Features of a training set, computed once: a frozen backbone's maps of each image and of altered copies of it.

Notable here:
- Training a head then takes no pass through the backbone, and minutes on a CPU.
- Copies are altered as `[augment]` allows, their masks with them; the first copy of an image is the image itself.
- Copies are drawn by seeds of their own, so that a resumed run computes the same features.
- Kept as float16: rounding is far below the noise that training adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kizu.errors import UserError
from kizu.training.augment.classic import augmented
from kizu.training.data.batches import Batches, LabelledBatch, LabelledBatches
from kizu.training.data.pool import Progress
from kizu.training.recipe import AugmentSection

PIECE = 16
"""Images that go through the backbone at once."""
MOST_IMAGES = 4000
"""OK images that statistics are taken from, at most: more of them cost minutes and move no digit that matters."""


@dataclass(frozen=True)
class FeatureViews:
    """Features of the views of each image of a set."""

    features: Tensor
    """float16 [V, D, h, w], the views of an image one after the other."""
    defect: Tensor
    """Largest share of defect of a pixel in each place, uint8 [V, 1, h, w], 255 being all; zeros where not known."""
    first: Tensor
    """Each image's first view, int64 [M]."""
    count: Tensor
    """Each image's number of views, int64 [M]."""

    def sample(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """One view of each of these images: float32 [N, D, h, w] and share of defect, in [0, 1], [N, 1, h, w]."""
        indices = indices.to(self.features.device)
        offset = (torch.rand(len(indices), device=indices.device) * self.count[indices]).long()
        views = self.first[indices] + offset
        return self.features[views].float(), self.defect[views].float() / 255


def feature_views(
    batches: Batches,
    embed: Callable[[Tensor], Tensor],
    views: Tensor,
    augment: AugmentSection,
    seed: int,
    progress: Progress | None = None,
) -> FeatureViews:
    """Compute the features of a set's images and of altered copies.

    Args:
        embed: images [N, C, H, W] in [−1, 1] → features [N, D, h, w].
        views: how many views each image gets, int64 [M], at least 1.
        seed: of the alterations.
        progress: called with the number of views that were added.
    """
    first = torch.cat([torch.zeros(1, dtype=torch.int64), views.cumsum(0)[:-1]])
    owners = torch.repeat_interleave(torch.arange(len(views)), views)
    altered = torch.arange(len(owners)) > first[owners]
    features: Tensor | None = None
    defect: Tensor | None = None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for piece in torch.split(torch.arange(len(owners)), PIECE):
            images, masks = _images(batches, owners[piece], altered[piece], augment)
            found = embed(images).to(torch.float16)
            of_place = F.adaptive_max_pool2d(masks, found.shape[2:]).mul(255).round().to(torch.uint8)
            if features is None or defect is None:
                features = found.new_zeros(len(owners), *found.shape[1:])
                defect = of_place.new_zeros(len(owners), *of_place.shape[1:])
            features[piece], defect[piece] = found, of_place
            if progress is not None:
                progress(len(piece))
    assert features is not None
    assert defect is not None
    return FeatureViews(features, defect, first.to(features.device), views.to(features.device))


def feature_pieces(batches: Batches, embed: Callable[[Tensor], Tensor], indices: Tensor) -> Iterator[Tensor]:
    """Features of these images of a set as they are, some at a time: [n, D, h, w] each."""
    with torch.no_grad():
        for piece in torch.split(indices.cpu(), PIECE):
            yield embed(batches.at(piece).images)


def ok_images(batches: Batches, seed: int = 0) -> Tensor:
    """Indices of images that are known to be OK (not of tiles that show a sliver of a defect), in order.

    Of more than `MOST_IMAGES`, so many are drawn by `seed`.

    Raises:
        UserError: there is none.
    """
    chosen = batches.labels == 0
    if isinstance(batches, LabelledBatches):
        chosen = chosen & (batches.defects == 0)
    found = torch.nonzero(chosen)[:, 0].cpu()
    if not len(found):
        raise UserError("The train split has no OK image.", "Label some images OK.")
    if len(found) <= MOST_IMAGES:
        return found
    return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:MOST_IMAGES]].sort().values


def _images(batches: Batches, owners: Tensor, altered: Tensor, augment: AugmentSection) -> tuple[Tensor, Tensor]:
    batch = batches.at(owners)
    images = batch.images
    masks = images.new_zeros(len(images), 1, *images.shape[2:])
    if isinstance(batch, LabelledBatch):
        masks = batch.truth.masks.float() / 255
    chosen = torch.nonzero(altered)[:, 0].to(images.device)
    if len(chosen):
        changed, moved = augmented(images[chosen], masks[chosen], augment)
        assert moved is not None
        images, masks = images.clone(), masks.clone()
        images[chosen], masks[chosen] = changed, moved
    return images, masks
