"""Errors as RFC 9457 problem details, for every way in which a request can fail.

Notable here:
- A `Problem` is also a `UserError`, so the same function serves the API and the CLI.
- What a client cannot have caused becomes a 500 that says nothing of the inside; the traceback goes to the log.
"""

from __future__ import annotations

import http
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from kizu.errors import UserError
from kizu.models.bundle import BundleError

MEDIA_TYPE = "application/problem+json"

logger = logging.getLogger(__name__)


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str
    """Stable identifier of the kind of problem: `urn:kizu:problem:…`, or `about:blank`."""
    title: str
    status: int
    detail: str
    instance: str


class Problem(UserError):  # noqa: N818 - the RFC's word
    """A request that cannot be served, and why.

    Args:
        status: HTTP status code.
        kind: stable identifier, in kebab case.
        problem: what is wrong with this very request.
        remedy: what to do about it.
        headers: response headers.
        extra: further members of the problem object.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        problem: str,
        remedy: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ):
        super().__init__(problem, remedy)
        self.status = status
        self.kind = kind
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI documentation of these statuses as problems."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": http.HTTPStatus(status).phrase, "content": {MEDIA_TYPE: schema}} for status in statuses
    }


def render(
    request: Request,
    status: int,
    kind: str | None,
    detail: str,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """One problem as a response."""
    title = kind.replace("-", " ").capitalize() if kind else http.HTTPStatus(status).phrase
    content = {
        **(extra or {}),
        "type": f"urn:kizu:problem:{kind}" if kind else "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
    }
    return JSONResponse(content, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(Exception, _unexpected)


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UserError)
    detail = error.problem if error.remedy is None else f"{error.problem} {error.remedy}"
    if isinstance(error, Problem):
        return render(request, error.status, error.kind, detail, error.headers, error.extra)
    kind = "unusable-bundle" if isinstance(error, BundleError) else "bad-request"
    return render(request, 422, kind, detail)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"field": ".".join(str(part) for part in fault["loc"] if part not in ("body", "query", "path", "header"))}
        | {"message": str(fault["msg"])}
        for fault in error.errors()
    ]
    detail = "; ".join(f"{fault['field'] or 'body'}: {fault['message']}" for fault in errors)
    return render(request, 422, "invalid-request", detail, extra={"errors": errors})


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    if error.status_code == 404 and detail == "Not Found":
        detail = f"There is nothing at {request.url.path}. The routes are listed at /docs."
    elif error.status_code == 405:
        detail = f"{request.method} is not possible at {request.url.path}."
    return render(request, error.status_code, None, detail, error.headers)


async def _database_error(request: Request, error: Exception) -> JSONResponse:
    logger.error("the database does not answer: %s", error)
    detail = "The database does not answer at the moment; nothing was stored. Try again."
    return render(request, 503, "database-unavailable", detail, {"Retry-After": "2"})


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises it again behind this answer, and uvicorn logs it with its traceback.
    del error
    return render(request, 500, "internal-error", "An unexpected fault of the service; its log says more.")
