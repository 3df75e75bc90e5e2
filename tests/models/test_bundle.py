from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from kizu.models.bundle import CALIBRATION_FILE, SCHEMA_VERSION, Bundle, BundleError, Session
from tests.service.bundles import as_schema_1, brightness_graph, calibration, make_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 20, 18, 1), dtype=np.uint8)


def test_a_bundle_holds_the_scores_of_its_calibration(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    assert bundle.manifest.schema_version == SCHEMA_VERSION == 2
    assert bundle.calibration is not None
    assert sorted(bundle.calibration.rows) == sorted(calibration().rows)
    assert (tmp_path / "b" / CALIBRATION_FILE).read_bytes() == calibration().to_csv()


def test_a_bundle_of_schema_1_loads_and_scores_without_them(tmp_path: Path) -> None:
    new = make_bundle(tmp_path / "b")
    expected = new.open("cpu").score(IMAGES)
    old = Bundle.read(as_schema_1(new.path))
    assert old.calibration is None
    assert old.manifest.operating_point == new.manifest.operating_point
    for was, now in zip(expected, old.open("cpu").score(IMAGES), strict=True):
        np.testing.assert_array_equal(was, now)


def test_calibration_scores_that_were_changed_or_lost_are_refused(tmp_path: Path) -> None:
    path = make_bundle(tmp_path / "b").path / CALIBRATION_FILE
    content = path.read_bytes()
    path.write_bytes(content.replace(b"calibration,NG,,0.5\n", b"", 1))
    with pytest.raises(BundleError, match=f"{CALIBRATION_FILE} was changed"):
        Bundle.read(tmp_path / "b")
    path.unlink()
    with pytest.raises(BundleError, match=f"{CALIBRATION_FILE} is missing"):
        Bundle.read(tmp_path / "b")


def test_a_graph_may_give_an_embedding_from_schema_2_on(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", graph=brightness_graph(embeds=True))
    assert bundle.open("cpu").embeds
    with pytest.raises(BundleError, match="must map image to score and heatmap"):
        Bundle.read(as_schema_1(bundle.path))


def test_an_embedding_comes_with_the_score_from_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make_bundle(tmp_path / "b", graph=brightness_graph(embeds=True)).open("cpu")
    asked: list[list[str]] = []
    run = onnxruntime.InferenceSession.run

    def counted(self, outputs, feeds):
        asked.append(outputs)
        return run(self, outputs, feeds)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", counted)
    score, heatmap, embedding = session.inspect(IMAGES)
    alone = session.score(IMAGES)
    assert asked == [["score", "heatmap", "embedding"], ["score", "heatmap"]]
    np.testing.assert_array_equal(score, alone[0])
    np.testing.assert_array_equal(heatmap, alone[1])
    assert embedding is not None
    np.testing.assert_allclose(embedding, np.stack([heatmap.min((1, 2)), heatmap.mean((1, 2))], 1), rtol=1e-6)


def test_a_graph_without_an_embedding_says_so() -> None:
    session = Session(brightness_graph(), "cpu")
    assert not session.embeds
    assert session.inspect(IMAGES)[2] is None
