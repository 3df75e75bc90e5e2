"""From a recipe's options to a configuration: what is taken, what is left alone, what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kizu.errors import UserError
from kizu.training import options


@dataclass(frozen=True)
class Config:
    size: int
    depth: int = 3
    rate: float = 0.5
    limit: float | None = None
    loss: str = "hinge"
    fast: bool = False

    def __post_init__(self):
        if self.loss not in ("hinge", "ls"):
            raise ValueError(f"loss must be hinge or ls, not {self.loss!r}")


def configure(given, **keys):
    return options.configure(Config, {"size": 8}, given, "generator.options", **keys)


def test_options_take_the_place_of_defaults_and_of_what_was_fixed():
    assert configure({}) == Config(8)
    given = {"size": 9, "depth": 4, "rate": 1, "limit": 2.5, "loss": "ls", "fast": True}
    assert configure(given) == Config(9, 4, 1, 2.5, "ls", True)


def test_options_of_somebody_else_are_left_alone():
    assert configure({"latent": 64}) == Config(8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"depth": 2.5}, "generator.options.depth must be a whole number, not 2.5"),
        ({"depth": 2.0}, "generator.options.depth must be a whole number, not 2.0"),
        ({"depth": True}, "generator.options.depth must be a whole number, not True"),
        ({"depth": "4"}, "generator.options.depth must be a whole number, not '4'"),
        ({"depth": -1}, "generator.options.depth must be at least 0, not -1"),
        ({"rate": "fast"}, "generator.options.rate must be a number, not 'fast'"),
        ({"rate": False}, "generator.options.rate must be a number, not False"),
        ({"limit": True}, "generator.options.limit must be a number, not True"),
        ({"loss": 1}, "generator.options.loss must be a name, not 1"),
        ({"fast": 1}, "generator.options.fast must be true or false, not 1"),
        ({"fast": "yes"}, "generator.options.fast must be true or false, not 'yes'"),
        ({"loss": "minimax"}, r"\[generator.options\]: loss must be hinge or ls, not 'minimax'"),
    ],
)
def test_values_of_the_wrong_kind_are_refused_by_name(given, message):
    with pytest.raises(UserError, match=message):
        configure(given)


def test_the_least_whole_number_is_the_caller_s_to_say():
    with pytest.raises(UserError, match="at least 2, not 1"):
        configure({"depth": 1}, least=2)
    assert configure({"depth": 2, "rate": 1}, least=2).depth == 2


def test_unknown_options_are_named_with_those_that_there_are():
    known = options.known_options(Config, "size")
    assert known == ["depth", "fast", "limit", "loss", "rate"]
    options.check_names({"rate": 1}, known, "generator.options", "generator 'x'")
    with pytest.raises(UserError, match=r"Unknown option deep, size in \[generator.options\]") as refused:
        options.check_names({"size": 1, "rate": 1, "deep": 2}, known, "generator.options", "generator 'x'")
    assert refused.value.remedy == "Options of generator 'x': depth, fast, limit, loss, rate."


def test_a_preset_is_found_by_name():
    presets = {"small": {"depth": 1}, "large": {"depth": 9}}
    assert options.preset(presets, "large", "generator 'x'") == {"depth": 9}
    with pytest.raises(UserError, match="Unknown preset 'huge' of generator 'x'") as refused:
        options.preset(presets, "huge", "generator 'x'")
    assert refused.value.remedy == "Known presets: small, large."
