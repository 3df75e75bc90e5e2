"""Each error of inference and of the registry has its status, kind and words over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from kizu.errors import DivergedError, UserError
from kizu.models.bundle import BundleError
from kizu.service.error_handlers import install, problem_of
from kizu.service.inference import errors as inference
from kizu.service.problems import Problem
from kizu.service.registry import errors as registry

RETRY = {"Retry-After": "1"}
ROWS: list[tuple[inference.InferenceError | UserError, int, str, str, dict[str, str]]] = [
    (inference.OverloadedError("Full."), 429, "overloaded", "Full. Nothing was stored. Try again.", RETRY),
    (
        inference.DeadlineExceededError(),
        503,
        "deadline-exceeded",
        "The image could not be scored in time; nothing was stored. Try again.",
        RETRY,
    ),
    (
        inference.ScoringFailedError((4, 4, 1)),
        500,
        "scoring-failed",
        "The model failed on this image; nothing was stored.",
        {},
    ),
    (
        inference.NoChampionError("r"),
        409,
        "no-champion",
        "Recipe r has no champion. Promote a model: kizu models promote ID.",
        {},
    ),
    (
        inference.ModelUnusableError("m", "It is damaged."),
        503,
        "model-unusable",
        "Model m cannot be used: It is damaged. Add its bundle again, promote another version or roll back.",
        {},
    ),
    (inference.EmptyImageError(), 422, "empty-image", "The body holds no image: it is empty.", {}),
    (
        inference.UnsupportedMediaTypeError("x is not a supported type."),
        415,
        "unsupported-media-type",
        "x is not a supported type. Send image/jpeg, image/png, image/bmp, image/tiff.",
        {},
    ),
    (
        inference.MediaTypeMismatchError("image/png", "image/jpeg"),
        415,
        "media-type-mismatch",
        "Declared as image/png, but the content is image/jpeg.",
        {},
    ),
    (inference.ImageTooLargeError("Too large."), 413, "too-many-pixels", "Too large.", {}),
    (
        inference.ImageTooSmallError((15, 40), "16×17 pixels"),
        422,
        "image-too-small",
        "The image is 15×40 pixels; the recipe needs at least 16×17 pixels.",
        {},
    ),
    (
        inference.SeveralPagesError(),
        422,
        "several-pages",
        "The TIFF has several pages, and an inspection scores one image. Send each page as an image of its own.",
        {},
    ),
    (inference.DamagedImageError("Cut off."), 422, "damaged-image", "Cut off.", {}),
    (
        registry.UnknownRecipeError("r"),
        404,
        "unknown-recipe",
        "There is no recipe r. Add a model for it: kizu models add BUNDLE.",
        {},
    ),
    (
        registry.UnknownModelError("m"),
        404,
        "unknown-model",
        "There is no model m. List them with kizu models list.",
        {},
    ),
    (
        registry.ModelRetiredError("r v1"),
        409,
        "model-retired",
        "r v1 is retired. Add its bundle again to bring it back.",
        {},
    ),
    (
        registry.ModelIsChampionError("r v1", "r"),
        409,
        "model-is-champion",
        "r v1 is the champion of r. Promote another version first.",
        {},
    ),
    (
        registry.NothingToRollBackToError("r"),
        409,
        "nothing-to-roll-back-to",
        "No earlier champion of r is left.",
        {},
    ),
    (
        registry.BadArchiveError("it holds a file twice"),
        422,
        "bad-archive",
        "The archive is refused: it holds a file twice. Send a ZIP of the files of a bundle's folder.",
        {},
    ),
    (
        registry.ArchiveTooLargeError(),
        413,
        "bundle-too-large",
        "The bundle is larger than allowed once extracted.",
        {},
    ),
    (BundleError("Damaged.", "Export it again."), 422, "unusable-bundle", "Damaged. Export it again.", {}),
    (UserError("Wrong."), 422, "bad-request", "Wrong.", {}),
    (DivergedError("A kind of its own."), 422, "bad-request", "A kind of its own.", {}),
]
"""(error, status, kind, detail, headers)"""


async def get(app: FastAPI, path: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        return await client.get(path)


def subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for kind in children:
        yield kind
        yield from subclasses(kind)


def test_no_error_of_inference_or_of_the_registry_is_left_out() -> None:
    known = {kind for kind in subclasses(UserError) if kind.__module__ == registry.__name__}
    assert known | set(subclasses(inference.InferenceError)) <= {type(row[0]) for row in ROWS}


@pytest.mark.parametrize(
    ("error", "status", "kind", "detail", "headers"), ROWS, ids=[type(row[0]).__name__ for row in ROWS]
)
def test_status_kind_words_and_headers(
    error: inference.InferenceError | UserError, status: int, kind: str, detail: str, headers: dict[str, str]
) -> None:
    app = FastAPI()
    install(app)

    @app.get("/here")
    def fail() -> None:
        raise error

    response = asyncio.run(get(app, "/here"))
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers.get("retry-after") == headers.get("Retry-After")
    content = response.json()
    assert (content["type"], content["detail"]) == (f"urn:kizu:problem:{kind}", detail)
    assert content["instance"] == "/here"


def test_a_problem_stands_for_itself() -> None:
    problem = Problem(418, "teapot", "Short and stout.", headers={"A": "b"}, extra={"c": 1})
    assert problem_of(problem) is problem
