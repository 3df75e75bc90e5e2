"""Field types of the API: text without control characters, dates with an offset."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, PlainSerializer

_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d[T ]")
_OUT_OF_RANGE = "must lie between the years 1970 and 9000 in UTC; is the clock set that it comes from?"
_UNESCAPED_PLUS = re.compile(r"(T\d\d:\d\d[\d:.]*) (\d\d:?\d\d)$")


def _without_control_characters(text: str) -> str:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("must not contain control characters")
    return text


def _printable_lines(text: str) -> str:
    _without_control_characters(re.sub(r"[\t\r\n]", "", text))
    return text


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _stripped_or_none(value: Any) -> Any:
    return (value.strip() or None) if isinstance(value, str) else value


def _iso(value: Any) -> Any:
    if isinstance(value, str):
        # A query string turns an unescaped + into a space; there it can only have been the offset's sign.
        value = _UNESCAPED_PLUS.sub(r"\1+\2", value.strip())
        if not _ISO_DATE.match(value):
            raise ValueError("must be an ISO 8601 date and time with an offset, such as 2026-03-01T12:30:00+01:00")
    return value


def _utc(moment: datetime) -> datetime:
    # Converted first: the first hours of 1970 in Tokyo are 1969 in UTC, and that is what is stored and shown.
    try:
        utc = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(_OUT_OF_RANGE) from error
    if not 1970 <= utc.year <= 9000:
        raise ValueError(_OUT_OF_RANGE)
    return utc


def _zulu(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


Name = Annotated[
    str, BeforeValidator(_stripped), Field(min_length=1, max_length=128), AfterValidator(_without_control_characters)
]
"""One line of 1 to 128 characters."""

OptionalName = Annotated[Name | None, BeforeValidator(_stripped_or_none)]
"""A Name; empty means not given."""

Note = Annotated[str, Field(max_length=4000), AfterValidator(_printable_lines)]
"""Several lines of text."""

Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_iso),
    AfterValidator(_utc),
    PlainSerializer(_zulu, return_type=str),
]
"""A time that somebody sends: ISO 8601 with an offset, of the years 1970 to 9000 in UTC; UTC inside."""

StoredMoment = Annotated[datetime, PlainSerializer(_zulu, return_type=str)]
"""A time in an answer: ISO 8601 in UTC. What is stored is shown, and never refused."""
