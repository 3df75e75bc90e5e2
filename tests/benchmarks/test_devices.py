"""The measurement of training steps: on the CPU with the smallest of everything, and that a failure is told."""

from pathlib import Path

import pytest

from benchmarks import devices
from kizu.training.detectors import DETECTORS

TINY = devices.DeviceBenchmarkSettings("cpu", 32, 4, 1, tiny=True)


def test_every_method_is_measured_and_its_figures_are_a_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    environment = {"load": 0.0, "date": "today", "cpu": "one", "gpus": [], "system": "any", "versions": {"kizu": "1"}}
    result = devices.result_of(TINY, environment, lambda _: None)
    measured = {entry["method"] for entry in result["figures"]}
    assert {name.partition(":")[0] for name in measured} >= DETECTORS.keys()
    assert measured >= {"stylegan2-ada demo, 16 px", "fanogan: encoder", "padim: its fit"}
    for entry in result["figures"]:
        assert not entry["problem"], entry["method"]
        assert entry["step_ms"] > 0
    page.write_text(devices.render_markdown(result), encoding="utf-8")
    assert "| classifier | fp32 |" in page.read_text(encoding="utf-8")

    def failing(*_arguments: object) -> None:
        raise RuntimeError("out of | memory")

    monkeypatch.setattr(devices, "create_detector", failing)
    (told,) = devices.attempted("draem", "fp32", devices.detector("draem", "fp32", TINY, tmp_path))
    assert told.row == ("draem", "fp32", "", "", "", "RuntimeError: out of / memory")
