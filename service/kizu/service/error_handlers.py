"""Exception handlers: every way in which a request can fail becomes an RFC 9457 problem.

Notable here:
- The one place that knows which status and kind an error of inference or of the registry has over HTTP.
- What a client cannot have caused becomes a 500 that says nothing of the inside; the traceback goes to the log.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from kizu.errors import UserError
from kizu.models.bundle import BundleError
from kizu.models.decode import MEDIA_TYPES
from kizu.service.inference import errors as inference
from kizu.service.problems import Problem, render
from kizu.service.registry import errors as registry

_USER_ERRORS: dict[type, tuple[int, str]] = {
    registry.UnknownRecipeError: (404, "unknown-recipe"),
    registry.UnknownModelError: (404, "unknown-model"),
    registry.ModelRetiredError: (409, "model-retired"),
    registry.ModelIsChampionError: (409, "model-is-champion"),
    registry.NothingToRollBackToError: (409, "nothing-to-roll-back-to"),
    registry.ArchiveTooLargeError: (413, "bundle-too-large"),
    registry.BadArchiveError: (422, "bad-archive"),
    BundleError: (422, "unusable-bundle"),
    UserError: (422, "bad-request"),
}
"""Status and kind of the user errors that are no problems themselves; the nearest base class counts."""

_INFERENCE_ERRORS: dict[type[inference.InferenceError], tuple[int, str, str | None]] = {
    inference.NoChampionError: (409, "no-champion", "Promote a model: kizu models promote ID."),
    inference.ImageTooLargeError: (413, "too-many-pixels", None),
    inference.UnsupportedMediaTypeError: (415, "unsupported-media-type", f"Send {', '.join(MEDIA_TYPES.values())}."),
    inference.MediaTypeMismatchError: (415, "media-type-mismatch", None),
    inference.EmptyImageError: (422, "empty-image", None),
    inference.SeveralPagesError: (422, "several-pages", "Send each page as an image of its own."),
    inference.DamagedImageError: (422, "damaged-image", None),
    inference.ImageTooSmallError: (422, "image-too-small", None),
    inference.ModelUnusableError: (
        503,
        "model-unusable",
        "Add its bundle again, promote another version or roll back.",
    ),
}
"""Status, kind and remedy of the errors whose own words are the problem."""

_RETRY_AFTER = {"Retry-After": "1"}

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""
    app.add_exception_handler(UserError, _user_error)
    app.add_exception_handler(inference.InferenceError, _inference_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(Exception, _unexpected)


def problem_of(error: UserError | inference.InferenceError) -> Problem:
    """Return the problem that stands for an error of inference, of the registry or of the user."""
    match error:
        case Problem():
            return error
        case UserError():
            status, kind = next(_USER_ERRORS[base] for base in type(error).__mro__ if base in _USER_ERRORS)
            return Problem(status, kind, error.problem, error.remedy)
        case inference.OverloadedError():
            return Problem(429, "overloaded", f"{error} Nothing was stored.", "Try again.", headers=_RETRY_AFTER)
        case inference.DeadlineExceededError():
            detail = "The image could not be scored in time; nothing was stored."
            return Problem(503, "deadline-exceeded", detail, "Try again.", headers=_RETRY_AFTER)
        case inference.ScoringFailedError():
            return Problem(500, "scoring-failed", "The model failed on this image; nothing was stored.")
        case _:
            status, kind, remedy = _INFERENCE_ERRORS[type(error)]
            return Problem(status, kind, str(error), remedy)


def _problem_response(request: Request, problem: Problem) -> JSONResponse:
    detail = problem.problem if problem.remedy is None else f"{problem.problem} {problem.remedy}"
    return render(request, problem.status, problem.kind, detail, problem.headers, problem.extra)


async def _user_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, UserError)
    return _problem_response(request, problem_of(error))


async def _inference_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, inference.InferenceError)
    return _problem_response(request, problem_of(error))


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
    # Starlette raises it again behind this answer, and uvicorn logs it with its traceback and closes the connection:
    # said, so that no client sends its next request into it.
    del error
    detail = "An unexpected fault of the service; its log says more."
    return render(request, 500, "internal-error", detail, {"Connection": "close"})
