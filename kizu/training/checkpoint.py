"""Checkpoints: one file, written atomically, read with `weights_only=True`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from kizu.errors import UserError

FORMAT = 1
FILE = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Replace the folder's checkpoint; a crash at any moment leaves the old one or the new one, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    temporary = folder / f".{FILE}.tmp"
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return path


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint with tensors on the CPU, or None where there is none.

    Raises:
        UserError: the file is damaged or from a newer Kizu.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", "Remove the file to start the run again.") from error
    if state.get("format") != FORMAT:
        raise UserError(f"{path} has checkpoint format {state.get('format')}, not {FORMAT}.", "Update Kizu.")
    return state
