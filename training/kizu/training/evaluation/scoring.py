"""Score the images of a manifest with bounded memory: decode ahead in threads, batch what has the same shape.

Notable here:
- Heatmaps are handed on image by image and never kept; whoever needs one again scores that image again.
- The speed that is reported is the scorer's own: decoding is outside it, and so is the first batch of a shape, in
  which a runtime still chooses its kernels.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry, ScoreFunction
from kizu.training.data.manifest import Manifest, Row
from kizu.training.data.pool import Progress, in_order
from kizu.training.data.sizes import too_small

HeatmapSink = Callable[[int, NDArray[np.uint8], NDArray[np.float32]], None]
"""(position of the row, its image uint8[H, W, C], its heatmap float32[h, w]); images arrive in no fixed order."""

_BATCH_BYTES = 64 << 20


@dataclass(frozen=True)
class Scored:
    """Scores of labelled rows, in the rows' order."""

    rows: tuple[Row, ...]
    scores: NDArray[np.float32]
    """shape [N], finite; higher is more NG."""
    labels: NDArray[np.int64]
    """shape [N]; 1 is NG, 0 is OK."""
    seconds: float = 0.0
    """Spent inside the scorer on `timed` images."""
    timed: int = 0

    @property
    def ng(self) -> NDArray[np.float32]:
        """Scores of the NG rows."""
        scores: NDArray[np.float32] = self.scores[self.labels == 1]
        return scores

    @property
    def ok(self) -> NDArray[np.float32]:
        """Scores of the OK rows."""
        scores: NDArray[np.float32] = self.scores[self.labels == 0]
        return scores

    @property
    def images_per_second(self) -> float | None:
        """Throughput of the scorer alone; None where nothing was timed."""
        return self.timed / self.seconds if self.timed and self.seconds > 0 else None


@dataclass
class _Clock:
    """Scoring time and images; the first batch of a shape counts only while there is no later one."""

    seconds: float = 0.0
    images: int = 0
    warm: bool = False
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def note(self, shape: tuple[int, ...], seconds: float, images: int) -> None:
        seen = shape in self.shapes
        self.shapes.add(shape)
        if seen and not self.warm:
            self.seconds, self.images, self.warm = 0.0, 0, True
        if seen == self.warm:
            self.seconds += seconds
            self.images += images


def score_rows(
    score: ScoreFunction,
    geometry: InputGeometry,
    manifest: Manifest,
    rows: Sequence[Row],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
    on_heatmap: HeatmapSink | None = None,
) -> Scored:
    """Score labelled rows.

    Args:
        score: a `Session.score`, or torch's twin of it.
        geometry: the smallest image that the scorer takes.
        batch_size: images per call at most; fewer where 64 MiB of pixels are reached first.
        progress: called after each batch with its number of images.
        on_heatmap: called once per image, in this thread.

    Raises:
        UserError: an image is smaller than the geometry allows, or its score or heatmap is not finite.
        ValueError: a row without a label.
    """
    rows = tuple(rows)
    if unlabelled := [row.path for row in rows if row.label not in ("OK", "NG")]:
        raise ValueError(f"{len(unlabelled)} rows have no label, the first is {unlabelled[0]}")
    scores = np.full(len(rows), np.nan, dtype=np.float32)
    clock = _Clock()
    for indices, images in _batches(manifest, geometry, rows, max(1, batch_size)):
        start = time.perf_counter()
        batch_scores, heatmaps = score(images)
        clock.note(images.shape, time.perf_counter() - start, len(indices))
        for position, index in enumerate(indices):
            if not (np.isfinite(batch_scores[position]) and np.isfinite(heatmaps[position]).all()):
                raise UserError(
                    f"The model gave {rows[index].path} a score or heatmap that is not finite.",
                    "Train again: a model that cannot score an image must not judge parts.",
                )
            scores[index] = batch_scores[position]
            if on_heatmap is not None:
                on_heatmap(index, images[position], np.asarray(heatmaps[position], dtype=np.float32))
        if progress is not None:
            progress(len(indices))
    labels = np.array([row.label == "NG" for row in rows], dtype=np.int64)
    return Scored(rows, scores, labels, clock.seconds, clock.images)


def _batches(
    manifest: Manifest, geometry: InputGeometry, rows: Sequence[Row], batch_size: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Indices and stacked images of one shape; nearly-full batches even where shapes alternate."""
    waiting: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
    held = 0

    def take(shape: tuple[int, ...]) -> tuple[list[int], NDArray[np.uint8]]:
        group = waiting.pop(shape)
        return [index for index, _ in group], np.stack([image for _, image in group])

    for index, image in enumerate(in_order(manifest.image, rows)):
        height, width = image.shape[:2]
        if not geometry.accepts(height, width):
            raise too_small(manifest, [(rows[index].path, height, width)], geometry)
        group = waiting.setdefault(image.shape, [])
        group.append((index, image))
        held += image.nbytes
        if len(group) >= batch_size or len(group) * image.nbytes >= _BATCH_BYTES:
            held -= len(group) * image.nbytes
            yield take(image.shape)
        elif held >= 2 * _BATCH_BYTES:
            largest = max(waiting, key=lambda shape: len(waiting[shape]) * int(np.prod(shape)))
            held -= len(waiting[largest]) * int(np.prod(largest))
            yield take(largest)
    for shape in list(waiting):
        yield take(shape)


def write_scores(path: Path, sets: Mapping[str, Scored]) -> None:
    """Write every image's score as CSV with the columns set, path, label, defect, group and score."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["set", "path", "label", "defect", "group", "score"])
        for name, scored in sets.items():
            for row, score in zip(scored.rows, scored.scores.tolist(), strict=True):
                writer.writerow([name, row.path, row.label, row.defect, row.group, repr(score)])
