"""Limits on the size of request bodies, whatever Content-Length claims.

A pure ASGI middleware: it counts what really arrives, so chunked bodies and false lengths change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kizu.service import problems


class BodyTooLargeError(HTTPException):
    """A body over its limit. An HTTPException, the only error that passes through FastAPI's parsing of bodies."""

    def __init__(self, limit: int):
        super().__init__(413, f"The body is larger than the {limit} bytes allowed here.")


class BodyLimitMiddleware:
    """Refuse bodies that are larger than `limit_of(method, path)` bytes with 413."""

    def __init__(self, app: ASGIApp, limit_of: Callable[[str, str], int]):
        self.app = app
        self.limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with its body limited."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limit_of(scope["method"], scope["path"])
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared) > limit:
            response = problems.render(Request(scope), 413, "body-too-large", BodyTooLargeError(limit).detail)
            await response(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise BodyTooLargeError(limit)
            return message

        await self.app(scope, limited, send)
