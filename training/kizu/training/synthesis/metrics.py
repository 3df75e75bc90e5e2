"""Measurements of a generator in training: one line of `metrics.jsonl` each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kizu import files
from kizu.training.evaluation.kid_fid import SynthesisMetrics
from kizu.training.run import METRICS_FILE


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the measurements of a generator's folder, in order; none where nothing was measured."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def append_metrics(folder: Path, line: dict[str, Any]) -> None:
    """Append a measurement; one that a resumed run repeats replaces the earlier one and those after it."""
    earlier = [old for old in read_metrics(folder) if old["step"] < line["step"]]
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in [*earlier, line])
    files.write_text(folder / METRICS_FILE, text)


def headline(found: SynthesisMetrics) -> dict[str, float]:
    """Return the figures of a measurement that are logged during training."""
    figures = {"kid": found.kid.value, "precision": found.precision, "recall": found.recall}
    if found.fid is not None:
        figures["fid"] = found.fid
    if found.nearest is not None:
        figures["near_copies"] = found.nearest.near_copies.value or 0.0
    return figures
