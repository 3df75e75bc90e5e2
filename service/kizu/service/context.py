"""What the parts of a running service share, and how endpoints get at it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Annotated

from fastapi import Depends, Request

from kizu.service.inference.runtime import Runtime
from kizu.service.inspections.service import Inspector
from kizu.service.settings import Settings
from kizu.service.storage.blobs import LocalBlobStore
from kizu.service.storage.database import Database

_HEATMAPS_KEPT = 64


class ServiceContext:
    """One running service."""

    def __init__(
        self, settings: Settings, database: Database, blobs: LocalBlobStore, runtime: Runtime, inspector: Inspector
    ):
        self.settings = settings
        self.database = database
        self.blobs = blobs
        self.runtime = runtime
        self.inspector = inspector
        self.draining = False
        self.heatmaps = HeatmapCache(_HEATMAPS_KEPT)
        self.loop = asyncio.get_running_loop()


class HeatmapCache:
    """The pictures drawn last."""

    def __init__(self, size: int):
        self._size = size
        self._pictures: OrderedDict[tuple[object, ...], tuple[bytes, dict[str, str]]] = OrderedDict()

    def get(self, key: tuple[object, ...]) -> tuple[bytes, dict[str, str]] | None:
        """A picture with its headers, if it is still here."""
        if key in self._pictures:
            self._pictures.move_to_end(key)
        return self._pictures.get(key)

    def put(self, key: tuple[object, ...], picture: bytes, headers: dict[str, str]) -> None:
        """Keep a picture; the one unused for longest goes."""
        self._pictures[key] = picture, headers
        while len(self._pictures) > self._size:
            self._pictures.popitem(last=False)


def _context(request: Request) -> ServiceContext:
    context = request.app.state.context
    assert isinstance(context, ServiceContext)
    return context


Context = Annotated[ServiceContext, Depends(_context)]
"""The running service, in an endpoint."""
