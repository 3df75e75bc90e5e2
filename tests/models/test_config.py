"""Configurations: strict, frozen, validated again when changed, and the same after a file."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from kizu.models.classifier import ClassifierConfig
from kizu.models.draem import DRAEMConfig
from kizu.models.fanogan import FAnoGANConfig
from kizu.models.ganomaly import GANomalyConfig
from kizu.models.memory import MemoryConfig
from kizu.models.semi_supervised import SemiSupervisedConfig
from kizu.models.stylegan2 import StyleGAN2Config

CONFIGS: list[Any] = [
    GANomalyConfig,
    FAnoGANConfig,
    DRAEMConfig,
    MemoryConfig,
    ClassifierConfig,
    SemiSupervisedConfig,
    StyleGAN2Config,
]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_is_the_same_after_json(config: Any) -> None:
    made = config(32, 48, 1)
    assert config(**json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("height", [True, "32", 32.0, 0])
def test_a_side_is_a_whole_number_from_1_on(config: Any, height: object) -> None:
    with pytest.raises(ValueError, match="height"):
        config(height=height, width=32, channels=1)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_field_that_there_is_not_is_refused(config: Any) -> None:
    with pytest.raises(ValueError, match="colour"):
        config(32, 32, 1, colour="red")


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_cannot_change_and_its_copies_are_validated(config: Any) -> None:
    made = config(32, 32, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.height = 64
    assert dataclasses.replace(made, width=48).width == 48
    with pytest.raises(ValueError, match="channels"):
        dataclasses.replace(made, channels=0)


@pytest.mark.parametrize("options", [{"stem_stride": True}, {"views": 3}, {"views": 2.0}, {"lse_temperature": 0}])
def test_a_choice_among_numbers_is_strict(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ClassifierConfig(32, 32, 1, **options)


def test_an_inherited_rule_holds_in_a_subclass() -> None:
    with pytest.raises(ValueError, match="a map of one place"):
        SemiSupervisedConfig(32, 32, 1, halvings=5)
