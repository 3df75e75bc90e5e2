"""Manifest rows → images with labels, defect classes and masks, for detectors that learn from NG.

Notable here:
- Masks and boxes go through the very geometry that ships, so a tile knows whether it holds the defect. A tile that
  shows only a sliver of one is neither OK nor NG, and does not train.
- OK images have an empty mask; NG without mask or boxes, real or synthetic, teach through the image's label alone.
- Images that nobody has labelled have a label of their own, `UNKNOWN`: neither OK nor NG.
- A tenth of the camera's images can be held out to calibrate scores on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.loading import to_pixels, training_tensor
from kizu.training.data.manifest import NG, OK, UNLABELLED, Manifest, Row
from kizu.training.data.pool import Progress, in_order

UNCLEAR = -1
"""Label of a tile that shows less of a defect than can be seen."""
UNKNOWN = 2
"""Label of an image that nobody has labelled."""
UNSPECIFIED = -1
"""Defect class of an NG image where none is named, of a tile that may show any of several, and of unlabelled images."""
LEAST_HELD_OUT = 5
"""OK and NG that a calibration of scores needs at least."""
_LABELS = {OK: 0, NG: 1, UNLABELLED: UNKNOWN}


@dataclass(frozen=True)
class LabelledImages:
    """Images, or all their tiles, and what is known of each."""

    images: Tensor
    """Pixels from 0 to 255, uint8 or float32 [M, C, h, w], as `training_tensor`."""
    labels: Tensor
    """int64 [M]: 0 OK, 1 NG, `UNKNOWN` or `UNCLEAR`."""
    masks: Tensor
    """uint8 [K, 1, h, w], 255 where a pixel is all defect; the first is empty."""
    mask_of: Tensor
    """int64 [M]: each image's mask; −1 where its defects are not located."""
    owners: Tensor
    """int64 [M]: the row that each image or tile is of."""
    synthetic: Tensor
    """bool [M]."""
    defects: Tensor
    """int64 [M]: 0 OK, from 1 the defect classes in the order in which they were given, or `UNSPECIFIED`."""

    def __len__(self) -> int:
        return len(self.images)


def defect_classes(rows: Sequence[Row]) -> list[str]:
    """The defect classes that a detector can learn: the first of each of the camera's NG, sorted."""
    return sorted({row.defects[0] for row in rows if row.label == NG and row.defects and not row.synthetic})


def labelled_images(
    manifest: Manifest,
    rows: Sequence[Row],
    geometry: InputGeometry,
    progress: Progress | None = None,
    *,
    classes: Sequence[str] = (),
) -> LabelledImages:
    """The rows' images or tiles, in order.

    Args:
        classes: names of the defect classes that get the numbers from 1 on. An image of several is of its first.

    Raises:
        UserError: as `training_tensor`; a mask of another size than its image; and, where the geometry tiles, an NG
            image whose defects are not located.
    """
    images = training_tensor(manifest, rows, geometry, progress)
    shares = list(in_order(lambda row: defect_share(manifest, row, geometry), rows))
    counts = [1 if share is None else len(share) for share in shares]
    if geometry.tile is not None:
        counts = _tile_counts(manifest, rows, geometry, shares)
    size = (1, geometry.height, geometry.width)
    masks, labels, mask_of = [torch.zeros(1, *size, dtype=torch.uint8)], [], []
    number_of = {name: number for number, name in enumerate(classes, 1)}
    named: list[int] = []
    held = 1
    for row, share, count in zip(rows, shares, counts, strict=True):
        ambiguous = geometry.tile is not None and len(row.defects) > 1
        named += [UNSPECIFIED if ambiguous else number_of.get((*row.defects, "")[0], UNSPECIFIED)] * count
        if share is None:
            labels += [_LABELS[row.label]] * count
            mask_of += [0 if row.label == OK and not row.synthetic else -1] * count
            continue
        highest = share.flatten(1).amax(1)
        whole = geometry.tile is None
        labels += [1 if whole or peak >= 128 else UNCLEAR if peak > 0 else 0 for peak in highest.tolist()]
        mask_of += range(held, held + count)
        masks.append(share)
        held += count
    owners = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
    synthetic = torch.tensor([row.synthetic for row in rows])[owners]
    label = torch.tensor(labels)
    defects = torch.where(label == 1, torch.tensor(named), torch.where(label == 0, 0, UNSPECIFIED))
    return LabelledImages(images, label, torch.cat(masks), torch.tensor(mask_of), owners, synthetic, defects)


def joined(first: LabelledImages, second: LabelledImages) -> LabelledImages:
    """One set of two."""
    mask_of = torch.where(second.mask_of > 0, second.mask_of + len(first.masks) - 1, second.mask_of)
    return LabelledImages(
        torch.cat([first.images, second.images]),
        torch.cat([first.labels, second.labels]),
        torch.cat([first.masks, second.masks[1:]]),
        torch.cat([first.mask_of, mask_of]),
        torch.cat([first.owners, second.owners + int(first.owners.max()) + 1]),
        torch.cat([first.synthetic, second.synthetic]),
        torch.cat([first.defects, second.defects]),
    )


def defect_share(manifest: Manifest, row: Row, geometry: InputGeometry) -> Tensor | None:
    """Share of each pixel that is defect, uint8 [tiles, 1, h, w], for an NG row with mask or boxes; else None.

    An empty mask is none.

    Raises:
        UserError: a mask that cannot be read or has another size than its image.
    """
    if row.label != NG or not (row.mask or row.boxes):
        return None
    height, width = manifest.image(row).shape[:2]
    mask = manifest.mask(row)
    if mask is None:
        if not row.boxes:
            return None
        mask = rasterised(row, height, width)
    if mask.shape != (height, width):
        raise UserError(
            f"{manifest.root / row.mask}: the mask is {mask.shape[1]}×{mask.shape[0]} pixels, its image {row.path} "
            f"{width}×{height}",
            "Save the mask in the size of its image, or clear the row's mask.",
        )
    prepare = Geometry(geometry.model_copy(update={"channels": 1}))
    x = prepare(torch.from_numpy(mask.astype(np.uint8) * 255)[None, :, :, None])
    return to_pixels(x)


def not_located(manifest: Manifest, row: Row) -> UserError:
    """The error of an NG row from whose tiles none can be told to hold the defect."""
    return UserError(
        f"{manifest.root / row.path}: NG without boxes or mask, and the recipe inspects in tiles: which of its tiles "
        "hold the defect cannot be known",
        "Give the defect's boxes or mask in the manifest, or leave image.tile out of the recipe.",
    )


def rasterised(row: Row, height: int, width: int) -> NDArray[np.bool_]:
    """The row's boxes as a mask, bool [height, width]; a pixel that a box touches is inside."""
    mask = np.zeros((height, width), bool)
    for box in row.boxes:
        mask[math.floor(box.y0) : math.ceil(box.y1), math.floor(box.x0) : math.ceil(box.x1)] = True
    return mask


def hold_out(rows: Sequence[Row], seed: int, share: float = 0.1) -> tuple[list[Row], list[Row]]:
    """(rows to train on, rows to calibrate scores on): `share` of the camera's OK and NG, rounded down.

    Whole groups go where they fit; if groups are too large for that, single images do. A function of rows and seed
    alone. Nothing is held out where it would be fewer than `LEAST_HELD_OUT` of a label: NG are too few to spare.
    """
    wanted = {label: int(share * sum(r.label == label and not r.synthetic for r in rows)) for label in (OK, NG)}
    if min(wanted.values()) < LEAST_HELD_OUT:
        return list(rows), []
    for by_group in (True, False):
        held = _sample_units(rows, seed, wanted, by_group)
        if all(sum(row.label == label for row in held) >= LEAST_HELD_OUT for label in (OK, NG)):
            paths = {row.path for row in held}
            return [row for row in rows if row.path not in paths], held
    raise AssertionError("single images always fit")


def hold_out_ok(rows: Sequence[Row], seed: int, share: float = 0.1, least: int = 20) -> list[Row]:
    """Choose OK rows of the camera that no detector trains on, so that its scores on them are those of new parts.

    `share` of them, but at least `least`, and at most half. Whole groups where some without NG fit: an NG is too rare
    to be held out with its group; else single images. A function of rows and seed alone.
    """
    ok = [row for row in rows if row.label == OK and not row.synthetic]
    wanted = min(max(round(share * len(ok)), least), len(ok) // 2)
    with_ng = {row.group for row in rows if row.label == NG and row.group}
    of_ok_groups = [row for row in ok if row.group not in with_ng]
    held = _sample_units(of_ok_groups, seed, {OK: wanted}, by_group=True)
    if len(held) < wanted / 2:
        held = _sample_units(ok, seed, {OK: wanted}, by_group=False)
    return held


def _sample_units(rows: Sequence[Row], seed: int, wanted: dict[str, int], by_group: bool) -> list[Row]:
    units: dict[str, list[Row]] = {}
    for row in rows:
        if not row.synthetic:
            units.setdefault(f"group\0{row.group}" if by_group and row.group else f"path\0{row.path}", []).append(row)
    left, held = dict(wanted), []
    for key in sorted(units, key=lambda key: hashlib.sha256(f"held out\0{seed}\0{key}".encode()).digest()):
        holds = {label: sum(row.label == label for row in units[key]) for label in left}
        if all(holds[label] <= left[label] for label in left):
            held += units[key]
            left = {label: left[label] - holds[label] for label in left}
    return held


def _tile_counts(
    manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry, shares: Sequence[Tensor | None]
) -> list[int]:
    grid = Geometry(geometry).grid
    counts = []
    for row, share in zip(rows, shares, strict=True):
        height, width = manifest.image(row).shape[:2]
        counts.append(grid(height) * grid(width))
        if row.label == NG and share is None and counts[-1] > 1:
            raise not_located(manifest, row)
    return counts
