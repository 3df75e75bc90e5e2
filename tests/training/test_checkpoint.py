"""Checkpoints: written whole, and read under the names that networks have today."""

from pathlib import Path

import pytest
import torch

from kizu.errors import UserError
from kizu.training import checkpoint


def test_a_folder_without_a_checkpoint_has_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"step": 3, "networks": {"G.weight": torch.ones(2)}})
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(state["networks"]["G.weight"], torch.ones(2))


def test_older_names_of_the_discriminators_head_are_read_under_todays(tmp_path: Path) -> None:
    weight = torch.ones(2)
    checkpoint.save(tmp_path, {"networks": {"D.verdict.out.weight": weight, "D.blocks.0.conv1.weight": weight}})
    state = checkpoint.load(tmp_path)
    assert state is not None
    assert list(state["networks"]) == ["D.head.out.weight", "D.blocks.0.conv1.weight"]


def test_a_damaged_checkpoint_and_one_of_a_newer_kizu_are_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"format": checkpoint.FORMAT + 1})
    with pytest.raises(UserError, match="Update Kizu"):
        checkpoint.load(tmp_path)
    (tmp_path / checkpoint.FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path)
