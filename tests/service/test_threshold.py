"""A bundle whose threshold was chosen after training serves like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kizu.models.bundle import write_bundle
from kizu.models.calibration import CalibrationScore, CalibrationScores
from kizu.models.rethreshold import ThresholdChoice, choose_threshold, derived_manifest

from .bundles import make_bundle, picture
from .conftest import inspected, upload
from .processes import Server


def test_verdicts_follow_a_threshold_that_was_chosen_later(server: Server, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    found = [("NG", score) for score in rng.uniform(0.35, 0.9, 120)]
    found += [("OK", score) for score in rng.uniform(0.05, 0.6, 80)]
    scores = CalibrationScores(
        tuple(CalibrationScore("calibration", label, "", float(np.float32(score))) for label, score in found)
    )
    name = f"chosen-{tmp_path.name}-{server.port}"
    bundle = make_bundle(tmp_path / "b", name, scores=scores)
    choice = ThresholdChoice(specificity=0.95)
    point = choose_threshold(bundle, choice)
    write_bundle(tmp_path / "new", bundle.model, scores, derived_manifest(bundle, point, choice), "<html></html>")
    upload(server, bundle.path, promote=True)
    levels = range(80, 200, 8)
    before = [inspected(server, name, picture(level)) for level in levels]
    model = upload(server, tmp_path / "new", promote=True)
    after = [inspected(server, name, picture(level)) for level in levels]
    assert model["certificate"]["statement"] == point.statement()
    assert (model["certificate"]["basis"], model["certificate"]["chosen"]) == ("above-target", "curve")
    for answers, decided in ((before, bundle.manifest.operating_point), (after, point)):
        assert [answer["verdict"] for answer in answers] == [decided.verdict(answer["score"]) for answer in answers]
    assert [answer["score"] for answer in before] == [answer["score"] for answer in after]
    assert [answer["verdict"] for answer in before] != [answer["verdict"] for answer in after]
