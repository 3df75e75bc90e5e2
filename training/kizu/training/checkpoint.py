"""Checkpoints: one file, written atomically, read with `weights_only=True`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from kizu.errors import UserError
from kizu.files import atomic_file

FORMAT = 1
FILE = "checkpoint.pt"
RENAMED = {"D.verdict.": "D.head."}
"""Networks' parts that older checkpoints, which `generator.start_from` may name, hold under another name."""


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Replace the folder's checkpoint; a crash at any moment leaves the old one or the new one, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    with atomic_file(path) as file:
        torch.save({"format": FORMAT, **state}, file)
    return path


def load(folder: Path) -> dict[str, Any] | None:
    """Read the folder's checkpoint with tensors on the CPU, or None where there is none.

    Raises:
        UserError: the file is damaged or from a newer Kizu.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", "Remove the file to start the run again.") from error
    if state.get("format") != FORMAT:
        raise UserError(f"{path} has checkpoint format {state.get('format')}, not {FORMAT}.", "Update Kizu.")
    if "networks" in state:
        state["networks"] = {_renamed(name): value for name, value in state["networks"].items()}
    return state


def _renamed(name: str) -> str:
    for old, new in RENAMED.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
