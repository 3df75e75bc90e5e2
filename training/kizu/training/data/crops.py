"""NG images → crops around their defects, which is what a generator learns from.

Notable here:
- A defect fills a few per cent of a board; its crop is a window of source pixels around one box, or around one
  connected part of the mask where there are no boxes.
- A window is moved, not shrunk, to stay inside the image, and grows only for a defect that would not fit with its
  context. Where it already has the output's size, the source's pixels come out unchanged.
- A crop comes with the share of each of its pixels that is defect, resized just as the crop is.
- Channels and resizing are the very geometry's that ships. Synthetic images are passed over: no generator learns
  from another's pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.labelled import not_located, rasterised
from kizu.training.data.loading import to_pixels
from kizu.training.data.manifest import FILE, NG, Box, Manifest, Row
from kizu.training.data.pool import Progress, in_order

UNNAMED = NG
"""Class of a defect that has no name."""
SPECK = 4
"""Connected parts of a mask with fewer pixels are specks, passed over beside larger ones."""
_TOUCHING = np.ones((3, 3), bool)  # pixels that touch at a corner belong together: thin scratches run diagonally

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the source; x1 and y1 are exclusive."""


@dataclass(frozen=True)
class CropSource:
    """Source image and window of a crop."""

    path: str
    """The row's path."""
    window: Window


@dataclass(frozen=True)
class Crops:
    """Crops of defects, in the order of rows and, within a row, of boxes."""

    images: Tensor
    """uint8 [M, C, height, width]."""
    classes: list[str]
    """Defect class of each crop; several are joined by `+`."""
    sources: list[CropSource]
    masks: Tensor | None = None
    """Share of each pixel that is defect, uint8 [M, 1, height, width], 255 being all of it; all zero where the row has
    neither mask nor boxes. None: not known for any."""

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def located(self) -> Tensor:
        """Flags of the crops whose defect pixels are known, bool [M]."""
        if self.masks is None:
            return torch.zeros(len(self.classes), dtype=torch.bool)
        return (self.masks != 0).flatten(1).any(1)


class Cut(NamedTuple):
    """One crop of a row."""

    window: Window
    name: str
    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class _Defect:
    """A defect's bounds, and its class."""

    bounds: Window
    name: str


def ng_crops(
    manifest: Manifest,
    rows: Sequence[Row],
    geometry: InputGeometry,
    *,
    crop: int | None = None,
    context: float = 0.25,
    size: tuple[int, int] | None = None,
    exact: bool = False,
    progress: Progress | None = None,
) -> Crops:
    """One crop per defect of the camera's NG among `rows`; whole images where neither box nor mask says where it is.

    Args:
        crop: longer side of a window in source pixels; default: the geometry's tile, or else its longer side.
        context: share of the defect's size that its window shows at least on either side of it.
        size: (height, width) of the crops; default: the geometry's. Windows have the same shape.
        exact: windows never grow: of a defect that is larger, the middle is shown.
        progress: told of each NG row.

    Defects whose windows coincide give one crop of all their classes. A crop's mask is of all defects that it shows:
    from the row's mask, or else from its boxes. A whole image goes through `geometry` and is
    of its row's class.

    Raises:
        UserError: no NG; an image or mask that cannot be read; a mask of another size than its image; a box outside its
            image; and of images without box and mask (or with an empty one), one that is smaller than the geometry
            allows, or any if the geometry tiles.
    """
    if (crop is not None and crop < 1) or context < 0 or (size is not None and min(size) < 1):
        raise ValueError(f"crop {crop} and size {size} must be positive, context {context} not negative")
    rows = [row for row in rows if row.label == NG and not row.synthetic]
    _check_rows(manifest, rows, geometry)
    cutter = _Cutter(manifest, geometry, crop, context, size or (geometry.height, geometry.width), exact)
    cuts = [(row, cut) for row, found in zip(rows, in_order(cutter.cut, rows, progress), strict=True) for cut in found]
    return Crops(
        torch.stack([cut.image for _, cut in cuts]),
        [cut.name for _, cut in cuts],
        [CropSource(row.path, cut.window) for row, cut in cuts],
        torch.stack([cut.mask for _, cut in cuts]),
    )


def _check_rows(manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry) -> None:
    if not rows:
        raise UserError(
            f"{manifest.root / FILE}: there is no NG image from a camera to learn defects from",
            "Add NG images with boxes or masks, or train without synthetic NG (no [generator] in the recipe).",
        )
    if geometry.tile is not None:
        for row in rows:
            if not (row.boxes or row.mask):
                raise not_located(manifest, row)


class _Cutter:
    """Cuts one row's crops; called from several threads."""

    def __init__(
        self,
        manifest: Manifest,
        geometry: InputGeometry,
        crop: int | None,
        context: float,
        size: tuple[int, int],
        exact: bool,
    ):
        self.manifest = manifest
        self.size = size
        self.tiled = geometry.tile is not None
        self.crop = crop or geometry.tile or max(geometry.height, geometry.width)
        self.context = context
        self.exact = exact
        whole = {"height": size[0], "width": size[1], "tile": None, "stride": None}
        self.whole = geometry.model_copy(update=whole)
        self.prepare = Geometry(self.whole)
        self.prepare_mask = Geometry(self.whole.model_copy(update={"channels": 1}))

    def cut(self, row: Row) -> list[Cut]:
        pixels = self.manifest.image(row)
        height, width = pixels.shape[:2]
        mask = self._mask(row, height, width)
        defects = self._defects(row, mask, height, width)
        if not defects or mask is None:
            if self.tiled:
                raise not_located(self.manifest, row)
            self._check_whole(row, height, width)
            image = self._render(pixels)
            return [Cut((0, 0, width, height), row.defect or UNNAMED, image, torch.zeros_like(image[:1]))]
        names: dict[Window, list[str]] = {}
        for defect in defects:
            bounds = self._middle(defect.bounds) if self.exact else defect.bounds
            window = place_window(bounds, (height, width), self.size, self.crop, self.context)
            names.setdefault(window, []).append(defect.name)
        share = mask[..., None].astype(np.uint8) * 255
        return [
            Cut(
                window,
                _joined(found),
                self._render(_inside(pixels, window)),
                to_pixels(self.prepare_mask(torch.tensor(_inside(share, window))[None])[0]),
            )
            for window, found in names.items()
        ]

    def _middle(self, bounds: Window) -> Window:
        """Return the middle of these bounds, at most `crop` pixels wide and high."""
        x0, y0, x1, y1 = bounds
        tall, wide = (int(side * self.crop / max(self.size) / (1 + 2 * self.context)) for side in self.size)
        left, top = max(x0, (x0 + x1 - wide) // 2), max(y0, (y0 + y1 - tall) // 2)
        return left, top, min(x1, left + wide), min(y1, top + tall)

    def _render(self, pixels: NDArray[np.uint8]) -> Tensor:
        """uint8 [H, W, C] → uint8 [C, height, width], rounded to 8 bits: what a generator draws is stored as a PNG."""
        x = self.prepare(torch.tensor(pixels)[None])[0]
        return to_pixels(x)

    def _check_whole(self, row: Row, height: int, width: int) -> None:
        if not self.whole.accepts(height, width):
            raise UserError(
                f"{self.manifest.root / row.path} is {width}×{height} pixels, smaller than the "
                f"{self.size[1]}×{self.size[0]} of a crop.",
                "Lower image.size in the recipe, or leave the image out of the data set.",
            )

    def _mask(self, row: Row, height: int, width: int) -> NDArray[np.bool_] | None:
        """Return the defect pixels by the row's mask or else by its boxes; None where it has neither."""
        mask = self.manifest.mask(row)
        if mask is None:
            return rasterised(row, height, width) if row.boxes else None
        file = self.manifest.root / row.mask
        if mask.shape != (height, width):
            raise UserError(
                f"{file}: the mask is {mask.shape[1]}×{mask.shape[0]} pixels, its image {row.path} {width}×{height}",
                "Save the mask in the size of its image, or clear the row's mask.",
            )
        return mask

    def _defects(self, row: Row, mask: NDArray[np.bool_] | None, height: int, width: int) -> list[_Defect]:
        if row.boxes:
            return [self._of_box(row, box, height, width) for box in row.boxes]
        if mask is None:
            return []
        return [_Defect(bounds, row.defect or UNNAMED) for bounds in connected_bounds(mask)]

    def _of_box(self, row: Row, box: Box, height: int, width: int) -> _Defect:
        if not ((box.x0 + box.x1) / 2 < width and (box.y0 + box.y1) / 2 < height):
            raise UserError(
                f"{self.manifest.root / row.path}: the box {list(box)} lies outside the image of {width}×{height} "
                "pixels",
                "Boxes are in pixels of the image itself: [[x0,y0,x1,y1,class],…]. Correct or remove the box.",
            )
        bounds = (
            math.floor(box.x0),
            math.floor(box.y0),
            min(math.ceil(box.x1), width),
            min(math.ceil(box.y1), height),
        )
        return _Defect(bounds, box.defect or row.defect or UNNAMED)


def connected_bounds(mask: NDArray[np.bool_]) -> list[Window]:
    """Bounds of the connected parts of a mask, bool [H, W], from top to bottom.

    Parts of fewer than `SPECK` pixels are left out; if there are no others, the largest stays.
    """
    labels, _ = ndimage.label(mask, _TOUCHING)
    pixels = np.bincount(labels.ravel())[1:]
    found = ndimage.find_objects(labels)
    keep = np.flatnonzero(pixels >= SPECK) if (pixels >= SPECK).any() else [int(pixels.argmax())]
    return [(x.start, y.start, x.stop, y.stop) for y, x in (found[part] for part in keep)]


def place_window(bounds: Window, image: tuple[int, int], size: tuple[int, int], crop: int, context: float) -> Window:
    """The window around a defect: of the shape of `size`, `crop` pixels along its longer side or as much more as the
    defect with `context` on either side needs, centred on the defect and then moved into the image.

    An image too small for that gets the largest window of this shape, or one of its own side if the defect needs it.

    Args:
        bounds: the defect's, inside the image.
        image: (height, width).
        size: (height, width) of the crop it will become.
    """
    x0, y0, x1, y1 = bounds
    needed = max((y1 - y0) / size[0], (x1 - x0) / size[1])
    wanted = max(crop / max(size), needed * (1 + 2 * context))
    fitting = min(image[0] / size[0], image[1] / size[1])
    scale = max(min(wanted, fitting), needed)
    # Rounded up, but not for a rounding error in `scale`.
    height, width = (min(math.ceil(size[side] * scale - 1e-6), image[side]) for side in (0, 1))
    left = min(max((x0 + x1 - width) // 2, 0), image[1] - width)
    top = min(max((y0 + y1 - height) // 2, 0), image[0] - height)
    return left, top, left + width, top + height


def _inside(pixels: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    x0, y0, x1, y1 = window
    return pixels[y0:y1, x0:x1]


def _joined(names: Iterable[str]) -> str:
    """The class of one defect as it is; of several, their classes sorted and each once."""
    first, *others = names
    return "+".join(sorted({part for name in (first, *others) for part in name.split("+")})) if others else first
