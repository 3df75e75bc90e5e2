"""Generated NG images → a data set on disk, complete or not at all.

Notable here:
- Batches are written as they come; only a few images wait in memory, whatever their number.
- Every row says what made it (`origin`), so an image can be made again, and can never be taken for a camera's.
- A mask says which pixels are defect, where the generator knows: it teaches as a real defect's does.
- Lossless: a detector that trains on these images must not learn to tell them by compression.
"""

from __future__ import annotations

import hashlib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kizu.errors import UserError
from kizu.training.data.importers.staging import staged
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.origin import format_origin
from kizu.training.data.pool import Progress, in_order


class SyntheticBatch(NamedTuple):
    """Generated images with their classes, seeds and masks."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    classes: list[str]
    seeds: list[int]
    masks: Tensor | None = None
    """uint8 [N, 1, H, W], not 0 where the defect is; where an image's is empty, it is not known. None: of none."""


_UNSAFE = re.compile(r"[^\w+.-]")
_LONGEST = 40
"""Letters of a class kept in its folder's name; a letter takes up to 4 bytes and a name may have 255."""


def write_synthetic(
    dest: Path, batches: Iterable[SyntheticBatch], *, kind: str, run: str, total: int, progress: Progress | None = None
) -> Manifest:
    """Write `dest/ng/<class>/<seed>.png` and the manifest: every row NG, of its class, without group and split; the
    masks, where there are some, are `dest/masks/<class>/<seed>.png`.

    The class `NG`, as `ng_crops` calls a defect without a name, becomes a row without a defect class. `progress` is
    told of each image. On an error or Ctrl-C, wherever it comes from, nothing is left of `dest`.

    Args:
        dest: a new or empty folder.
        kind: the generator's, as in a recipe.
        run: what tells this generator from others of its kind.
        total: how many images `batches` will give.

    Raises:
        UserError: no image; a destination in use or not writable; images that are neither grey nor RGB; a kind, run or
            class that a manifest cannot hold; a negative seed, or one used twice for a class.
        ValueError: batches of another form, or of another number of images than `total`.
    """
    if total < 1:
        raise UserError(f"{dest}: no synthetic image was asked for", "Ask for at least one.")
    format_origin(kind, run, 0)
    plan = _Plan(kind, run)
    rows: list[Row] = []
    with staged(dest) as staging:

        def work(item: _Item) -> Row:
            _save(staging / item.row.path, item.pixels)
            if item.mask is not None:
                _save(staging / item.row.mask, item.mask)
            return item.row

        for row in in_order(work, plan.items(batches), progress):
            rows.append(row)
            if len(rows) > total:
                break
        if len(rows) != total:
            came = "more" if len(rows) > total else f"only {len(rows)}"
            raise ValueError(f"{total} synthetic images were announced, but {came} came")
        Manifest(staging, rows).write()
    return Manifest(Path(dest), rows)


class _Item(NamedTuple):
    row: Row
    pixels: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None


class _Plan:
    """Gives each image its row, and checks what comes."""

    def __init__(self, kind: str, run: str):
        self.kind, self.run = kind, run
        self._folders: dict[str, str] = {}
        self._class_of: dict[str, str] = {}
        self._paths: set[str] = set()

    def items(self, batches: Iterable[SyntheticBatch]) -> Iterator[_Item]:
        for batch in batches:
            images, classes, seeds, masks = SyntheticBatch(*batch)
            _check_batch(images, classes, seeds, masks)
            # A copy: whoever samples may fill the same tensor again while this one is being written.
            pixels = images.permute(0, 2, 3, 1).cpu().numpy().copy()
            shown = None if masks is None else (masks != 0).permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8) * 255
            for index, (name, seed) in enumerate(zip(classes, seeds, strict=True)):
                mask = shown[index] if shown is not None and shown[index].any() else None
                yield _Item(self._row(name, int(seed), mask is not None), pixels[index], mask)

    def _row(self, name: str, seed: int, located: bool) -> Row:
        file = str(PurePosixPath(self._folder(name), f"{seed:09}.png"))
        path = f"ng/{file}"
        if path in self._paths:
            raise UserError(
                f"{path}: the seed {seed} was used twice for the class '{name}'", "Give every image its own seed."
            )
        self._paths.add(path)
        defect = "" if name == NG else name
        mask = f"masks/{file}" if located else ""
        return Row(path, NG, defect, mask=mask, origin=format_origin(self.kind, self.run, seed))

    def _folder(self, name: str) -> str:
        """A portable folder name, another for each class even where the file system ignores case or accents' form."""
        if name not in self._folders:
            _check_class(name)
            folder = _UNSAFE.sub("_", unicodedata.normalize("NFC", name))[:_LONGEST].strip(".") or "_"
            if self._class_of.setdefault(folder.casefold(), name) != name:
                folder = f"{folder}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            self._folders[name] = folder
        return self._folders[name]


def _check_class(name: str) -> None:
    odd = any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name)
    if not name or odd or name != name.strip():
        raise UserError(
            f"the defect class {name!r} cannot be kept in a manifest",
            "Name the class in the real data set's manifest, without control characters and outer spaces.",
        )


def _check_batch(images: Tensor, classes: list[str], seeds: list[int], masks: Tensor | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images) == len(classes) == len(seeds):
        raise ValueError(
            f"expected uint8 [N, C, H, W] with N classes and seeds, not {images.dtype} {tuple(images.shape)} with "
            f"{len(classes)} and {len(seeds)}"
        )
    if masks is not None and (masks.dtype != torch.uint8 or masks.shape != (len(images), 1, *images.shape[2:])):
        raise ValueError(f"expected masks uint8 [N, 1, H, W], not {masks.dtype} {tuple(masks.shape)}")
    if images.shape[1] not in (1, 3):
        raise UserError(
            f"synthetic images of {images.shape[1]} channels cannot be saved as PNG",
            "Set image.channels in the recipe to 1 (grey) or 3 (RGB) and train the generator again.",
        )


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(pixels))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    # Level 1 costs a tenth more disk than the default and halves the time.
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
