"""The serving process: its socket, its log and its shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kizu.errors import UserError
from kizu.service.app import create_app
from kizu.service.request_log import RequestIdFilter
from kizu.service.settings import Settings
from kizu.service.storage import schema
from kizu.service.storage.database import Database

logger = logging.getLogger(__name__)


class DrainingServer(uvicorn.Server):
    """A server that reports "not ready" for a while after SIGTERM before it stops accepting."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float):
        super().__init__(config)
        self._app = app
        self._drain_seconds = drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the address once requests are answered."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        for listener in sockets or []:
            address, port = listener.getsockname()[:2]
            logger.info("serving on http://%s:%d", f"[{address}]" if ":" in address else address, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal, or Ctrl-C, cuts it short."""
        state, loop = self._app.state, self._loop
        if sig != signal.SIGTERM or loop is None or state.draining or not self._drain_seconds:
            super().handle_exit(sig, frame)
            return
        state.draining = True
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, super().handle_exit, sig, frame)


def run(settings: Settings) -> None:
    """Bring the database up to date and serve until a signal comes.

    Raises:
        UserError: the database is newer, the address is taken, or the service cannot start for another reason.
    """
    _log_to_stderr()
    database = Database(settings.resolved_database_url())
    schema.upgrade(database)
    database.close()
    settings.blob_dir()
    listener = _listen(settings.host, settings.port)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=int(settings.request_deadline_s) + 20,
    )
    # A user error is reported once, below, and without a traceback.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not hasattr(app.state, "failure"))
    try:
        DrainingServer(config, app, settings.drain_seconds).run(sockets=[listener])
    except SystemExit:
        failure = getattr(app.state, "failure", None)
        raise failure or UserError("The service did not start.", "Its log above says why.") from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"Cannot listen on {host}:{port}: {error}", "Choose another --host or --port.") from error
    return listener


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter())
    for chatty in ("alembic", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
