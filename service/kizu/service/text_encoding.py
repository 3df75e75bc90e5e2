"""Refusal of addresses that are not UTF-8.

A pure ASGI middleware: the server puts U+FFFD in the place of what it cannot decode, and two serials could become one.
"""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from kizu.service import problems


class Utf8Middleware:
    """Refuse requests whose path or query is not UTF-8 once its percent-escapes are resolved, with 422."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            for part, raw in (("path", scope.get("raw_path") or b""), ("query", scope["query_string"])):
                if not _is_utf8(raw):
                    detail = f"The {part} is not UTF-8; send its characters in UTF-8, percent-encoded."
                    response = problems.render(Request(scope), 422, "invalid-request", detail)
                    await response(scope, receive, send)
                    return
        await self.app(scope, receive, send)


def _is_utf8(raw: bytes) -> bool:
    try:
        unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return False
    return True
