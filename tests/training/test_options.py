"""From a recipe's options to a configuration: what is taken, what is left alone, what is refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from kizu.errors import UserError
from kizu.models.config import STRICT, Extent, Fixed
from kizu.training.options import REQUIRED, OptionInfo, Options, describe, option_names, preset


@dataclass(frozen=True, config=STRICT)
class Config:
    """What these tests configure."""

    size: Extent
    depth: int = Field(default=3, ge=0)
    """Levels of it."""
    rate: float = Field(default=0.5, gt=0, le=2)
    limit: float | None = None
    loss: Literal["hinge", "ls"] = "hinge"
    """The one
    or the other."""
    fast: bool = False
    batch: Annotated[int, Fixed()] = 4

    @model_validator(mode="after")
    def _fast_is_shallow(self) -> Self:
        if self.fast and self.depth > 4:
            raise ValueError("fast needs a depth of at most 4")
        return self


@dataclass(frozen=True, config=STRICT)
class Wider(Config):
    """One option more."""

    width: int = 1


def make(given: dict[str, Any], values: dict[str, Any] | None = None) -> Config:
    return Options("generator.options", given, values or {}).make(Config, size=8)


def test_options_take_the_place_of_presets_and_these_of_defaults() -> None:
    assert make({}) == Config(8)
    given = {"depth": 4, "rate": 1, "limit": 2.5, "loss": "ls", "fast": True}
    assert make(given) == Config(8, 4, 1, 2.5, "ls", True)
    assert make({"depth": 4}, {"depth": 2, "rate": 0.25}) == Config(8, 4, 0.25)


def test_a_whole_number_serves_as_a_number() -> None:
    assert isinstance(make({"rate": 1}).rate, float)


def test_options_of_another_configuration_are_left_alone() -> None:
    assert make({"latent": 64}) == Config(8)


def test_what_is_fixed_is_no_option() -> None:
    assert make({"size": 9, "batch": 9}) == Config(8)
    with pytest.raises(UserError, match=r"unknown key 'generator\.options\.batch'"):
        Options("generator.options", {"batch": 9}).check(Config)


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
        ({"rate": float("nan")}, "generator.options.rate must be a finite number, not nan"),
        ({"rate": 0}, "generator.options.rate must be greater than 0, not 0"),
        ({"rate": 2.5}, "generator.options.rate must be at most 2, not 2.5"),
        ({"limit": True}, "generator.options.limit must be a number, not True"),
        ({"loss": 1}, "generator.options.loss must be 'hinge' or 'ls', not 1"),
        ({"loss": "minimax"}, "generator.options.loss must be 'hinge' or 'ls', not 'minimax'"),
        ({"fast": 1}, "generator.options.fast must be true or false, not 1"),
        ({"fast": "yes"}, "generator.options.fast must be true or false, not 'yes'"),
        ({"fast": True, "depth": 5}, "generator.options: fast needs a depth of at most 4"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        make(given)
    assert refused.value.problem == message


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UserError) as refused:
        make({"depth": -1, "loss": "no"})
    assert refused.value.problem.splitlines() == [
        "generator.options.depth must be at least 0, not -1",
        "generator.options.loss must be 'hinge' or 'ls', not 'no'",
    ]


def test_unknown_options_are_named_with_the_nearest_and_with_all() -> None:
    Options("generator.options", {"rate": 1, "width": 2}).check(Config, Wider)
    with pytest.raises(UserError) as refused:
        Options("generator.options", {"size": 1, "rate": 1, "dept": 2}).check(Config)
    assert refused.value.problem.splitlines()[1] == (
        "unknown key 'generator.options.dept': did you mean 'depth'? Known here: depth, fast, limit, loss, rate"
    )
    assert "generator.options.size" in refused.value.problem.splitlines()[0]


def test_a_preset_is_found_by_name() -> None:
    presets = {"small": {"depth": 1}, "large": {"depth": 9}}
    assert preset(presets, "large", "generator 'x'") == {"depth": 9}
    with pytest.raises(UserError, match="Unknown preset 'huge' of generator 'x'") as refused:
        preset(presets, "huge", "generator 'x'")
    assert refused.value.remedy == "Known presets: small, large."


def test_options_are_described_with_type_default_bounds_and_docstring() -> None:
    assert describe(Config) == [
        OptionInfo("depth", "a whole number", 3, "≥ 0", "Levels of it."),
        OptionInfo("rate", "a number", 0.5, "> 0, ≤ 2", ""),
        OptionInfo("limit", "a number", None, "", ""),
        OptionInfo("loss", "`hinge`, `ls`", "hinge", "", "The one or the other."),
        OptionInfo("fast", "true or false", False, "", ""),
    ]


def test_inherited_options_keep_their_descriptions() -> None:
    assert option_names(Wider) == [*option_names(Config), "width"]
    assert describe(Wider)[: len(describe(Config))] == describe(Config)


def test_a_key_without_a_default_says_so() -> None:
    @dataclass(frozen=True, config=STRICT)
    class Needy:
        """One field that must be given."""

        kind: str

    assert describe(Needy)[0].default is REQUIRED
