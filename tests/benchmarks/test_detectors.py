"""The detectors' table: samples that contain each other, rows that are not run twice, and a page of means."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.detectors import ALL, Cell, Product, figures, matches, read_rows, recipe_of, sampled, specificity
from benchmarks.detectors_report import write_report
from kizu.training.data.manifest import NG, OK, Manifest, Row

ROWS = [Row(path=f"ok{i}", label=OK) for i in range(30)] + [Row(path=f"ng{i}", label=NG) for i in range(20)]


def cell(ng=ALL, seed=0, kind="auto"):
    return Cell("part", 64, kind, ng, seed)


def test_a_sample_of_few_ng_is_part_of_a_sample_of_more():
    def ng(count, seed=0):
        return {row.path for row in sampled(ROWS, cell(count, seed), 10) if row.label == NG}

    assert ng(0) == set()
    assert len(ng(3)) == 3
    assert ng(3) < ng(10) < ng(ALL)
    assert len(ng(ALL)) == 20
    assert ng(3, seed=1) != ng(3)
    assert sum(row.label == OK for row in sampled(ROWS, cell(3), 10)) == 10


def test_the_threshold_misses_no_more_than_the_fnr():
    ng, ok = np.arange(100, 200.0), np.arange(0, 110.0)
    assert specificity(ng, ok, 0.01) == pytest.approx(101 / 110)
    assert specificity(ng, ok, 0.05) == pytest.approx(105 / 110)
    assert specificity(np.array([5.0, 9.0]), np.array([1.0, 6.0]), 0.01) == 0.5


def test_figures_are_of_the_test_split_alone(tmp_path):
    path = tmp_path / "scores.csv"
    lines = [
        "set,path,label,defect,group,score",
        "calibration,a,OK,,,9",
        "test,b,OK,,,1",
        "test,c,OK,,,2",
        "test,d,NG,,,3",
    ]
    path.write_text("\n".join(lines))
    found = figures(path)
    assert found["auroc"] == 1
    assert (found["test_ok"], found["test_ng"]) == (2, 1)


def row(**changes):
    measured = {
        "auroc": 0.9,
        "ap": 0.8,
        "specificity_5": 0.7,
        "specificity_1": 0.6,
        "seconds": 60,
        "images_per_second": 30.0,
    }
    facts = {"date": "2026-01-02T03:04", "cpu": "a CPU", "load": 0.1, "threads": 2, "versions": {"torch": "2"}}
    cell_of = {"data": "part", "size": 64, "kind": "auto", "ng": 10, "seed": 0}
    return {**cell_of, "detectors": ["memory"], "train_ok": 9, "train_ng": 10, **measured, **facts, **changes}


def test_a_finished_row_is_that_of_its_cell_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    path.write_text(json.dumps(row()) + "\n")
    (found,) = read_rows(path)
    assert matches(found, cell(ng=10))
    for other in (cell(ng=10, seed=1), cell(ng=0), cell(ng=10, kind="memory")):
        assert not matches(found, other)


def test_the_page_shows_means_over_splits_and_their_spread(tmp_path):
    write_report([row(auroc=0.8), row(auroc=0.9, seed=1), row(kind="memory", ng=ALL, train_ng=7)], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "## part, 64 px" in page
    assert "| 10 | auto: memory | 2 | 0.850 ± 0.071 |" in page
    assert "| all (7) | memory | 1 | 0.900 |" in page


def test_a_kind_may_be_followed_by_a_preset():
    product = Product(Manifest(Path("part"), ROWS), "part", 64, 1, 10, 10)
    (section,) = recipe_of(cell(kind="classifier pretrained"), product).detector
    assert (section.kind, section.preset) == ("classifier", "pretrained")
    (section,) = recipe_of(cell(), product).detector
    assert (section.kind, section.preset) == ("auto", "small")
