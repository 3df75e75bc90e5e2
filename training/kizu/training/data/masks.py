"""Masks of a data set, looked at once before anything trains: empty ones, of another size than their image, or missing.

Notable here:
- An empty mask locates nothing, so its image counts by its label alone, as one without a mask does.
- Every row at fault is named, so that a data set is put right once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from kizu.errors import UserError, shortened
from kizu.models.bundle import InputGeometry
from kizu.models.inspector import Geometry
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.pool import Progress, in_order


def without_empty_masks(
    manifest: Manifest, rows: Sequence[Row], progress: Progress | None = None
) -> tuple[list[Row], str | None]:
    """Return the rows, NG with an empty mask without it, and a sentence that names these, if any.

    Raises:
        UserError: a mask cannot be read.
    """
    masked = [row for row in rows if row.label == NG and row.mask]
    empty = [
        row.path for row, mask in zip(masked, in_order(manifest.mask, masked, progress), strict=True) if mask is None
    ]
    if not empty:
        return list(rows), None
    chosen = set(empty)
    note = (
        f"{len(empty)} NG {'image has' if len(empty) == 1 else 'images have'} an empty mask, and count by the label "
        f"alone: {', '.join(shortened(empty))}."
    )
    return [replace(row, mask="") if row.path in chosen else row for row in rows], note


def check_mask_sizes(manifest: Manifest, rows: Sequence[Row]) -> None:
    """Refuse masks of another size than their image, from their headers.

    Raises:
        UserError: lists every such mask of an NG row with both sizes; or a header cannot be read.
    """

    def sizes(row: Row) -> tuple[tuple[int, int], tuple[int, int]]:
        return manifest.mask_size(row), manifest.size(row)

    masked = [row for row in rows if row.label == NG and row.mask]
    differing = [
        f"{row.mask}: {mask[1]}×{mask[0]} pixels, its image {row.path} {image[1]}×{image[0]}"
        for row, (mask, image) in zip(masked, in_order(sizes, masked), strict=True)
        if mask != image
    ]
    if differing:
        many = f"{len(differing)} masks have another size than their images"
        raise UserError(
            f"{manifest.root}: {'a mask has another size than its image' if len(differing) == 1 else many}.",
            "Save masks in the size of their images, or clear these rows' masks.",
            differing,
        )


def check_located(manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry) -> None:
    """Refuse NG without boxes or mask that the geometry cuts into several tiles: which show the defect is unknown.

    Raises:
        UserError: lists every such image; or a header cannot be read.
    """
    if geometry.tile is None:
        return
    unlocated = [row for row in rows if row.label == NG and not (row.mask or row.boxes)]
    grid = Geometry(geometry).grid
    refused = [
        row.path
        for row, (height, width) in zip(unlocated, in_order(manifest.size, unlocated), strict=True)
        if grid(height) * grid(width) > 1
    ]
    if refused:
        what = "NG image has" if len(refused) == 1 else "NG images have"
        raise UserError(
            f"{manifest.root}: {len(refused)} {what} neither boxes nor mask, and the recipe inspects in tiles: which "
            "of them hold the defect cannot be known.",
            "Give boxes or masks in the manifest, leave image.tile out, or choose detectors that learn from OK alone.",
            refused,
        )
