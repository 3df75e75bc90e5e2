"""The train split as the detector sees it: OK views to put defects into, and real NG views with their masks.

Notable here:
- A view is a whole image or a tile, through the very geometry that ships; synthetic NG made of views show what is
  inspected, whatever the recipe.
- Memory is bounded: of many images, or of large ones, a seeded sample of views is taken, spread over the images.
- No view comes from calibration or test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.crops import UNNAMED, ng_crops
from kizu.training.data.labelled import defect_share
from kizu.training.data.loading import to_pixels, training_tensor
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.pool import Progress, in_order

MOST_VIEWS = 4096
MOST_BYTES = 256 << 20


@dataclass(frozen=True)
class OkViews:
    """OK views and their scale."""

    images: Tensor
    """uint8 [M, C, h, w]."""
    scale: tuple[float, float]
    """Pixels of a view per pixel of the source, down and across: the median of the images."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class NgViews:
    """Real NG as the detector sees them."""

    images: Tensor
    """uint8 [K, C, h, w]."""
    masks: Tensor
    """uint8 [K, 1, h, w], 255 where a pixel is defect; all zero where it is not known."""
    classes: list[str]
    """Defect class of each; several are joined by `+`."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def located(self) -> Tensor:
        """Views whose defect pixels are known, bool [K]."""
        return (self.masks != 0).flatten(1).any(1)

    def only(self, chosen: Tensor) -> NgViews:
        """Return the views where `chosen`, bool [K], is true."""
        indices = chosen.nonzero()[:, 0]
        return NgViews(self.images[indices], self.masks[indices], [self.classes[i] for i in indices.tolist()])

    @property
    def counts(self) -> dict[str, int]:
        """Number of views of each class, by name."""
        return dict(sorted(Counter(self.classes).items()))


def ok_views(
    manifest: Manifest,
    rows: Sequence[Row],
    geometry: InputGeometry,
    *,
    seed: int,
    most: int = MOST_VIEWS,
    progress: Progress | None = None,
) -> OkViews:
    """Return at most `most` views of the camera's OK among `rows`, a function of rows, geometry and seed.

    Raises:
        UserError: there is no OK image; or as `training_tensor`.
    """
    rows = sorted((row for row in rows if row.label == OK and not row.synthetic), key=lambda row: row.path)
    if not rows:
        raise UserError(
            f"{manifest.root}: the train split has no OK image to draw defects into",
            "Add OK images, or leave [generator] out of the recipe.",
        )
    size = geometry.height * geometry.width * geometry.channels
    most = max(1, min(most, MOST_BYTES // size))
    order = np.random.default_rng((seed, 1)).permutation(len(rows))[:most]
    chosen = [rows[i] for i in order]
    prepare = Geometry(geometry)
    each = -(-most // len(chosen)) if geometry.tile is not None else 1

    def work(row: Row) -> tuple[Tensor, tuple[float, float]]:
        views = _rounded(training_tensor(manifest, [row], geometry))
        if len(views) > each:
            picked = np.random.default_rng((seed, 2, int.from_bytes(row.path.encode(), "big"))).permutation(len(views))
            views = views[torch.from_numpy(np.sort(picked[:each]))].clone()
        height, width = manifest.size(row) if geometry.tile is None else (geometry.tile, geometry.tile)
        shown = prepare.shown(height, width)
        return views, (shown[0] / height, shown[1] / width)

    found = list(in_order(work, chosen, progress))
    scales = np.median([scale for _, scale in found], axis=0)
    return OkViews(torch.cat([views for views, _ in found])[:most], (float(scales[0]), float(scales[1])))


def ng_views(manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry) -> NgViews:
    """Return the camera's NG among `rows` as views: whole images, or tiles with a defect in their middle.

    Raises:
        UserError: there is no NG image; NG without boxes or mask where the geometry tiles; an image, mask or box at
            fault.
    """
    rows = [row for row in rows if row.label == NG and not row.synthetic]
    if geometry.tile is not None:
        crops = ng_crops(manifest, rows, geometry, crop=geometry.tile, context=0, exact=True)
        assert crops.masks is not None
        shown = NgViews(crops.images, _solid(crops.masks), crops.classes)
        return shown.only(shown.located)  # a hollow defect's middle may show none of it
    if not rows:
        raise UserError(
            f"{manifest.root}: the train split has no NG image from a camera to draw from",
            'Add NG images, or choose a generator that needs none: "cutpaste", "poisson" or "perlin".',
        )
    images = _rounded(training_tensor(manifest, rows, geometry))
    nothing = torch.zeros(1, 1, geometry.height, geometry.width, dtype=torch.uint8)
    shares = [
        nothing if share is None else share
        for share in in_order(lambda row: defect_share(manifest, row, geometry), rows)
    ]
    return NgViews(images, _solid(torch.cat(shares)), [row.defect or UNNAMED for row in rows])


def _rounded(pixels: Tensor) -> Tensor:
    """Round pixels to 8 bits: what is drawn into a view is stored as a PNG."""
    return to_pixels(pixels / 127.5 - 1)


def _solid(shares: Tensor) -> Tensor:
    """Turn shares of pixels into masks of 0 and 255; a defect under half a pixel has the pixels that show it most."""
    highest = shares.flatten(1).amax(1)[:, None, None, None]
    return torch.where((shares >= highest.clamp(max=128)) & (highest > 0), 255, 0).to(torch.uint8)


@dataclass(frozen=True)
class Materials:
    """Camera images that a sampler works with; each kind may be missing where it is not needed."""

    ok: Tensor | None = None
    """OK views, uint8 [M, C, h, w]."""
    ng: NgViews | None = None

    def view(self, index: int) -> NDArray[np.float32]:
        """Return an OK view, float32 [C, h, w] from 0 to 255."""
        assert self.ok is not None
        return self.ok[index].numpy().astype(np.float32)

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values, for `from_state`."""
        ng = None if self.ng is None else {"images": self.ng.images, "masks": self.ng.masks, "classes": self.ng.classes}
        return {"ok": self.ok, "ng": ng}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Materials:
        """Restore what `state` returned."""
        return cls(state["ok"], None if state["ng"] is None else NgViews(**state["ng"]))
