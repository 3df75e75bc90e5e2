from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.manifest import Manifest, Row
from kizu.training.evaluation.scoring import score_rows

from .conftest import GEOMETRY, MakeData, brightness


class Recorder:
    """`brightness`, remembering the batches it got."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self.shapes.append(images.shape)
        return brightness(images)


def test_scores_come_back_in_the_rows_order_whatever_the_shapes(make_data: MakeData) -> None:
    manifest = make_data(10, 6)
    for i in (1, 4, 5, 11):
        row = manifest.rows[i]
        Image.fromarray(np.full((50, 60, 3), 10 * i, dtype=np.uint8)).save(manifest.root / row.path)
    seen: dict[int, tuple[int, ...]] = {}
    recorder = Recorder()
    progress: list[int] = []
    scored = score_rows(
        recorder,
        GEOMETRY,
        manifest,
        manifest.rows,
        batch_size=5,
        progress=progress.append,
        on_heatmap=lambda index, image, heatmap: seen.update({index: (*image.shape, *heatmap.shape)}),
    )
    for i, row in enumerate(manifest.rows):
        assert scored.scores[i] == brightness(manifest.image(row)[None])[0][0]
    assert scored.labels.tolist() == [int(row.label == "NG") for row in manifest.rows]
    assert scored.scores.dtype == np.dtype(np.float32)
    assert scored.labels.dtype == np.dtype(np.int64)
    assert sorted(seen) == list(range(16))
    assert seen[4] == (50, 60, 3, 50, 60)
    assert seen[0] == (40, 40, 1, 40, 40)
    # Interleaved shapes still fill their batches.
    assert sorted(shape[0] for shape in recorder.shapes) == [2, 4, 5, 5]
    assert sorted(progress) == [2, 4, 5, 5]


def test_big_images_get_smaller_batches(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_data(6, 0)
    monkeypatch.setattr("kizu.training.evaluation.scoring._BATCH_BYTES", 2 * 40 * 40)
    recorder = Recorder()
    score_rows(recorder, GEOMETRY, manifest, manifest.rows, batch_size=16)
    assert [shape[0] for shape in recorder.shapes] == [2, 2, 2]


def test_what_waits_for_its_batch_is_bounded(make_data: MakeData, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_data(12, 0)
    for i, row in enumerate(manifest.rows):
        Image.fromarray(np.zeros((40, 40 + i), dtype=np.uint8)).save(manifest.root / row.path)
    monkeypatch.setattr("kizu.training.evaluation.scoring._BATCH_BYTES", 2500)
    recorder = Recorder()
    scored_before: list[int] = []

    def one_by_one(function: Callable[[Row], NDArray[np.uint8]], rows: list[Row]) -> Iterator[NDArray[np.uint8]]:
        for row in rows:
            scored_before.append(len(recorder.shapes))
            yield function(row)

    monkeypatch.setattr("kizu.training.evaluation.scoring.in_order", one_by_one)
    score_rows(recorder, GEOMETRY, manifest, manifest.rows, batch_size=16)
    # Twelve shapes of 1.6 kB and more: three fit into twice 2.5 kB, then one must go for each that comes.
    assert scored_before == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert len(recorder.shapes) == 12


def test_an_image_below_the_geometry_is_named(make_data: MakeData) -> None:
    manifest = make_data(3, 0)
    Image.fromarray(np.zeros((30, 64), dtype=np.uint8)).save(manifest.root / manifest.rows[1].path)
    with pytest.raises(UserError, match=r"(?s)At least 32×32 pixels.*001\.png: 64×30 pixels"):
        score_rows(brightness, GEOMETRY, manifest, manifest.rows)
    tiled = InputGeometry(height=32, width=32, channels=1, tile=48, stride=48)
    with pytest.raises(UserError, match="At least 48×48"):
        score_rows(brightness, tiled, manifest, manifest.rows[:1])


@pytest.mark.parametrize("where", ["score", "heatmap"])
def test_a_score_or_heatmap_that_is_not_finite_is_an_error(make_data: MakeData, where: str) -> None:
    def broken(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        scores, heatmaps = brightness(images)
        (scores if where == "score" else heatmaps)[-1] = np.nan
        return scores, heatmaps

    manifest = make_data(2, 0)
    with pytest.raises(UserError, match=r"001\.png a score or heatmap that is not finite"):
        score_rows(broken, GEOMETRY, manifest, manifest.rows)


def test_a_row_without_a_label_is_refused(make_data: MakeData) -> None:
    manifest = make_data(2, 0)
    rows = [manifest.rows[0], dataclasses.replace(manifest.rows[1], label="")]
    with pytest.raises(ValueError, match=r"1 rows have no label, the first is 001\.png"):
        score_rows(brightness, GEOMETRY, manifest, rows)


def test_an_unreadable_image_is_a_user_error(make_data: MakeData) -> None:
    manifest = make_data(3, 0)
    (manifest.root / manifest.rows[2].path).write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"002\.png"):
        score_rows(brightness, GEOMETRY, manifest, manifest.rows)


def test_the_first_batch_of_a_shape_is_not_timed_where_there_are_more(make_data: MakeData) -> None:
    def slow_start(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        time.sleep(0.2 if not calls else 0)
        calls.append(len(images))
        return brightness(images)

    calls: list[int] = []
    manifest = make_data(8, 0)
    scored = score_rows(slow_start, GEOMETRY, manifest, manifest.rows, batch_size=4)
    assert scored.timed == 4
    assert scored.seconds < 0.2
    calls.clear()
    single = score_rows(slow_start, GEOMETRY, manifest, manifest.rows[:1])
    assert single.timed == 1
    assert single.seconds >= 0.2
    assert single.images_per_second is not None


def test_no_rows_are_no_scores(tmp_path: Path) -> None:
    scored = score_rows(brightness, GEOMETRY, Manifest(tmp_path, []), [])
    assert scored.scores.shape == (0,)
    assert scored.images_per_second is None
