"""Parser of an HTTP request that submits an image: raw or multipart, with metadata and idempotency key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from kizu.models.decode import MEDIA_TYPES
from kizu.service.inference.decode import check_content_type
from kizu.service.inspections.admission import AdmittedRequest
from kizu.service.inspections.schemas import Metadata
from kizu.service.inspections.submission import Submission
from kizu.service.problems import Problem

MAX_KEY = 255
_IMAGE_FIELD = "image"

_BINARY = {"schema": {"type": "string", "format": "binary"}}
OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": name == "recipe",
            "description": f"{field.description} May also be a form field.",
            "schema": {"type": "string", "maxLength": 128}
            if name != "captured_at"
            else {"type": "string", "format": "date-time"},
        }
        for name, field in Metadata.model_fields.items()
    ]
    + [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "The same key with the same body gives the stored answer, with another body 422.",
            "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            **dict.fromkeys(MEDIA_TYPES.values(), _BINARY),
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [_IMAGE_FIELD],
                    "properties": {
                        _IMAGE_FIELD: _BINARY["schema"],
                        **{name: {"type": "string"} for name in Metadata.model_fields},
                    },
                }
            },
        },
    },
}


async def read_submission(request: Request, admitted: AdmittedRequest, timeout: float) -> Submission:
    """Read what a request submits; its body is counted in `admitted`, and must arrive within `timeout` seconds.

    Raises:
        Problem: 400 the client went away, 408 the body came too slowly, 422 a bad form or idempotency key.
        OverloadedError: too many bytes are in work.
        UnsupportedMediaTypeError: the declared type is not an image.
        RequestValidationError: bad metadata.
    """
    key = _idempotency_key(request)
    declared = request.headers.get("content-type", "")
    multipart = declared.split(";")[0].strip().lower() == "multipart/form-data"
    media_type = "" if multipart else check_content_type(declared)
    fields = request.query_params.multi_items()
    if not multipart:
        # Bad metadata is refused before the whole image has been sent.
        metadata = _metadata(fields)
        return Submission(await _read_body(request, admitted, timeout), media_type, metadata, key)
    data, media_type, form_fields = await _parse_form(request, await _read_body(request, admitted, timeout))
    return Submission(data, media_type, _metadata(fields + form_fields), key)


async def _read_body(request: Request, admitted: AdmittedRequest, timeout: float) -> bytes:
    chunks: list[bytes] = []
    try:
        async with asyncio.timeout(timeout):
            async for chunk in request.stream():
                admitted.reserve(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise Problem(408, "body-timeout", f"The body did not arrive within {timeout:g} s.") from error
    except ClientDisconnect as error:
        raise Problem(400, "client-disconnected", "The client went away before its body had arrived.") from error
    return b"".join(chunks)


class _StrictParser(MultiPartParser):
    """Refuses text that is not in the form's encoding, where Starlette takes it for Latin-1."""

    def on_part_end(self) -> None:
        if self._current_part.file is None:
            try:
                self._current_part.data.decode(self._charset)
            except (UnicodeDecodeError, LookupError) as error:
                raise MultiPartException(f"a field is not in {self._charset or 'an encoding'}.") from error
        super().on_part_end()


async def _parse_form(request: Request, body: bytes) -> tuple[bytes, str, list[tuple[str, str]]]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _StrictParser(request.headers, stream(), max_files=1, max_fields=len(Metadata.model_fields) + 1)
    # The body is in memory and bounded already; a detour over the disk would only cost.
    parser.spool_max_size = len(body) + 1
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeDecodeError) as error:
        raise Problem(422, "bad-form", f"The multipart body cannot be read: {error}") from error
    images: list[UploadFile] = []
    fields: list[tuple[str, str]] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != _IMAGE_FIELD:
                raise Problem(422, "bad-form", f"The file must be in the field {_IMAGE_FIELD}, not {name[:100]}.")
            images.append(value)
        else:
            fields.append((name, value))
    if not images:
        remedy = f"Send it as a file: curl -F {_IMAGE_FIELD}=@part.png"
        raise Problem(422, "bad-form", f"The form has no file in the field {_IMAGE_FIELD}.", remedy)
    data = await images[0].read()
    media_type = check_content_type(images[0].content_type or "")
    await form.close()
    return data, media_type, fields


def _metadata(fields: list[tuple[str, str]]) -> Metadata:
    repeated = [name for name, count in Counter(name for name, _ in fields).items() if count > 1]
    if repeated:
        raise Problem(422, "invalid-request", f"{repeated[0][:100]} is given more than once.")
    try:
        return Metadata.model_validate(dict(fields))
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_context=False, include_input=False)) from error


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not 1 <= len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        raise Problem(
            422, "bad-idempotency-key", f"An Idempotency-Key is 1 to {MAX_KEY} printable ASCII characters, given once."
        )
    return key
