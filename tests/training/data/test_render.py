"""Rendered boards: deterministic, honest about where their defects are, and fit to be learnt from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.render import DEFECTS, _Stage, render_boards
from kizu.training.data.splits import assign_splits

from .conftest import leftovers


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return render_boards(tmp_path_factory.mktemp("render") / "set", boards=6, count_ok=80, count_ng=70, views=4, seed=3)


def test_the_same_seed_renders_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    small: dict[str, Any] = {"boards": 3, "count_ok": 6, "count_ng": 7, "size": 32}
    first = render_boards(tmp_path / "a", **small, seed=5)
    again = render_boards(tmp_path / "b", **small, seed=5)
    other = render_boards(tmp_path / "c", **small, seed=6)
    assert first.rows == again.rows
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


def test_rows_have_every_class_in_turn_groups_and_can_be_split(boards: Manifest) -> None:
    assert boards.counts() == {"OK": 80, "NG": 70, "unlabelled": 0}
    assert set(boards.defects) == set(DEFECTS)
    assert all(sum(row.defect == name for row in boards.rows) == 10 for name in DEFECTS)
    assert len(boards.groups) == 6
    assert Manifest.read(boards.root).rows == boards.rows
    assert all(count["OK"] and count["NG"] for count in assign_splits(boards).counts.values())


def test_masks_and_boxes_tell_the_same(boards: Manifest) -> None:
    for row in boards.rows:
        mask = boards.mask(row)
        if row.label == OK:
            assert mask is None
            assert not row.boxes
            continue
        assert mask is not None
        assert mask.shape == (64, 64)
        assert 1 <= len(row.boxes) <= 2
        boxed = np.zeros_like(mask)
        for x0, y0, x1, y1, defect in row.boxes:
            assert defect == row.defect
            inside = mask[int(y0) : int(y1), int(x0) : int(x1)]
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            boxed[int(y0) : int(y1), int(x0) : int(x1)] = True
        assert not (mask & ~boxed).any()
        assert mask.mean() < 0.25


def test_a_defect_is_visible_under_its_mask_and_only_there() -> None:
    """The same number without a defect shows the same board in the same light: the difference is the defect."""
    stage = _Stage(seed=1, size=64, channels=3, boards=5, views=4)
    for number in range(28):
        defective, mask, _ = stage.photograph(number, Row("", NG, DEFECTS[number % len(DEFECTS)]))
        good, nothing, _ = stage.photograph(number, Row("", OK))
        difference = np.abs(defective.astype(int) - good).max(axis=2)
        assert not nothing.any()
        assert np.median(difference[mask > 0]) > 10
        near = Image.fromarray(mask).filter(ImageFilter.MaxFilter(9))
        assert difference[np.asarray(near) == 0].max() < 30


def test_pinholes_are_in_copper_not_in_drilled_holes() -> None:
    stage = _Stage(seed=7, size=64, channels=1, boards=5, views=4)
    darkest = []
    for number in range(80):
        _, mask, _ = stage.photograph(number, Row("", NG, "pinhole"))
        good, _, _ = stage.photograph(number, Row("", OK))
        rows, columns = np.nonzero(mask)
        darkest.append(good[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].min())
    # A hole is nearly black; a pinhole beside one may touch its rim.
    assert np.mean(np.array(darkest) < 30) <= 0.05


def test_images_of_one_view_are_alike_but_never_the_same(boards: Manifest) -> None:
    good = [boards.image(row) for row in boards.rows if row.label == OK][:24]
    assert all(image.shape == (64, 64, 3) for image in good)
    assert len({image.tobytes() for image in good}) == 24
    views = [np.mean(good[6 * view : 6 * view + 6], axis=0) for view in range(4)]
    within = np.mean([np.abs(good[6 * view + k] - views[view]).mean() for view in range(4) for k in range(6)])
    between = np.mean([np.abs(views[a] - views[b]).mean() for a in range(4) for b in range(a)])
    assert within < 0.6 * between


@pytest.mark.parametrize(("size", "channels"), [(32, 1), (48, 3), (160, 1)])
def test_size_and_channels_are_as_asked(tmp_path: Path, size: int, channels: int) -> None:
    manifest = render_boards(tmp_path / "set", boards=3, count_ok=3, count_ng=7, size=size, channels=channels)
    assert all(manifest.image(row).shape == (size, size, channels) for row in manifest.rows)


@pytest.mark.parametrize("seed", range(6))
def test_every_class_finds_its_place_on_every_product(tmp_path: Path, seed: int) -> None:
    manifest = render_boards(tmp_path / "set", boards=3, count_ok=1, count_ng=84, size=32, seed=seed)
    assert manifest.counts()["NG"] == 84


@pytest.mark.parametrize("bad", [{"size": 8}, {"channels": 2}, {"count_ok": 0}, {"boards": 0}])
def test_impossible_wishes_are_refused(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="cannot render"):
        render_boards(tmp_path / "set", **bad)
    assert leftovers(tmp_path) == []
