"""Settings and field markers that all configurations of networks and methods share.

Notable here:
- Configurations are frozen dataclasses that pydantic validates, so a recipe's options need no second check.
- Strict: a bool is no whole number and "3" is not 3; a whole number serves as a number. NaN and ∞ are refused.
- The docstring under a field is its description, which `kizu.training.options.describe` gives.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""For `pydantic.dataclasses.dataclass(frozen=True, config=STRICT)`."""


class Fixed:
    """Marker of a field that is no option: the data decides it, or a recipe's key of its own."""


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticKnownError("int_type")
    return value


WHOLE = BeforeValidator(_whole)
"""For a `Literal` of whole numbers, which pydantic compares by ==: true would pass for 1."""

Extent = Annotated[int, Field(ge=1), Fixed()]
"""Height, width or channels of the images."""
