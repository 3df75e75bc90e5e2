"""The manifest: strict about what it reads, exact about what it wrote, and fingerprinted to the last pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import NG, OK, Box, Manifest, Row
from kizu.training.data.pool import in_order

from .conftest import Draw, leftovers

SMALLEST = InputGeometry(height=1, width=1, channels=1)
HEADER = "path,label,defect,group,split,mask,boxes\n"
ORIGIN = "stylegan2-ada:run-deeppcb@1a2b3c4d5e6f:17"


@pytest.fixture
def folder(tmp_path: Path, draw: Draw) -> Path:
    for name in ("a.png", "b.png", "mask.png", "sub/ü 1.png"):
        draw(tmp_path / "set" / name)
    return tmp_path / "set"


def read(folder: Path, text: str, encoding: str = "utf-8") -> Manifest:
    (folder / "manifest.csv").write_bytes(text.encode(encoding))
    return Manifest.read(folder)


def test_what_was_written_is_read_back(folder: Path) -> None:
    boxes = (Box(0, 1, 2.5, 3, "short"), Box(4, 4, 8, 9, 'odd "name", é'))
    rows = [
        Row("a.png", OK, group="board 1", split="train"),
        Row("sub/ü 1.png", NG, "short+odd", "board 2", "test", "mask.png", boxes),
        Row("b.png", ""),
    ]
    Manifest(folder, rows).write()
    manifest = Manifest.read(folder)
    assert manifest.rows == rows
    assert manifest.defects == ["odd", "short"]
    assert manifest.groups == ["board 1", "board 2"]
    assert manifest.counts() == {"OK": 1, "NG": 1, "unlabelled": 1}
    assert (folder / "manifest.csv").read_text(encoding="utf-8").startswith(HEADER)
    assert leftovers(folder) == ["a.png", "b.png", "manifest.csv", "mask.png", "sub"]


def test_synthetic_images_say_where_they_came_from_and_are_counted_apart(folder: Path) -> None:
    rows = [Row("a.png", OK), Row("b.png", NG, "short", origin=ORIGIN), Row("sub/ü 1.png", NG, "short", split="train")]
    Manifest(folder, rows).write()
    manifest = Manifest.read(folder)
    assert manifest.rows == rows
    assert [row.synthetic for row in manifest.rows] == [False, True, False]
    assert manifest.counts() == {"OK": 1, "NG": 1, "unlabelled": 0, "synthetic": 1}
    text = (folder / "manifest.csv").read_text(encoding="utf-8")
    assert text.startswith(HEADER[:-1] + ",origin\na.png,OK,,,,,,\n")
    assert f"b.png,NG,short,,,,,{ORIGIN}\n" in text


def test_an_empty_origin_is_none(folder: Path) -> None:
    rows = read(folder, "path,label,origin,split\na.png,OK,,test\nb.png,NG, g:r:7 ,train\n").rows
    assert rows == [Row("a.png", OK, split="test"), Row("b.png", NG, split="train", origin="g:r:7")]


def test_a_synthetic_image_does_not_tie_its_group_to_train(folder: Path) -> None:
    text = "path,label,group,split,origin\na.png,NG,g7,test,\nb.png,NG,g7,train,g:r:7\n"
    assert len(read(folder, text)) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_spreadsheets_write_is_read(folder: Path, encoding: str, newline: str) -> None:
    text = newline.join(["path,label,split", "./a.png, OK ,train", "", "sub/ü 1.png,NG,test", ""])
    manifest = read(folder, text, encoding)
    assert manifest.rows == [Row("a.png", OK, split="train"), Row("sub/ü 1.png", NG, split="test")]


@pytest.mark.parametrize(
    ("text", "problem", "remedy"),
    [
        ("path,label,defekt\na.png,OK,\n", "line 1: unknown column 'defekt'", "did you mean 'defect'"),
        ("Path,label\na.png,OK\n", "unknown column 'Path'", "did you mean 'path'"),
        ("path,group\na.png,OK\n", "the column 'label' is missing", "path,label,defect"),
        ("path,label,label\na.png,OK,OK\n", "'label' is there twice", "Remove"),
        ("path,label\na.png,ok\n", "line 2: label 'ok' is not one of OK, NG or empty", "upper case"),
        ("path,label,split\na.png,OK,Train\n", "line 2: split 'Train'", "Did you mean 'train'"),
        ("path,label\na.png,OK\n\nb.png,OK\n./a.png,NG\n", "line 5: path 'a.png' is already on line 2", "Remove"),
        ("path,label\n../set/a.png,OK\n", "line 2: path '../set/a.png' leaves", "Copy the file"),
        ("path,label\n/etc/hosts,OK\n", "leaves the data set's folder", "Copy the file"),
        ("path,label\nlink.png,OK\n", "leaves the data set's folder", "Copy the file"),
        ("path,label\nlinked/x.png,OK\n", "leaves the data set's folder", "Copy the file"),
        ("path,label\nsub\\a.png,OK\n", "not a portable path", "forward slashes"),
        ("path,label\n,OK\n", "line 2: the path is empty", "Give"),
        ("path,label\na.png,OK\nmissing.png,OK\n", "line 3: path 'missing.png': there is no such file", "Restore"),
        ("path,label\nsub,OK\n", "no such file", "Restore"),
        ("path,label,mask\na.png,NG,m.png\n", "line 2: mask 'm.png': there is no such file", "Restore"),
        ("path,label,defect\na.png,OK,short\n", "an OK image has defect 'short'", "Label it NG"),
        ('path,label,boxes\na.png,OK,"[[0,0,1,1,""x""]]"\n', "an OK image has boxes", "Label it NG"),
        ("path,label,boxes\na.png,NG,[[1;2\n", "the boxes are not JSON", "Boxes are JSON"),
        ("path,label,boxes\na.png,NG,7\n", "the boxes are not a list", "Boxes are JSON"),
        ('path,label,boxes\na.png,NG,"[[0,0,1,1]]"\n', "is not [x0,y0,x1,y1,class]", "Boxes are JSON"),
        ('path,label,boxes\na.png,NG,"[[0,0,NaN,1,""x""]]"\n', "not numbers", "Boxes are JSON"),
        ('path,label,boxes\na.png,NG,"[[5,0,5,1,""x""]]"\n', "is empty", "Boxes are JSON"),
        ("path,label\na.png,OK,,\n", "line 2: 4 values for 2 columns", "Quote"),
        ('path,label\n"a.png,OK\n', "not valid CSV", "quotes"),
        (
            "path,label,group,split\na.png,OK,g7,train\nb.png,NG,g7,test\n",
            "group 'g7' is in two splits: a.png is in train, b.png in test",
            "one physical thing",
        ),
        ("path,label,origin\na.png,OK,\nb.png,,g:r:1\n", "line 3: a synthetic image has no label", "NG or OK"),
        ("path,label,origin,split\na.png,NG,g:r:1,test\n", "line 2: a synthetic image is in the test", "leave its"),
        ("path,label,origin,split\na.png,OK,g:r:1,calibration\n", "in the calibration split", "never certify"),
        ("path,label,origin\na.png,NG,stylegan\n", "line 2: origin 'stylegan' is not KIND:RUN:SEED", "leave it empty"),
        ("path,label,origin\na.png,NG,g:r:x\n", "is not KIND:RUN:SEED", "stylegan2-ada:run-7:17"),
        ("path,label,origin\na.png,NG,g:r:-1\n", "is not KIND:RUN:SEED", "synthetic"),
        ("path,label,origin\na.png,NG,g:r:1:2\n", "is not KIND:RUN:SEED", "synthetic"),
        ("path,label,origin\na.png,NG,:r:1\n", "is not KIND:RUN:SEED", "synthetic"),
        ('path,label,origin\na.png,NG,"g:r\nr:1"\n', "is not KIND:RUN:SEED", "synthetic"),
        ("path,label,orgin\na.png,NG,\n", "unknown column 'orgin'", "did you mean 'origin'"),
        (HEADER, "lists no image", "Add"),
        ("", "the column 'path' is missing", "columns are"),
    ],
)
def test_bad_manifests_are_refused_by_file_line_and_remedy(
    folder: Path, tmp_path: Path, draw: Draw, text: str, problem: str, remedy: str
) -> None:
    outside = draw(tmp_path / "outside" / "x.png")
    (folder / "link.png").symlink_to(outside)
    (folder / "linked").symlink_to(outside.parent)
    with pytest.raises(UserError) as caught:
        read(folder, text)
    assert problem in caught.value.problem
    assert str(folder / "manifest.csv") in caught.value.problem
    assert remedy in (caught.value.remedy or "")


def test_a_missing_folder_or_manifest_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such data set folder"):
        Manifest.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"manifest\.csv: no such manifest"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda _: b"", lambda _: b"text"])
def test_an_image_that_cannot_be_read_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    manifest = read(folder, "path,label,mask\na.png,OK,\nb.png,NG,mask.png\n")
    for name in ("a.png", "mask.png"):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(UserError, match=r"a\.png"):
        manifest.image(manifest.rows[0])
    with pytest.raises(UserError, match=r"mask\.png"):
        manifest.mask(manifest.rows[1])
    with pytest.raises(UserError, match=r"a\.png"):
        training_tensor(manifest, manifest.rows, SMALLEST)
    (folder / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: the file is missing"):
        manifest.image(manifest.rows[0])


def test_images_are_read_in_the_order_of_rows(folder: Path) -> None:
    manifest = read(folder, "path,label,mask\na.png,OK,\nb.png,NG,mask.png\n")
    told: list[int] = []
    rows = manifest.rows[::-1] * 40
    pixels = list(in_order(manifest.image, rows, told.append))
    assert sum(told) == len(pixels) == 80
    for row, loaded in zip(rows, pixels, strict=True):
        np.testing.assert_array_equal(loaded, manifest.image(row))
    assert manifest.mask(manifest.rows[0]) is None
    mask = manifest.mask(manifest.rows[1])
    assert mask is not None
    assert mask.dtype == np.bool_


def test_the_fingerprint_covers_every_cell_and_pixel_but_not_order_or_place(folder: Path, tmp_path: Path) -> None:
    rows = [
        Row("a.png", OK, "", "g1", "train"),
        Row("b.png", NG, "short", "g2", "test", "mask.png", (Box(0, 0, 2, 2, "short"),)),
    ]
    original = Manifest(folder, rows).fingerprint()
    assert len(original) == 64
    assert Manifest(folder, rows[::-1]).fingerprint() == original
    changes: list[dict[str, Any]] = [
        {"label": ""},
        {"defect": "open"},
        {"group": "g3"},
        {"split": ""},
        {"mask": ""},
        {"boxes": (Box(0, 0, 2, 3, "short"),)},
        {"path": "sub/ü 1.png"},
    ]
    changed = {Manifest(folder, [rows[0], replace(rows[1], **change)]).fingerprint() for change in changes}
    assert len(changed | {original}) == len(changes) + 1
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert Manifest(moved, rows).fingerprint() == original
    for name in ("a.png", "mask.png"):
        before = Manifest(moved, rows).fingerprint()
        (moved / name).write_bytes((moved / name).read_bytes() + b"\0")
        assert Manifest(moved, rows).fingerprint() != before


def test_data_sets_from_before_synthetic_images_keep_their_fingerprint_and_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "mask.png"):
        (tmp_path / name).write_bytes(name.encode())
    boxes = (Box(0, 1, 2.5, 3, "short"),)
    rows = [Row("a.png", OK, "", "g1", "train"), Row("b.png", NG, "short", "g2", "test", "mask.png", boxes)]
    manifest = Manifest(tmp_path, rows)
    # As the version without synthetic images computed and wrote them.
    assert manifest.fingerprint() == "3cb75cf2f4cb48e8263f1ea5439f0330d8197c66700244ea219dfa329ffb35a7"
    manifest.write()
    assert (tmp_path / "manifest.csv").read_text(encoding="utf-8") == (
        HEADER + 'a.png,OK,,g1,train,,\nb.png,NG,short,g2,test,mask.png,"[[0, 1, 2.5, 3, ""short""]]"\n'
    )


def test_the_fingerprint_covers_the_origin(folder: Path) -> None:
    origins = ["", ORIGIN, ORIGIN + "0"]
    assert len({Manifest(folder, [Row("a.png", NG, origin=origin)]).fingerprint() for origin in origins}) == 3


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    defect=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=12),
    group=st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=12),
    corner=st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)),
)
def test_any_names_survive_the_round_trip(folder: Path, defect: str, group: str, corner: tuple[float, float]) -> None:
    box = Box(*corner, corner[0] + 1, corner[1] + 1, defect)
    row = Row("a.png", NG, defect, group, boxes=(box,))
    Manifest(folder, [row]).write()
    assert Manifest.read(folder).rows == [row]
