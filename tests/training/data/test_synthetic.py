"""Writing synthetic NG: lossless, told apart from the camera's for good, and complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.labelled import labelled_images
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.synthetic import SyntheticBatch, write_synthetic

from .conftest import leftovers


def sample(seed: int, channels: int = 1, size: tuple[int, int] = (12, 20)) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, *size), generator=generator, dtype=torch.uint8)


def batches(
    classes: list[str], channels: int = 1, batch_size: int = 4, first_seed: int = 0
) -> Iterator[SyntheticBatch]:
    for start in range(0, len(classes), batch_size):
        names = classes[start : start + batch_size]
        seeds = [first_seed + start + i for i in range(len(names))]
        yield SyntheticBatch(torch.stack([sample(seed, channels) for seed in seeds]), names, seeds)


def write(dest: Path, *classes: str, **options: Any) -> Manifest:
    given: dict[str, Any] = {"kind": "stylegan2-ada", "run": "run-pcb@1a2b", "total": len(classes)} | options
    return write_synthetic(dest, batches(list(classes)), **given)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_pixels_come_back_as_they_were_made(tmp_path: Path, channels: int, mode: str) -> None:
    made = batches(["short", "open"] * 30, channels, batch_size=7)
    told: list[int] = []
    manifest = write_synthetic(
        tmp_path / "set", made, kind="stylegan2-ada", run="run 1", total=60, progress=told.append
    )
    assert sum(told) == 60
    assert Manifest.read(tmp_path / "set").rows == manifest.rows
    for seed, row in enumerate(manifest.rows):
        np.testing.assert_array_equal(manifest.image(row), sample(seed, channels).permute(1, 2, 0).numpy())
    with Image.open(manifest.root / manifest.rows[0].path) as image:
        assert (image.format, image.mode) == ("PNG", mode)


def test_rows_are_ng_with_class_and_origin_and_nothing_else(tmp_path: Path) -> None:
    made = batches(["short", "pin-hole"], first_seed=17)
    manifest = write_synthetic(tmp_path / "set", made, kind="stylegan2-ada", run="run-pcb@1a2b", total=2)
    assert manifest.rows == [
        Row("ng/short/000000017.png", NG, "short", origin="stylegan2-ada:run-pcb@1a2b:17"),
        Row("ng/pin-hole/000000018.png", NG, "pin-hole", origin="stylegan2-ada:run-pcb@1a2b:18"),
    ]
    assert leftovers(tmp_path / "set") == ["manifest.csv", "ng"]
    assert manifest.counts() == {"OK": 0, "NG": 0, "unlabelled": 0, "synthetic": 2}


def test_the_same_images_give_the_same_fingerprint_and_another_run_does_not(tmp_path: Path) -> None:
    prints = [write(tmp_path / run, "a", "b", run=run[0]).fingerprint() for run in ("r", "r again", "s")]
    assert prints[0] == prints[1] != prints[2]


def test_masks_are_written_beside_and_an_empty_one_is_none(tmp_path: Path) -> None:
    images = torch.stack([sample(seed) for seed in (3, 4)])
    masks = torch.zeros(2, 1, 12, 20, dtype=torch.uint8)
    masks[0, 0, 2:5, 7:11] = 1
    batch = SyntheticBatch(images, ["short", "short"], [3, 4], masks)
    manifest = write_synthetic(tmp_path / "set", [batch], kind="g", run="r", total=2)
    assert [row.mask for row in manifest.rows] == ["masks/short/000000003.png", ""]
    read = Manifest.read(tmp_path / "set")
    assert read.rows == manifest.rows
    np.testing.assert_array_equal(read.mask(read.rows[0]), masks[0, 0].numpy() > 0)
    assert sorted(path.name for path in (tmp_path / "set").rglob("*.png")) == ["000000003.png"] * 2 + ["000000004.png"]


def test_a_synthetic_mask_teaches_as_a_real_one_does(tmp_path: Path) -> None:
    masks = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    masks[0, 0, 4:8, 4:8] = 255
    batch = SyntheticBatch(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), ["a", "a"], [0, 1], masks)
    drawn = write_synthetic(tmp_path / "set", [batch], kind="g", run="r", total=2)
    images = labelled_images(drawn, drawn.rows, InputGeometry(height=16, width=16, channels=1))
    assert images.labels.tolist() == [1, 1]
    assert torch.equal(images.masks[images.mask_of[0]], masks[0])
    assert int(images.mask_of[1]) == -1


def test_a_defect_without_a_name_stays_without(tmp_path: Path) -> None:
    row = write(tmp_path / "set", "NG").rows[0]
    assert (row.path, row.defect) == ("ng/NG/000000000.png", "")


def test_any_class_has_a_folder_of_its_own(tmp_path: Path) -> None:
    classes = ["open+short", "a/b", "a_b", "../x", "..", ".hidden", "Kratzer groß", "Open", "open", "x" * 300, "a\\b"]
    classes += ["é", "e\u0301", "傷" * 90]
    manifest = write(tmp_path / "set", *classes)
    assert [row.defect for row in manifest.rows] == classes
    folders = [row.path.split("/")[1] for row in manifest.rows]
    assert all(row.path.count("/") == 2 for row in manifest.rows)
    assert len({folder.casefold() for folder in folders}) == len(classes)
    assert folders[:2] == ["open+short", "a_b"]
    assert Manifest.read(tmp_path / "set").rows == manifest.rows
    assert leftovers(tmp_path) == ["set"]


def test_the_same_tensor_may_be_filled_again_for_the_next_batch(tmp_path: Path) -> None:
    def reusing() -> Iterator[SyntheticBatch]:
        canvas = torch.zeros(2, 1, 12, 20, dtype=torch.uint8)
        for seed in range(0, 100, 2):
            canvas[0], canvas[1] = sample(seed), sample(seed + 1)
            yield SyntheticBatch(canvas, ["a", "a"], [seed, seed + 1])

    manifest = write_synthetic(tmp_path / "set", reusing(), kind="g", run="r", total=100)
    for seed, row in enumerate(manifest.rows):
        np.testing.assert_array_equal(manifest.image(row)[..., 0], sample(seed)[0].numpy())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def breaking() -> Iterator[SyntheticBatch]:
        yield from batches(["a"] * 200)
        raise error

    with pytest.raises(type(error)):
        write_synthetic(tmp_path / "deep" / "set", breaking(), kind="g", run="r", total=400)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(("total", "problem"), [(5, "5 .* but only 3 came"), (2, "2 .* but more came")])
def test_another_number_than_announced_is_an_error(tmp_path: Path, total: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        write(tmp_path / "set", "a", "b", "c", total=total)
    assert leftovers(tmp_path) == []


def test_an_empty_folder_is_filled_and_a_full_one_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "a")
    before = (tmp_path / "set" / "manifest.csv").read_bytes()
    started = []

    def never() -> Iterator[SyntheticBatch]:
        started.append(True)
        yield from batches(["b"])

    with pytest.raises(UserError, match="set: the folder exists and is not empty") as caught:
        write_synthetic(tmp_path / "set", never(), kind="g", run="r", total=1)
    assert "new folder" in (caught.value.remedy or "")
    assert not started
    assert (tmp_path / "set" / "manifest.csv").read_bytes() == before
    assert leftovers(tmp_path) == ["set"]


@pytest.mark.parametrize(
    ("options", "problem", "remedy"),
    [
        ({"kind": "a:b"}, "kind 'a:b'", "without colons"),
        ({"kind": ""}, "kind ''", "Use a name"),
        ({"run": "a\nb"}, "run 'a\\nb'", "control characters"),
        ({"run": " a"}, "run ' a'", "outer spaces"),
        ({"total": 0}, "no synthetic image", "at least one"),
    ],
)
def test_bad_names_and_numbers_are_refused_before_anything_is_made(
    tmp_path: Path, options: dict[str, object], problem: str, remedy: str
) -> None:
    with pytest.raises(UserError) as caught:
        write(tmp_path / "set", "a", **options)
    assert problem in caught.value.problem
    assert remedy in (caught.value.remedy or "")
    assert leftovers(tmp_path) == []


IMAGE = sample(0)[None]


@pytest.mark.parametrize(
    ("batch", "error", "problem"),
    [
        ((IMAGE.expand(-1, 2, -1, -1), ["a"], [0]), UserError, "2 channels"),
        ((IMAGE, ["a\x07"], [0]), UserError, "class 'a.x07'"),
        ((IMAGE, [" a"], [0]), UserError, "class ' a'"),
        ((IMAGE, [""], [0]), UserError, "class ''"),
        ((IMAGE, ["a"], [-1]), UserError, "seed -1"),
        ((IMAGE.expand(2, -1, -1, -1), ["a", "a"], [3, 3]), UserError, "seed 3 was used twice"),
        ((IMAGE.float(), ["a"], [0]), ValueError, "expected uint8"),
        ((IMAGE[0], ["a"], [0]), ValueError, "expected uint8"),
        ((IMAGE, ["a", "b"], [0]), ValueError, "with 2 and 1"),
        ((IMAGE, ["a"], [0], IMAGE[:, :, 1:]), ValueError, "expected masks"),
    ],
)
def test_bad_batches_are_refused_and_leave_nothing(
    tmp_path: Path, batch: SyntheticBatch, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        write_synthetic(tmp_path / "set", [batch], kind="g", run="r", total=len(batch[1]))
    assert leftovers(tmp_path) == []
