"""`benchmarks.ganomaly` end to end, with a stand-in for anomalib's driver."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import ganomaly
from kizu.training.data.render import render_boards


def test_the_command_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., None]) -> None:
    stand_in()
    monkeypatch.setattr(ganomaly, "make_environment", lambda _: Path(sys.executable))
    render_boards(tmp_path / "boards", boards=12, count_ok=72, count_ng=24, size=48, channels=1, seed=1)
    page = tmp_path / "pages" / "ganomaly.md"
    options = "--size 32 --epochs 1 --features 4 --latent 8 --batch-size 8 --threads 1 --repeats 1 --device cpu --json"
    paths = ["--out", str(tmp_path / "out"), "--report", str(page)]
    done = CliRunner().invoke(ganomaly.app, [str(tmp_path / "boards"), *options.split(), *paths])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["figures"]["headline"]["peer_auroc"] == 1.0, "the stand-in scores by label"
    assert result["command"].startswith("python -m benchmarks.ganomaly boards --size 32 --channels 1 --epochs 1")
    text = page.read_text(encoding="utf-8")
    assert result["command"] in text
    assert "every other seed runs in reverse order" in text
    assert str(tmp_path) not in text + done.stdout
