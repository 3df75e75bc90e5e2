"""Classes left out of training: who sees them, and what is compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Row
from kizu.training.data.render import render_boards
from kizu.training.data.splits import Splits
from kizu.training.evaluation.ranking import Difference, auroc, auroc_difference
from kizu.training.recipe import parse_recipe
from kizu.training.study import leave_out
from kizu.training.study.leave_out import Unseen, left_out_classes, unseen_table, verdict, without_class
from kizu.training.study.run import Study, StudySettings


def ng(name, *defects):
    return Row(path=name, label=NG, defect=";".join(defects))


def test_a_class_goes_with_every_ng_that_shows_it():
    rows = [Row(path="a", label=OK), ng("b", "open"), ng("c", "open", "short"), ng("d", "short"), ng("e")]
    assert [row.path for row in without_class(rows, "open")] == ["a", "d", "e"]


def test_classes_that_cannot_be_judged_are_not_left_out():
    many = [ng(f"o{i}", "open") for i in range(5)] + [ng(f"s{i}", "short") for i in range(4)]
    assert left_out_classes(Splits([ng("t", "short")], [], many)) == ["open"]
    with pytest.raises(UserError, match="No class of defect can be left out"):
        left_out_classes(Splits([ng("t", "open")], [], many))


def test_the_difference_is_that_of_the_areas_and_narrower_than_they_are():
    random = np.random.default_rng(0)
    ng_a, ok_a = random.normal(1, 1, 60), random.normal(0, 1, 90)
    ng_b, ok_b = ng_a + random.normal(0, 0.2, 60), ok_a + random.normal(0, 0.2, 90)
    found = auroc_difference(ng_a, ok_a, ng_b, ok_b)
    first, second = auroc(ng_a, ok_a), auroc(ng_b, ok_b)
    assert first is not None
    assert second is not None
    assert found.value == pytest.approx(first.value - second.value)
    assert found.upper - found.lower < 0.5 * (first.upper - first.lower)
    mirrored = auroc_difference(ng_b, ok_b, ng_a, ok_a)
    assert (mirrored.lower, mirrored.upper) == pytest.approx((-found.upper, -found.lower))


def test_the_interval_of_the_difference_covers_it():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        shared_ng, shared_ok = random.normal(0, 1, 40), random.normal(0, 1, 60)
        pairs = [(1 + shared_ng + random.normal(0, 0.7, 40), shared_ok + random.normal(0, 0.7, 60)) for _ in range(2)]
        found = auroc_difference(*pairs[0], *pairs[1])
        covered += found.lower <= 0 <= found.upper
    assert 0.92 <= covered / 300 <= 0.98


@pytest.mark.parametrize(("ng_b", "ok_b"), [([1.0], [0.0, 1.0]), ([1.0, 2.0], [0.0]), ([1.0, np.nan], [0.0, 1.0])])
def test_scores_of_other_parts_are_refused(ng_b, ok_b):
    with pytest.raises(ValueError, match=r"parts|finite"):
        auroc_difference([1.0, 2.0], [0.0, 1.0], ng_b, ok_b)


def unseen(value, lower, upper):
    return Unseen("open", 0, 9, 8, 7, 0.8, 0.8 - value, Difference(0.8, 0.8 - value, value, lower, upper))


def test_the_verdict_counts_what_is_significant():
    found = [unseen(0.1, 0.05, 0.15), unseen(-0.1, -0.2, -0.05), unseen(0.03, -0.1, 0.16)]
    said = verdict(found)
    assert "+0.010 AUROC" in said
    assert "better in 1, worse in 1, no significant difference in 1" in said
    assert len(unseen_table(found).rows) == 3


def test_neither_training_nor_calibration_sees_the_class_and_what_is_done_stays(tmp_path, monkeypatch):
    render_boards(tmp_path / "boards", boards=12, count_ok=60, count_ng=60, size=32, channels=1)
    recipe = parse_recipe(
        {
            "name": "boards",
            "dataset": "boards",
            "image": {"size": 32, "channels": 1},
            "detector": {"kind": "classifier", "epochs": 1, "options": {"features": 4}},
        },
        "here",
    )
    seen: list[tuple[list[str], set[str]]] = []

    def trained(run, execution):
        del execution
        kinds = [section.kind for section in run.recipe.detector]
        rows = [*run.splits.train, *run.splits.calibration]
        seen.append((kinds, {defect for row in rows for defect in row.defects if row.label == NG}))
        lines = [f"test,{row.path},{row.label},,,{int(row.label == NG)}" for row in run.splits.test if row.label]
        (run.folder / "scores.csv").write_text("\n".join(["set,path,label,defect,group,score", *lines]))

    monkeypatch.setattr(leave_out, "train_run", trained)
    study = Study(recipe, tmp_path, tmp_path / "boards", StudySettings(seeds=(0,)), tmp_path / "out")
    found = leave_out.run(study, lambda _: None)
    assert [kinds for kinds, _ in seen].count(["memory"]) == 1
    for (_, classes), one in zip([s for s in seen if s[0] == ["classifier"]], found, strict=True):
        assert one.defect not in classes
        assert classes
    again = leave_out.run(study, lambda _: None)
    assert again == found
    assert len(seen) == len(found) + 1
    assert json.dumps(leave_out.as_dicts(found))
    page = Path(tmp_path / "page.md")
    leave_out.write_page(found, ["- a fact"], page)
    assert found[0].defect in page.read_text()
