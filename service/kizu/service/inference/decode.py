"""What arrives as an image → the array that the graph takes, or the problem with it.

Notable here:
- The bytes decide what a file is; a declared content type must agree with them.
- Size is judged from the header, before a pixel is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kizu.models.bundle import InputGeometry
from kizu.models.decode import MEDIA_TYPES, ImageError, TooManyPixelsError, decode, read_header
from kizu.service.problems import Problem

_ALIASES = {
    "image/jpg": "image/jpeg",
    "image/pjpeg": "image/jpeg",
    "image/x-png": "image/png",
    "image/x-bmp": "image/bmp",
    "image/x-ms-bmp": "image/bmp",
    "image/tif": "image/tiff",
    "image/x-tiff": "image/tiff",
}
_UNDECLARED = {"", "application/octet-stream", "binary/octet-stream"}
_MAGIC = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),
    (b"MM\0+", "image/tiff"),
)
_SUPPORTED = ", ".join(MEDIA_TYPES.values())


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image before it is decoded; width and height as it will be seen."""

    media_type: str
    width: int
    height: int

    @property
    def decoded_bytes(self) -> int:
        """An upper bound: three channels."""
        return self.width * self.height * 3


def check_content_type(declared: str) -> str:
    """The media type that a content type promises, or "" where it promises none; raises a 415 Problem."""
    essence = declared.split(";")[0].strip().lower()
    essence = _ALIASES.get(essence, essence)
    if essence in _UNDECLARED:
        return ""
    if essence not in MEDIA_TYPES.values():
        raise Problem(415, "unsupported-media-type", f"{essence[:100]} is not a supported type.", f"Send {_SUPPORTED}.")
    return essence


def inspect_header(data: bytes, media_type: str, max_pixels: int) -> ImageHeader:
    """Check content against type and read the header; `media_type` "" accepts every supported one.

    Raises:
        Problem: 415 wrong or no known format, 422 empty or damaged, 413 more than `max_pixels`.
    """
    if not data:
        raise Problem(422, "empty-image", "The body holds no image: it is empty.")
    found = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if found is None:
        raise Problem(
            415, "unsupported-media-type", "The body is not an image of a supported type.", f"Send {_SUPPORTED}."
        )
    if media_type not in ("", found):
        raise Problem(415, "media-type-mismatch", f"Declared as {media_type}, but the content is {found}.")
    try:
        header = read_header(data, max_pixels)
    except TooManyPixelsError as error:
        raise Problem(413, "too-many-pixels", f"The image is too large: {error}.") from error
    except ImageError as error:
        raise _damaged(error) from error
    return ImageHeader(found, header.width, header.height)


def check_size(header: ImageHeader, geometry: InputGeometry) -> None:
    """Raise a 422 Problem where the image is smaller than the model's geometry."""
    if not geometry.accepts(header.height, header.width):
        raise Problem(
            422,
            "image-too-small",
            f"The image is {header.width}×{header.height} pixels; the recipe needs at least "
            f"{geometry.min_width}×{geometry.min_height}.",
        )


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """uint8[H, W, C]; raises a 422 Problem where the pixels are truncated or damaged."""
    try:
        return decode(data, max_pixels)
    except ImageError as error:
        raise _damaged(error) from error


def _damaged(error: ImageError) -> Problem:
    return Problem(422, "damaged-image", f"The image cannot be read: {error}.")
