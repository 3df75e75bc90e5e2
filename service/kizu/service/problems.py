"""RFC 9457 problem details: the exception, the response and its documentation."""

from __future__ import annotations

import http
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from kizu.errors import UserError
from kizu.service.request_log import REQUEST_ID

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(extra="allow", title="Problem")

    type: str
    """Stable identifier of the kind of problem: `urn:kizu:problem:…`, or `about:blank`."""
    title: str
    status: int
    detail: str
    instance: str
    request_id: str | None = None
    """Of the header `X-Request-ID`; the log names it too."""


class Problem(UserError):  # noqa: N818 - the RFC's word
    """A request that cannot be served; also a `UserError`, so that what raises it serves the CLI as well.

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
    """Return the OpenAPI documentation of these statuses as problems."""
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
    """Return a problem as a response."""
    request_id = getattr(request.state, "request_id", None)
    request.state.problem = kind
    title = kind.replace("-", " ").capitalize() if kind else http.HTTPStatus(status).phrase
    content = {
        **(extra or {}),
        "type": f"urn:kizu:problem:{kind}" if kind else "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": request.url.path,
    }
    given = dict(headers or {})
    if request_id is not None:
        content["request_id"] = request_id
        given[REQUEST_ID] = request_id
    return JSONResponse(content, status, headers=given, media_type=MEDIA_TYPE)
