"""The access log, and the request ids that tie its lines to answers and to the other lines of the log.

Notable here:
- A pure ASGI middleware around all others: what they refuse has its id and its line as well.
- The id is the client's `X-Request-ID`, or the proxy's, where it is a plain word; else a random one.
- Health checks that succeed are logged at DEBUG only: proxies ask every second.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "X-Request-ID"
_WORD = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_QUIET = {"/healthz", "/readyz"}
_LONGEST_TARGET = 1000

logger = logging.getLogger("kizu.service.access")

_current: ContextVar[str] = ContextVar("request_id", default="-")


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to the records of a handler: of the request that they belong to, or `-`."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        record.request_id = _current.get()
        return True


class RequestLogMiddleware:
    """Gives every request an id, and logs it once it is answered."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; its answer gets the header `X-Request-ID`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        # Not reset: the server's own lines about this request come after it.
        _current.set(request_id)
        began, status, location, size = time.perf_counter(), 0, "", 0

        async def noted(message: Message) -> None:
            nonlocal status, location, size
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                status, location = message["status"], headers.get("location", "")
            elif message["type"] == "http.response.body":
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception:
            # What is not handled is answered further out.
            status = status or 500
            raise
        finally:
            kind = scope["state"].get("problem") or ("internal-error" if status == 500 else "")
            client = (scope.get("client") or ("-",))[0]
            words = [str(status or "aborted"), kind, location, f"{(time.perf_counter() - began) * 1000:.1f} ms"]
            line = " ".join(word for word in (scope["method"], _target(scope), *words, f"{size} B", client) if word)
            logger.log(_level(scope["path"], status), "%s", line)


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if _WORD.fullmatch(given) else uuid.uuid4().hex


def _target(scope: Scope) -> str:
    """Return path and query as they were sent, on one line."""
    query: bytes = scope["query_string"]
    raw: bytes = (scope.get("raw_path") or scope["path"].encode()) + (b"?" + query if query else b"")
    text = raw[:_LONGEST_TARGET].decode("ascii", "backslashreplace")
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def _level(path: str, status: int) -> int:
    if status >= 500:
        return logging.WARNING
    return logging.DEBUG if path in _QUIET and status == 200 else logging.INFO
