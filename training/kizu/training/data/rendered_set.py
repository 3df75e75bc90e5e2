"""A rendered data set on disk: the folders, names, groups and manifest that all rendered products share.

Notable here:
- Groups take turns, OK images first; which defect an NG image shows is the product's to say.
- Images are made in threads; each depends on its own number alone, so their order does not matter.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kizu.training.data.importers.staging import Journal, make_folders, staged
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row
from kizu.training.data.pool import in_order

Pixels = NDArray[np.uint8]
Photograph = Callable[[int, Row], tuple[Pixels, Pixels, tuple[Box, ...]]]
"""An image's number and row → image uint8[H, W] or uint8[H, W, 3], mask uint8[H, W] (255: defect) and boxes."""


def write_rendered(
    destination: Path,
    photograph: Photograph,
    *,
    group: str,
    groups: int,
    count_ok: int,
    classes: Sequence[str],
    journal: Journal | None = None,
) -> Manifest:
    """Write `count_ok` OK images, then an NG image with mask and boxes for each of `classes`, of groups `GROUP-001`, ….

    Raises:
        UserError: the destination is in use.
    """
    journal = journal or Journal()
    journal.total = count_ok + len(classes)
    with staged(destination) as staging:
        named = enumerate([""] * count_ok + list(classes))
        names = [_row(number, f"{group}-{number % groups + 1:03}", defect) for number, defect in named]
        make_folders(staging, (name for row in names for name in (row.path, row.mask) if name))

        def work(numbered: tuple[int, Row]) -> Row:
            number, row = numbered
            image, mask, boxes = photograph(number, row)
            _save(staging / row.path, image)
            if row.mask:
                _save(staging / row.mask, mask)
            return replace(row, boxes=boxes)

        rows = list(in_order(work, list(enumerate(names)), journal.progress))
        Manifest(staging, rows).write()
    return Manifest(Path(destination), rows)


def bounds(mask: NDArray[np.bool_], defect: str) -> Box:
    """Return the box around all that a mask bool[H, W] marks, which must not be empty."""
    ys, xs = np.nonzero(mask)
    return Box(int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1, defect)


def _row(number: int, group: str, defect: str) -> Row:
    if not defect:
        return Row(f"ok/{group}/{number:06}.png", OK, group=group)
    name = f"{defect}/{group}/{number:06}.png"
    return Row(f"ng/{name}", NG, defect, group, mask=f"masks/{name}")


def _save(path: Path, pixels: Pixels) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    path.write_bytes(buffer.getvalue())
