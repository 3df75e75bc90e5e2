"""Objects of the running service, injected into endpoints by their class.

Notable here:
- Knows `app.state` alone: an endpoint asks for what it needs, `Annotated[Database, injected(Database)]`, and imports
  nothing that is built on top of it.
- The application provides every object once, when it starts.
"""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request

Provided = TypeVar("Provided")


def provide(app: FastAPI, *objects: object) -> None:
    """Make each object available to endpoints under its class."""
    app.state.provided = {type(item): item for item in objects}


def injected(kind: type[Provided]) -> Any:
    """Declare a dependency on the provided object of class `kind`."""

    async def dependency(request: Request) -> Provided:
        item = request.app.state.provided[kind]
        assert isinstance(item, kind)
        return item

    return Depends(dependency)
