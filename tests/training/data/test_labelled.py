"""Images with their labels and masks, and OK images held out for the ranks of several detectors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kizu.models.bundle import InputGeometry
from kizu.training.data.labelled import hold_out_ok, labelled_images
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row

from .conftest import Draw


def images(label: str, count: int, group: str = "", origin: str = "") -> list[Row]:
    return [Row(f"{group}/{label}{number:03}{origin}", label, group=group, origin=origin) for number in range(count)]


def test_a_tenth_is_held_out_but_at_least_twenty_and_at_most_half() -> None:
    assert [len(hold_out_ok(images(OK, n), 0)) for n in (500, 200, 60, 30, 2, 1)] == [50, 20, 20, 15, 1, 0]


def test_only_ok_of_the_camera_are_held_out() -> None:
    rows = images(OK, 100) + images(NG, 100) + images("", 100) + images(OK, 100, origin="g:r:1")
    held = hold_out_ok(rows, 0)
    assert len(held) == 20
    assert all(row.label == OK and not row.synthetic for row in held)


def test_whole_groups_without_ng_are_held_out_where_they_fit() -> None:
    rows = [row for n in range(40) for row in images(OK, 5, f"ok{n:02}")] + images(NG, 9, "bad") + images(OK, 99, "bad")
    held = hold_out_ok(rows, 0)
    groups = {row.group for row in held}
    assert len(held) == 30
    assert "bad" not in groups
    assert all(row in held for row in rows if row.group in groups)


def test_single_images_are_held_out_where_every_group_has_ng() -> None:
    rows = [row for n in range(20) for row in images(OK, 10, f"g{n:02}") + images(NG, 1, f"g{n:02}")]
    assert len(hold_out_ok(rows, 0)) == 20


def test_the_choice_follows_from_rows_and_seed() -> None:
    rows = images(OK, 100)
    assert {row.path for row in hold_out_ok(rows[::-1], 3)} == {row.path for row in hold_out_ok(rows, 3)}
    assert {row.path for row in hold_out_ok(rows, 4)} != {row.path for row in hold_out_ok(rows, 3)}


def test_ng_with_an_empty_mask_teaches_by_its_boxes_or_else_by_its_label(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a.png", size=(32, 32))
    draw(tmp_path / "mask.png", size=(32, 32), value=0)
    rows = [Row("a.png", NG, mask="mask.png"), Row("a.png", NG, mask="mask.png", boxes=(Box(1, 1, 9, 9, "dent"),))]
    found = labelled_images(Manifest(tmp_path, rows), rows, InputGeometry(height=32, width=32, channels=1))
    assert found.labels.tolist() == [1, 1]
    assert found.mask_of.tolist() == [-1, 1]
    assert found.masks[1, 0, 1:9, 1:9].min() == 255


def test_masks_and_boxes_are_letterboxed_with_their_image(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "a.png", size=(20, 40))
    row = Row("a.png", NG, boxes=(Box(0, 10, 5, 20, "dent"),))
    geometry = InputGeometry(height=32, width=32, channels=1, fit="letterbox")
    found = labelled_images(Manifest(tmp_path, [row]), [row], geometry)
    share = found.masks[found.mask_of[0], 0].numpy()
    # Shown at 32×16 in columns 8 to 24; the left edge, which the box touches, is mirrored.
    assert share[9:15, 5:11].min() == 255
    assert share[8:16, 4:12].min() >= 128
    assert not share[:, 13:].any()
    assert not share[:, :3].any()
    np.testing.assert_array_equal(share[:, :8], share[:, 15:7:-1])
    assert torch.equal(found.labels, torch.tensor([1]))
