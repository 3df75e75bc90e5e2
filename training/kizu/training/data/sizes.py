"""Sizes of images against what a geometry accepts, before anything trains or is scored.

Notable here:
- Headers alone are read: a data set is judged in the time that reading its files takes.
- Every image that is refused is named, so that a data set is put right once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.pool import Progress, in_order


def check_sizes(
    manifest: Manifest, rows: Sequence[Row], geometry: InputGeometry, progress: Progress | None = None
) -> str | None:
    """Refuse images that the geometry does not accept; return a sentence on those that it enlarges, if any.

    Raises:
        UserError: lists every such image with its size; or an image's header cannot be read.
    """
    sizes = list(in_order(manifest.size, rows, progress))
    refused = [
        (row.path, height, width)
        for row, (height, width) in zip(rows, sizes, strict=True)
        if not geometry.accepts(height, width)
    ]
    if refused:
        raise too_small(manifest, refused, geometry)
    factors = [factor for size in sizes if (factor := geometry.enlargement(*size)) > 1]
    if not factors:
        return None
    # Rounded up: "up to" is a bound.
    largest = math.ceil(max(factors) * 10 - 1e-9) / 10
    are = "is" if len(factors) == 1 else "are"
    return (
        f"{len(factors)} of {len(rows)} images {are} enlarged, up to {largest:g}×: smaller than the "
        f"{geometry.width}×{geometry.height} pixels that the detector sees."
    )


def too_small(manifest: Manifest, refused: Sequence[tuple[str, int, int]], geometry: InputGeometry) -> UserError:
    """The error that lists refused images, given as (path, height, width)."""
    key, why = "image.tile", "a tile is not cut from an enlarged image, which would show its defects in another size"
    if geometry.tile is None:
        key, why = "image.size", f"none is enlarged more than {geometry.enlarge:g}×"
    are = "image is" if len(refused) == 1 else "images are"
    return UserError(
        f"{manifest.root}: {len(refused)} {are} too small. At least {geometry.smallest} are needed: {why}.",
        f"Leave these images out of the data set, or lower {key} in the recipe.",
        [f"{path}: {width}×{height} pixels" for path, height, width in refused],
    )
