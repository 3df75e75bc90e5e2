"""Keyset pages: a cursor names the last item seen, so pages neither repeat nor skip while rows are added."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from kizu.service.problems import Problem

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=500, description="Items on a page.")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next` of the page before.")]


class Page(BaseModel, Generic[Item]):
    """Items, and the cursor of the page after them."""

    items: list[Item]
    next: str | None = Field(description="Cursor of the next page; null on the last.")


def encode_cursor(last: UUID) -> str:
    """Return an opaque cursor that points behind the item `last`."""
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> UUID | None:
    """Return the item that a cursor points behind; raises a 422 Problem if the cursor is malformed."""
    if cursor is None:
        return None
    try:
        return UUID(bytes=base64.b64decode(cursor + "==", altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise Problem(
            422, "bad-cursor", "That cursor is not one of this service.", "Start without a cursor."
        ) from error
