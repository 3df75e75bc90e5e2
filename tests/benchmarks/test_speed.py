"""The speed table: bundles take turns, and ratios are to the first of the same setting."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmarks import speed
from benchmarks.speed import Setting, Timed, first_images, operator_rows, read_bundles, speed_rows, time_bundles
from kizu.errors import UserError
from kizu.training.data.manifest import Manifest
from tests.service.bundles import SIDE, make_bundle

METRICS: dict[str, object] = {"auroc": {"value": 0.9, "lower": 0.8, "upper": 0.95}}


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, side in (("a", SIDE), ("b", SIDE), ("c", 2 * SIDE)):
        Image.new("L", (side, side), 99).save(folder / f"{name}.png")
    (folder / "manifest.csv").write_text("path,label\na.png,OK\nb.png,NG\nc.png,OK\n")
    return folder


@pytest.fixture
def named(tmp_path):
    return [f"{name}={make_bundle(tmp_path / name, metrics=METRICS).path}" for name in ("one", "two")]


def test_every_bundle_is_timed_once_a_round(named, dataset):
    images = first_images(Manifest.read(dataset), 8)
    assert images.shape == (8, SIDE, SIDE, 1)
    timed = time_bundles(read_bundles(named), images, Setting(1, 4), rounds=3, seconds=0)
    assert [entry.name for entry in timed] == ["one", "two"]
    for entry in timed:
        assert len(entry.wall) == len(entry.core) == 3
        assert min(entry.wall) > 0


def test_figures_are_medians_and_ratios_are_of_rounds():
    setting = Setting(2, 16)
    rows = speed_rows(
        [
            Timed("slow", setting, (1.0, 2.0, 10.0), (4.0, 4.0, 4.0)),
            Timed("fast", setting, (3.0, 4.0, 10.0), (6.0, 6.0, 5.0)),
            Timed("slow", Setting(1, 1), (1.0,), (1.0,)),
        ]
    )
    assert rows == [
        ("slow", "2", "16", "2.0", "4.0", "1", "1"),
        ("fast", "2", "16", "4.0", "6.0", "2.00", "1.50"),
        ("slow", "1", "1", "1.0", "1.0", "1", "1"),
    ]


def test_the_page_says_what_was_measured_on_what(named, dataset, tmp_path, monkeypatch, capsys):
    few = ["--rounds", "1", "--seconds", "0", "--json", "--report", str(tmp_path / "page.md")]
    monkeypatch.setattr("sys.argv", ["speed", str(dataset), *named, *few])
    with pytest.raises(SystemExit) as ended:
        speed.app()
    assert ended.value.code == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 2 * len(speed.THREADS) * len(speed.BATCHES)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| one | brightness | " in page
    assert "0.9000 [0.8000, 0.9500]" in page
    assert result["operators"][-1][0] == "all"
    assert "| operator | one | two |" in page
    assert "Load average when the run began" in page
    assert str(tmp_path) not in page


def test_rare_operators_are_summed():
    rows = operator_rows({"a": {"Conv": 9.0, "Add": 1.0, "Cast": 0.01}, "b": {"Conv": 4.0, "Gemm": 4.0}})
    assert rows == [
        ("Conv", "9.00", "4.00"),
        ("Gemm", "0.00", "4.00"),
        ("Add", "1.00", "0.00"),
        ("others", "0.01", "0.00"),
        ("all", "10.01", "8.00"),
    ]


@pytest.mark.parametrize("text", ["one", "=folder", "one="])
def test_a_bundle_needs_a_name_and_a_folder(text):
    with pytest.raises(UserError, match="is not NAME=BUNDLE"):
        read_bundles([text])
