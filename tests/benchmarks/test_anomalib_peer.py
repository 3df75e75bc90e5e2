"""The way to anomalib and back: with a stand-in for its driver, and with anomalib itself where it is installed."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import anomalib_peer as peer
from benchmarks.ganomaly_trials import IMAGENET, TANH, GanomalyBenchmarkSettings, gather, run_anomalib, run_kizu
from kizu.training.data.manifest import Manifest
from kizu.training.data.render import render_boards

ENVIRONMENT = Path(os.environ.get("KIZU_BENCH_ENVIRONMENT", Path(__file__).parents[2] / "var/bench/anomalib-venv"))


@pytest.fixture(scope="module")
def boards(tmp_path_factory) -> Manifest:
    folder = tmp_path_factory.mktemp("bench") / "boards"
    return render_boards(folder, boards=12, count_ok=72, count_ng=24, size=48, channels=3, seed=1)


@pytest.fixture
def settings() -> GanomalyBenchmarkSettings:
    return GanomalyBenchmarkSettings(size=32, epochs=1, features=4, latent=8, batch_size=8, threads=1, repeats=1)


def test_job_and_answer_go_to_the_driver_and_back(boards, settings, tmp_path, stand_in):
    stand_in()
    material = gather(boards, settings, tmp_path / "pixels")
    trial = run_anomalib(material, settings, 7, TANH, Path(sys.executable), tmp_path / "run")
    assert trial.scores["latent"] == [float(label) for label in material.labels]
    assert trial.throughput["network in torch"] == {32: 5.0, 1: 2.0}
    assert trial.throughput["torch with preprocessing"] == {16: 3.0, 1: 1.0}
    assert trial.loading_seconds == pytest.approx(0.2 * settings.epochs)
    assert any("there is none" in remark for remark in trial.remarks)
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    assert peer.PeerJob.model_validate(job).model_dump(mode="json") == job
    assert (job["seed"], job["network"]["scaling"], len(job["train"])) == (7, "tanh", len(material.train))
    assert all(Path(file).is_file() for file in job["train"] + job["test"])
    assert not set(job["train"]) & set(job["test"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": 1}, "scored 1 of"),
        ({"code": "raise SystemExit('no memory left')"}, "no memory left"),
        ({"code": ""}, "no valid answer"),
    ],
)
def test_a_driver_that_fails_is_an_error_that_says_why(boards, settings, tmp_path, stand_in, changes, said):
    stand_in(**changes)
    material = gather(boards, settings, tmp_path / "pixels")
    with pytest.raises(peer.PeerError, match=said):
        run_anomalib(material, settings, 0, IMAGENET, Path(sys.executable), tmp_path / "run")


def test_the_split_is_kizus_and_images_that_decode_otherwise_are_rewritten(tmp_path, settings):
    rng = np.random.default_rng(0)
    rows = ["path,label,defect,group,split,mask,boxes"]
    for i in range(40):
        label = "NG" if i >= 28 else "OK"
        pixels = rng.integers(0, 2**16, (40, 40), dtype=np.uint16)
        Image.fromarray(pixels if i % 2 else (pixels >> 8).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{label},{'scratch' if label == 'NG' else ''},,,,")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    manifest = Manifest.read(tmp_path)
    material = gather(manifest, settings, tmp_path / "pixels")
    used = [*material.train, *material.test]
    assert {row.split for row in material.train} == {"train"}
    assert {row.split for row in material.test} == {"test"}
    assert {row.label for row in material.train} == {"OK"}
    assert material.rewritten == sum(int(Path(row.path).stem) % 2 for row in used) > 0
    for row in used:
        with Image.open(material.files[row.path]) as image:
            seen = np.asarray(image.convert("RGB"))
        assert (seen == manifest.image(row)).all()
    assert len(material.timed) % 32 == 0
    assert max(material.timed) < len(material.test)


def test_kizus_side_trains_once_and_scores_both_ways(boards, settings, tmp_path):
    material = gather(boards, settings, tmp_path / "pixels")
    trial = run_kizu(material, settings, 0)
    assert set(trial.scores) == {"latent", "peak"}
    assert len(trial.scores["latent"]) == len(trial.scores["peak"]) == len(material.test)
    assert trial.scores["latent"] != trial.scores["peak"]
    assert trial.scores == run_kizu(material, settings, 0).scores
    assert trial.total_seconds >= trial.train_seconds + trial.loading_seconds > 0
    assert set(trial.throughput) == {"network in torch", "ONNX with preprocessing"}
    assert trial.updates == round(len(material.train) / settings.batch_size)


@pytest.mark.skipif(
    "KIZU_TEST_BENCH" not in os.environ or peer.environment_python(ENVIRONMENT) is None,
    reason="slow: runs with KIZU_TEST_BENCH=1 where `benchmarks.ganomaly` has made anomalib's environment",
)
@pytest.mark.parametrize("arm", [IMAGENET, TANH])
def test_anomalib_itself(boards, settings, tmp_path, arm):
    python = peer.environment_python(ENVIRONMENT)
    assert python is not None
    material = gather(boards, settings, tmp_path / "pixels")
    trial = run_anomalib(material, settings, 0, arm, python, tmp_path / "run")
    assert len(trial.scores["latent"]) == len(material.test)
    assert np.isfinite(trial.scores["latent"]).all()
    assert trial.versions["anomalib"] == peer.ANOMALIB_VERSION
    assert trial.updates == -(-len(material.train) // settings.batch_size)
