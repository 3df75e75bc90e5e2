"""Published layouts without tiles: ELPV, MVTec AD and VisA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kizu.errors import UserError
from kizu.training.data.importers.elpv import import_elpv
from kizu.training.data.importers.mvtec import import_mvtec
from kizu.training.data.importers.staging import Journal
from kizu.training.data.importers.visa import import_visa
from kizu.training.data.manifest import NG, OK, Manifest

from ..conftest import Draw, leftovers

LABELS = """images/1.png  0.0                 mono
images/2.png  0.3333333333333333  poly
images/3.png  0.6666666666666666  mono

images/4.png  1.0                 poly
"""


@pytest.fixture
def elpv(tmp_path: Path, draw: Draw) -> Path:
    for number in range(1, 5):
        draw(tmp_path / "source" / "data" / "images" / f"{number}.png")
    (tmp_path / "source" / "data" / "labels.csv").write_text(LABELS)
    return tmp_path / "source"


@pytest.mark.parametrize("place", ["", "data", "upstream"])
def test_elpv_is_ok_at_0_ng_at_1_else_unlabelled(elpv: Path, tmp_path: Path, place: str) -> None:
    source = elpv / "data" if place == "data" else elpv
    if place == "upstream":
        (elpv / "src" / "elpv_dataset").mkdir(parents=True)
        (elpv / "data").rename(elpv / "src" / "elpv_dataset" / "data")
    journal = Journal()
    manifest = import_elpv(source, tmp_path / "set", journal=journal)
    assert [(row.path, row.label, row.defect) for row in manifest.rows] == [
        ("images/1.png", OK, ""),
        ("images/2.png", "", ""),
        ("images/3.png", "", ""),
        ("images/4.png", NG, "defective"),
    ]
    assert Manifest.read(tmp_path / "set").rows == manifest.rows
    assert journal.skipped == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("images/4.png", "images/1.png", r"labels\.csv, line 5: 'images/1\.png' is already on line 1"),
        ("images/4.png", "images/9.png", r"images/9\.png: the file is missing"),
        ("images/4.png", "../4.png", "line 5: .* leaves the folder"),
        ("1.0", "1.5", "line 5: '1.5' is not a probability"),
        ("1.0", "yes", "line 5: 'yes' is not a probability"),
        ("poly", "poly more", "line 2: .* is not 'path probability type'"),
        ("0.0 ", "0.5 ", "there is no OK image"),
    ],
)
def test_bad_elpv_is_refused_by_line(elpv: Path, tmp_path: Path, old: str, new: str, problem: str) -> None:
    (elpv / "data" / "labels.csv").write_text(LABELS.replace(old, new))
    with pytest.raises(UserError, match=problem):
        import_elpv(elpv, tmp_path / "set")
    assert leftovers(tmp_path) == ["source"]


def test_elpv_without_labels_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"labels\.csv: no such file"):
        import_elpv(tmp_path, tmp_path / "set")


def test_real_elpv_is_imported_whole(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    source = real_data("elpv")
    manifest = import_elpv(source, tmp_path / "set")
    assert sum(manifest.counts().values()) == len((source / "data" / "labels.csv").read_text().splitlines())
    assert min(manifest.counts().values()) > 0
    assert manifest.image(manifest.rows[0]).shape == (300, 300, 1)


@pytest.fixture
def mvtec(tmp_path: Path, draw: Draw) -> Path:
    category = tmp_path / "source" / "bottle"
    for name in ("train/good/000.png", "train/good/001.png", "test/good/000.png", "test/crack/000.png"):
        draw(category / name, mode="RGB")
    draw(category / "ground_truth" / "crack" / "000_mask.png", value=255)
    return category


@pytest.mark.parametrize("official", [False, True])
def test_mvtec_has_classes_masks_and_on_wish_its_published_split(mvtec: Path, tmp_path: Path, official: bool) -> None:
    (mvtec / "license.txt").write_text("x")
    journal = Journal()
    manifest = import_mvtec(mvtec, tmp_path / "set", official_split=official, journal=journal)
    train, test = ("train", "test") if official else ("", "")
    assert [(row.path, row.label, row.defect, row.split, row.mask) for row in manifest.rows] == [
        ("test/crack/000.png", NG, "crack", test, "ground_truth/crack/000_mask.png"),
        ("test/good/000.png", OK, "", test, ""),
        ("train/good/000.png", OK, "", train, ""),
        ("train/good/001.png", OK, "", train, ""),
    ]
    assert Manifest.read(tmp_path / "set").rows == manifest.rows
    assert journal.skipped == ["license.txt (not a JPEG, PNG, BMP or TIFF file)"]


def test_mvtec_wants_one_category(mvtec: Path, tmp_path: Path, draw: Draw) -> None:
    assert len(import_mvtec(mvtec.parent, tmp_path / "only")) == 4
    draw(mvtec.parent / "cable" / "train" / "good" / "000.png")
    with pytest.raises(UserError, match="several categories; there are bottle, cable"):
        import_mvtec(mvtec.parent, tmp_path / "set")
    with pytest.raises(UserError, match="no category 'bolt'; there are bottle, cable"):
        import_mvtec(mvtec.parent, tmp_path / "set", category="bolt")
    assert len(import_mvtec(mvtec.parent, tmp_path / "set", category="cable")) == 1
    with pytest.raises(UserError, match="has no train/good folder"):
        import_mvtec(mvtec / "ground_truth", tmp_path / "other")


def test_mvtec_with_an_empty_class_is_refused(mvtec: Path, tmp_path: Path) -> None:
    (mvtec / "test" / "hole").mkdir()
    with pytest.raises(UserError, match="test/hole: the class folder holds no image"):
        import_mvtec(mvtec, tmp_path / "set")


ANNOTATIONS = """image,label,mask
candle/Data/Images/Normal/0.JPG,normal,
candle/Data/Images/Normal/1.JPG,normal,
candle/Data/Images/Anomaly/0.JPG,"wax,chip",candle/Data/Masks/Anomaly/0.png
"""
SPLIT = """object,split,label,image,mask
candle,train,normal,candle/Data/Images/Normal/0.JPG,
candle,test,normal,candle/Data/Images/Normal/1.JPG,
candle,test,anomaly,candle/Data/Images/Anomaly/0.JPG,candle/Data/Masks/Anomaly/0.png
pcb1,train,normal,pcb1/Data/Images/Normal/0.JPG,
"""


@pytest.fixture
def visa(tmp_path: Path, draw: Draw) -> Path:
    category = tmp_path / "source" / "candle"
    for name in ("Normal/0.JPG", "Normal/1.JPG", "Anomaly/0.JPG"):
        draw(category / "Data" / "Images" / name, mode="RGB")
    draw(category / "Data" / "Masks" / "Anomaly" / "0.png", value=2)
    (category / "image_anno.csv").write_text(ANNOTATIONS)
    (category.parent / "split_csv").mkdir()
    (category.parent / "split_csv" / "1cls.csv").write_text(SPLIT)
    return category


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("root", [False, True])
def test_visa_has_classes_masks_and_on_wish_its_published_split(
    visa: Path, tmp_path: Path, official: bool, root: bool
) -> None:
    manifest = import_visa(visa.parent if root else visa, tmp_path / "set", official_split=official)
    rows = {row.path.removeprefix("Data/Images/"): row for row in manifest.rows}
    assert {name: (row.label, row.defects, row.split) for name, row in rows.items()} == {
        "Normal/0.JPG": (OK, (), "train" if official else ""),
        "Normal/1.JPG": (OK, (), "test" if official else ""),
        "Anomaly/0.JPG": (NG, ("chip", "wax"), "test" if official else ""),
    }
    mask = manifest.mask(rows["Anomaly/0.JPG"])
    assert mask is not None
    assert mask.all()
    assert Manifest.read(tmp_path / "set").rows == manifest.rows


def test_visa_without_annotations_has_ng_of_no_class(visa: Path, tmp_path: Path) -> None:
    (visa / "image_anno.csv").unlink()
    journal = Journal()
    manifest = import_visa(visa, tmp_path / "set", journal=journal)
    assert manifest.counts() == {"OK": 2, "NG": 1, "unlabelled": 0}
    assert manifest.defects == []
    assert any("no image_anno.csv" in note for note in journal.notes)
    assert sum(1 for row in manifest.rows if row.mask) == 1


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("image,label,mask", "image,mask", "the column 'label' is missing"),
        ("Normal/1.JPG", "Normal/0.JPG", r"line 3: .* is already listed \(.*line 2\)"),
        ("Normal/1.JPG", "Normal/7.JPG", r"Normal/7\.JPG: the file is missing"),
        ("Masks/Anomaly/0.png", "Masks/Anomaly/5.png", r"Anomaly/5\.png: the file is missing"),
        ("Normal/1.JPG,normal", "Normal/1.JPG,wax", "line 3: label 'wax' contradicts the folder"),
        ("candle/Data/Images/Normal/1.JPG", "../x.JPG", "line 3: .* leaves the folder"),
    ],
)
def test_bad_visa_is_refused_by_line(visa: Path, tmp_path: Path, old: str, new: str, problem: str) -> None:
    (visa / "image_anno.csv").write_text(ANNOTATIONS.replace(old, new))
    with pytest.raises(UserError, match=problem):
        import_visa(visa, tmp_path / "set")
    assert leftovers(tmp_path) == ["source"]


def test_visa_without_its_published_split_is_said(visa: Path, tmp_path: Path) -> None:
    (visa.parent / "split_csv" / "1cls.csv").unlink()
    with pytest.raises(UserError, match=r"1cls\.csv: no such file"):
        import_visa(visa, tmp_path / "set", official_split=True)
