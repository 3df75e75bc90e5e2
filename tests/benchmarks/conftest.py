"""A stand-in for anomalib's driver, which needs neither anomalib nor its environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import anomalib_peer

DRIVER = """
import json, sys
job = json.load(open(sys.argv[1]))
answer = {
    "scores": [float(label) for label in job["labels"]][: {scores}],
    "prepare_seconds": 0.1, "train_seconds": 2.0, "loading_seconds": 0.2, "import_seconds": 1.0,
    "updates": 3, "parameters": 10, "facts": {"patches": 4}, "onnx": None, "onnx_error": "there is none",
    "throughput": {"model": {"32": 5.0, "1": 2.0}, "pipeline": {"16": 3.0, "1": 1.0}},
    "versions": {"anomalib": "0"},
}
json.dump(answer, open(sys.argv[2], "w"))
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """(scores that it gives at most, its code) → the driver that runs instead of anomalib's."""

    def replace_driver(scores: int = 1000, code: str = DRIVER) -> None:
        driver = tmp_path / "driver.py"
        driver.write_text(code.replace("{scores}", str(scores)), encoding="utf-8")
        monkeypatch.setattr(anomalib_peer, "DRIVER", driver)

    return replace_driver
