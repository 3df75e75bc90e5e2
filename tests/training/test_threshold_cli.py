"""`kizu threshold` from the outside: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from kizu.models.bundle import CALIBRATION_FILE, MODEL_FILE, Bundle, Derivation
from kizu.models.calibration import CalibrationScore, CalibrationScores
from tests.service.bundles import as_schema_1, make_bundle

METRICS = {
    "auroc": 0.9,
    "operating_point": {
        "fnr": {"count": 1, "total": 50, "confidence": 0.95},
        "specificity": {"count": 45, "total": 60, "confidence": 0.95},
    },
}


def scores(ng: int = 200, ok: int = 100) -> CalibrationScores:
    rng = np.random.default_rng(1)
    found = [("NG", score) for score in rng.uniform(0.35, 0.9, ng)]
    found += [("OK", score) for score in rng.uniform(0.05, 0.6, ok)]
    return CalibrationScores(
        tuple(CalibrationScore("calibration", label, "", float(np.float32(score))) for label, score in found)
    )


def derivation(bundle: Bundle) -> Derivation:
    assert bundle.manifest.derived_from is not None
    return bundle.manifest.derived_from


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "b", metrics=METRICS, scores=scores())


def test_without_a_choice_it_prints_the_curve_and_writes_nothing(kizu, bundle, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    printed = kizu("threshold", bundle.path)
    assert printed.returncode == 0, printed.stderr
    assert "all FNR bounds hold together" in printed.stdout
    assert re.search(r"99\.0 % \[[\d.]+, [\d.]+\] \(99/100\)", printed.stdout)
    assert "now" in printed.stdout
    answer = kizu("threshold", bundle.path, "--json", "--confidence", "0.9")
    document = json.loads(answer.stdout)
    assert (document["confidence"], document["independent_ng"], document["ok"]) == (0.9, 200, 100)
    assert document["threshold"] in [point["threshold"] for point in document["points"]]
    uppers = [point["fnr"]["upper"] for point in document["points"]]
    assert uppers == sorted(uppers)
    counts = [(point["fnr"]["count"], point["specificity"]["count"]) for point in document["points"]]
    assert len(set(counts)) == len(counts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("choice", [("--target-fnr", "0.1"), ("--specificity", "0.95"), ("--at", "0.5")])
def test_a_choice_writes_a_new_bundle_with_the_same_graph(kizu, bundle, tmp_path, choice):
    before = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
    done = kizu("threshold", bundle.path, *choice, "--out", tmp_path / "new" / "one", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    new = Bundle.read(tmp_path / "new" / "one")
    point = new.manifest.operating_point
    assert document["bundle"] == str(new.path)
    assert document["derived_from"] == bundle.fingerprint
    assert document["statement"] == point.statement()
    assert point.chosen == "curve"
    assert point.threshold != bundle.manifest.operating_point.threshold
    assert derivation(new).choice == " ".join(choice)
    for name in (MODEL_FILE, CALIBRATION_FILE):
        assert (new.path / name).read_bytes() == before[name]
    assert {path.name: path.read_bytes() for path in bundle.path.iterdir()} == before


def test_the_new_report_says_which_threshold_its_figures_are_of(kizu, bundle, tmp_path):
    said = kizu("threshold", bundle.path, "--at", "0.5", "--out", tmp_path / "new")
    assert said.returncode == 0, said.stderr
    assert "chosen on the curve of 200 real, unseen NG" in said.stdout
    new = Bundle.read(tmp_path / "new")
    html = new.report.read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(|@import|<script", html)
    words = " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())
    assert "No test figure of this page is of this threshold" in words
    assert "On the test split, at that threshold: FNR 2.0 %" in words
    assert bundle.fingerprint in words
    for mark in ("chosen", "former"):
        assert re.search(rf"\d {mark}\b", words)
    again = kizu("threshold", tmp_path / "new", "--specificity", "0.9", "--out", tmp_path / "newer")
    assert again.returncode == 0, again.stderr
    assert derivation(Bundle.read(tmp_path / "newer")).parent == new.fingerprint


def test_the_recipes_target_restores_the_threshold_of_the_run(kizu, bundle, tmp_path):
    kizu("threshold", bundle.path, "--at", "0.5", "--out", tmp_path / "new")
    done = kizu("threshold", bundle.path, "--target-fnr", "0.05", "--out", tmp_path / "back")
    assert done.returncode == 0, done.stderr
    assert Bundle.read(tmp_path / "back").manifest.operating_point == bundle.manifest.operating_point


def test_what_is_wrong_is_said_with_exit_code_2_and_nothing_is_written(kizu, bundle, tmp_path):
    old = as_schema_1(make_bundle(tmp_path / "old", scores=scores()).path)
    no_ng = make_bundle(tmp_path / "no-ng", scores=scores(ng=0)).path
    tampered = make_bundle(tmp_path / "tampered", scores=scores()).path
    (tampered / CALIBRATION_FILE).write_bytes(scores(ng=5).to_csv())
    out = ("--out", tmp_path / "new")
    for arguments, said in {
        (old,): "schema 1",
        (old, "--at", "0.5", *out): "Export it again",
        (tampered,): "was changed or damaged",
        (tmp_path / "nothing",): "is not a bundle",
        (no_ng, "--target-fnr", "0.1", *out): "no calibration NG",
        (bundle.path, "--at", "0.5", "--specificity", "0.9", *out): "specificity and at",
        (bundle.path, "--at", "nan", *out): "finite",
        (bundle.path, "--at", "high", *out): "--at",
        (bundle.path, "--target-fnr", "1", *out): "between 0 and 1",
        (bundle.path, "--confidence", "95"): "between 0 and 1",
        (bundle.path, "--at", "0.5"): "--out",
        (bundle.path, *out): "no bundle to write",
        (bundle.path, "--at", "0.5", "--out", bundle.path): "never changed in place",
    }.items():
        done = kizu("threshold", *arguments)
        assert done.returncode == 2, arguments
        assert said in " ".join(done.stderr.split()), done.stderr
        assert done.stdout == ""
        assert not (tmp_path / "new").exists()
