"""Own images in ok/ and ng/ folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kizu.errors import UserError
from kizu.training.data.importers.folder import import_folder
from kizu.training.data.importers.staging import Journal
from kizu.training.data.manifest import NG, OK, Manifest

from ..conftest import Draw, leftovers


def test_labels_defects_and_masks_come_from_folders(tmp_path: Path, draw: Draw) -> None:
    source = tmp_path / "source"
    for name in ("OK/1.png", "OK/deeper/still/2.JPG", "Ng/scratch/3.bmp", "Ng/scratch/lot 4/4.tiff", "Ng/5.png"):
        draw(source / name)
    draw(source / "unlabelled" / "6.png")
    draw(source / "elsewhere" / "7.png")
    for name in ("masks/Ng/scratch/3.png", "masks/scratch/lot 4/4_mask.png", "masks/5.bmp", "masks/OK/1.png"):
        draw(source / name, value=255)
    journal = Journal()
    manifest = import_folder(source, tmp_path / "set", journal=journal)
    found = {row.path: (row.label, row.defect, row.mask) for row in manifest.rows}
    assert found == {
        "OK/1.png": (OK, "", ""),
        "OK/deeper/still/2.JPG": (OK, "", ""),
        "Ng/scratch/3.bmp": (NG, "scratch", "masks/Ng/scratch/3.png"),
        "Ng/scratch/lot 4/4.tiff": (NG, "scratch", "masks/scratch/lot 4/4_mask.png"),
        "Ng/5.png": (NG, "", "masks/5.bmp"),
        "unlabelled/6.png": ("", "", ""),
    }
    assert Manifest.read(tmp_path / "set").rows == manifest.rows
    assert journal.skipped == [
        "elsewhere/7.png (in no ok, ng or unlabelled folder)",
        "masks/OK/1.png (mask of no NG image)",
    ]
    for row in manifest.rows:
        assert (tmp_path / "set" / row.path).read_bytes() == (source / row.path).read_bytes()
    mask = manifest.mask(manifest.rows[0] if manifest.rows[0].mask else manifest.rows[1])
    assert mask is not None
    assert np.all(mask)


def test_an_empty_mask_is_left_out_and_its_image_noted(tmp_path: Path, draw: Draw) -> None:
    for name in ("ok/1.png", "ng/dent/2.png", "ng/dent/3.png"):
        draw(tmp_path / "source" / name)
    for number in (2, 3):
        draw(tmp_path / "source" / "masks" / "dent" / f"{number}.png", value=255 * (number - 2))
    journal = Journal()
    manifest = import_folder(tmp_path / "source", tmp_path / "set", journal=journal)
    assert journal.empty_masks == ["ng/dent/2.png"]
    assert {row.path: row.mask for row in manifest.rows} == {
        "ok/1.png": "",
        "ng/dent/2.png": "",
        "ng/dent/3.png": "masks/dent/3.png",
    }
    assert Manifest.read(tmp_path / "set").rows == manifest.rows
    assert not (tmp_path / "set" / "masks" / "dent" / "2.png").exists()


def test_all_files_at_fault_are_named_at_once(tmp_path: Path, draw: Draw) -> None:
    source = tmp_path / "source"
    for name in ("ok/1.png", "ok/2.png", "ng/dent/3.png", "ng/dent/4.png", "ng/dent/5.png"):
        draw(source / name)
    for number in (3, 4):
        draw(source / "masks" / "dent" / f"{number}.png", size=(16, 8 + number))
    (source / "ok" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="3 files cannot be imported, and nothing was") as caught:
        import_folder(source, tmp_path / "set")
    masks = source / "masks" / "dent"
    assert caught.value.details[:2] == (
        f"{masks / '3.png'}: the mask is 16×11 pixels, its image {source / 'ng/dent/3.png'} 16×16",
        f"{masks / '4.png'}: the mask is 16×12 pixels, its image {source / 'ng/dent/4.png'} 16×16",
    )
    assert str(source / "ok" / "2.png") in caught.value.details[2]
    assert leftovers(tmp_path) == ["source"]


def test_one_class_data_are_allowed_and_said(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "source" / "good" / "1.png")
    journal = Journal()
    import_folder(tmp_path / "source", tmp_path / "set", journal=journal)
    assert "one-class" in journal.notes[0]


@pytest.mark.parametrize(
    ("group_by", "groups"),
    [("none", ["", "", ""]), ("parent", ["b1", "b1", "b2"]), (r"/b(\d+)/", ["1", "1", "2"])],
)
def test_groups_come_from_the_path(tmp_path: Path, draw: Draw, group_by: str, groups: list[str]) -> None:
    for name in ("ng/scratch/b1/3.png", "ok/b1/1.png", "ok/b2/2.png"):
        draw(tmp_path / "source" / name)
    manifest = import_folder(tmp_path / "source", tmp_path / "set", group_by=group_by)
    assert [row.group for row in sorted(manifest.rows, key=lambda row: row.path)] == groups


def test_the_folder_above_the_label_can_be_the_group(tmp_path: Path, draw: Draw) -> None:
    for name in ("b1/ok/1.png", "b1/ng/scratch/2.png", "b2/ok/3.png"):
        draw(tmp_path / "source" / name)
    manifest = import_folder(tmp_path / "source", tmp_path / "set", group_by="parent")
    assert {row.path: row.group for row in manifest.rows} == {
        "b1/ok/1.png": "b1",
        "b1/ng/scratch/2.png": "b1",
        "b2/ok/3.png": "b2",
    }


@pytest.mark.parametrize(
    ("group_by", "problem"),
    [
        ("parent", "has no folder to be grouped by"),
        (r"(\d+)-(\d+)", "2 capture groups"),
        ("board", "0 capture groups"),
        ("(", "not a regular expression"),
        (r"board(\d+)", "does not match it"),
    ],
)
def test_a_grouping_that_does_not_fit_is_refused(tmp_path: Path, draw: Draw, group_by: str, problem: str) -> None:
    draw(tmp_path / "source" / "ok" / "1.png")
    with pytest.raises(UserError, match=problem):
        import_folder(tmp_path / "source", tmp_path / "set", group_by=group_by)
    assert leftovers(tmp_path) == ["source"]


def test_bad_sources_are_refused_by_name_and_leave_nothing(tmp_path: Path, draw: Draw) -> None:
    def refuse(problem: str) -> None:
        with pytest.raises(UserError, match=problem) as caught:
            import_folder(source, tmp_path / "set")
        assert caught.value.remedy
        assert leftovers(tmp_path) == ["source"]

    source = tmp_path / "source"
    with pytest.raises(UserError, match="no such folder"):
        import_folder(source, tmp_path / "set")
    source.mkdir()
    refuse("no images in ok or ng folders")
    draw(source / "ng" / "scratch" / "1.png")
    refuse("there is no OK image")
    good = draw(source / "ok" / "1.png")
    (source / "ng" / "dent").mkdir()
    refuse(r"ng/dent: the class folder holds no image")
    (source / "ng" / "dent").rmdir()
    draw(source / "masks" / "scratch" / "1.png", size=(16, 17))
    refuse(r"masks/scratch/1\.png: the mask is 16×17 pixels, its image .*ng/scratch/1\.png 16×16")
    draw(source / "masks" / "scratch" / "1.bmp")
    refuse("has several masks")
    (source / "masks" / "scratch" / "1.png").unlink()
    for data in (good.read_bytes()[:-30], b"", b"no image"):
        good.write_bytes(data)
        refuse(r"ok/1\.png")


def test_an_empty_ng_folder_is_a_slip_not_a_one_class_data_set(tmp_path: Path, draw: Draw) -> None:
    draw(tmp_path / "source" / "ok" / "1.png")
    (tmp_path / "source" / "ng").mkdir()
    with pytest.raises(UserError, match="ng: the class folder holds no image"):
        import_folder(tmp_path / "source", tmp_path / "set")
