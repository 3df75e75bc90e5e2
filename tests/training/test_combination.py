"""How much each of several detectors counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from kizu.models.ensemble import Ensemble, RankScale
from kizu.training.combination import LEAST_WEIGHT, MOST_NG, _ng, combined
from kizu.training.data.manifest import NG, OK, Manifest, Row
from kizu.training.data.splits import assign_splits
from kizu.training.evaluation.ranking import auroc
from kizu.training.progress import RunLog
from kizu.training.recipe import parse_recipe
from kizu.training.run import Run


class Brightness(nn.Module):
    """Scores an image by the mean of its pixels, or its negative."""

    def __init__(self, sign: float):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        return self.sign * x.mean((1, 2, 3)), x.mean(1, keepdim=True)


class Member:
    """What a combination asks of a detector's method."""

    def __init__(self, sign: float, *, learns_from_ng: bool):
        self.learns_from_ng = learns_from_ng
        self.sign = sign

    def detector(self):
        return Brightness(self.sign)


@pytest.fixture
def run_of(tmp_path):
    """Open a run on plain grey parts, of which NG tend to be lighter."""
    random, rows = np.random.default_rng(0), []
    for number in range(120):
        label = NG if number % 4 == 0 else OK
        grey = int(random.normal(118 if label == NG else 100, 12))
        Image.fromarray(np.full((32, 32), grey, np.uint8)).save(tmp_path / f"{number}.png")
        rows.append(Row(path=f"{number}.png", label=label))
    manifest = Manifest(tmp_path, rows)

    def make(combine="weighted"):
        section = {"kind": "ganomaly"}
        content = {"name": "x", "dataset": "x", "combine": combine, "detector": [section, section]}
        content["image"] = {"size": 32, "channels": 1}
        recipe = parse_recipe(content, "here")
        return Run(recipe, manifest, assign_splits(manifest, 0), "fingerprint", tmp_path, tmp_path)

    return make


def weights(run, *members):
    made, notes = combined(run, members, RunLog(None, quiet=True))
    assert isinstance(made, Ensemble)
    assert bool(notes) == (made.weights[0] != made.weights[1])
    return made.weights.tolist()


def brightness(run, rows):
    return np.array([run.manifest.image(row).mean() for row in rows])


def test_one_that_knows_ok_alone_counts_by_what_it_sees_of_the_train_splits_ng(run_of):
    run = run_of()
    ng = [row for row in run.training if row.label == NG]
    seen = auroc(brightness(run, ng), brightness(run, run.ranking))
    assert seen is not None
    assert 0.7 < seen.value < 0.98
    for sign, expected in ((1.0, (2 * seen.value - 1) ** 2), (-1.0, LEAST_WEIGHT)):
        found = weights(run, Member(1.0, learns_from_ng=True), Member(sign, learns_from_ng=False))
        assert found[1] / found[0] == pytest.approx(expected)


@pytest.mark.parametrize("learn", [(True, True), (False, False)])
def test_all_count_alike_where_all_learned_from_the_same(run_of, learn):
    assert weights(run_of(), *[Member(1.0, learns_from_ng=one) for one in learn]) == [0.5, 0.5]


@pytest.mark.parametrize("combine", ["mean", "max"])
def test_a_recipe_may_ask_for_equal_say(run_of, combine):
    members: Any = [Member(1.0, learns_from_ng=True), Member(1.0, learns_from_ng=False)]
    made, notes = combined(run_of(combine), members, RunLog(None, quiet=True))
    assert not notes
    assert isinstance(made, Ensemble)
    assert made.combine == combine
    assert made.weights.tolist() == [0.5, 0.5]


def test_one_detector_stays_itself(run_of):
    members: Any = [Member(1.0, learns_from_ng=True)]
    assert isinstance(combined(run_of(), members, RunLog(None, quiet=True))[0], Brightness)


def test_of_many_ng_some_of_every_kind_are_asked():
    rows = [Row(path=f"{i}.png", label=NG, defect=str(i // 150)) for i in range(600)]
    asked = _ng([*rows, Row(path="made.png", label=NG, origin="classic")])
    assert len(asked) <= MOST_NG
    assert {row.defect for row in asked} == {"0", "1", "2", "3"}
    assert all(not row.synthetic for row in asked)


def test_weights_decide_the_mean():
    ensemble = Ensemble([Brightness(1.0), Brightness(-1.0)], _scales(), weights=[3.0, 1.0])
    alike = Ensemble([Brightness(1.0), Brightness(-1.0)], _scales())
    x = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8) * torch.tensor([0.2, 0.9]).view(2, 1, 1, 1)
    ranks = [scale(member(x)[0]) for member, scale in zip(ensemble.members, ensemble.scales, strict=True)]
    assert torch.allclose(ensemble(x)[0], 0.75 * ranks[0] + 0.25 * ranks[1])
    assert torch.allclose(alike(x)[0], (ranks[0] + ranks[1]) / 2)


def _scales():
    return [RankScale.fitted(np.linspace(0, 1, 41)), RankScale.fitted(np.linspace(-1, 0, 41))]


@pytest.mark.parametrize("given", [[1.0], [1.0, -0.1], [0.0, 0.0]])
def test_weights_that_mean_nothing_are_refused(given):
    with pytest.raises(ValueError, match=r"weights|members"):
        Ensemble([Brightness(1.0), Brightness(-1.0)], _scales(), weights=given)
