"""Checks and decoding of the images that arrive.

Notable here:
- The bytes decide what a file is; a declared content type must agree with them.
- Size is judged from the header, before a pixel is decoded.
- A TIFF with several pages is refused: whoever sends one expects more than the first page to be scored.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kizu.models.bundle import InputGeometry
from kizu.models.decode import MEDIA_TYPES, ImageError, TooManyPixelsError, decode, read_header
from kizu.service.inference.errors import (
    DamagedImageError,
    EmptyImageError,
    ImageTooLargeError,
    ImageTooSmallError,
    MediaTypeMismatchError,
    SeveralPagesError,
    UnsupportedMediaTypeError,
)

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


_NEW_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 0b101
_MOST_DIRECTORIES = 16


@dataclass(frozen=True)
class ImageHeader:
    """Facts about an image before it is decoded; width and height in pixels, after EXIF orientation."""

    media_type: str
    width: int
    height: int

    @property
    def decoded_bytes(self) -> int:
        """An upper bound on the size in memory: three channels."""
        return self.width * self.height * 3


def check_content_type(declared: str) -> str:
    """Return the media type that a content type declares, "" where it declares none.

    Raises:
        UnsupportedMediaTypeError: a type that is not one of the supported images.
    """
    essence = declared.split(";")[0].strip().lower()
    essence = _ALIASES.get(essence, essence)
    if essence in _UNDECLARED:
        return ""
    if essence not in MEDIA_TYPES.values():
        raise UnsupportedMediaTypeError(f"{essence[:100]} is not a supported type.")
    return essence


def inspect_header(data: bytes, media_type: str, max_pixels: int) -> ImageHeader:
    """Check content against type and read the header; `media_type` "" accepts every supported one.

    Raises:
        EmptyImageError: no bytes.
        UnsupportedMediaTypeError: not a supported format.
        MediaTypeMismatchError: not the declared format.
        ImageTooLargeError: more than `max_pixels`.
        SeveralPagesError: a TIFF whose further pages are neither thumbnails nor masks.
        DamagedImageError: the header cannot be read.
    """
    if not data:
        raise EmptyImageError
    found = next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)
    if found is None:
        raise UnsupportedMediaTypeError("The body is not an image of a supported type.")
    if media_type not in ("", found):
        raise MediaTypeMismatchError(media_type, found)
    try:
        header = read_header(data, max_pixels)
    except TooManyPixelsError as error:
        raise ImageTooLargeError(f"The image is too large: {error}.") from error
    except ImageError as error:
        raise _damaged(error) from error
    if found == "image/tiff" and _has_further_pages(data):
        raise SeveralPagesError
    return ImageHeader(found, header.width, header.height)


def _has_further_pages(data: bytes) -> bool:
    """Return True if a TIFF has more than its first page; thumbnails and transparency masks do not count."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
            warnings.simplefilter("ignore")
            for index in range(_MOST_DIRECTORIES):
                image.seek(index)
                tags = getattr(image, "tag_v2", {})
                if index and not int(tags.get(_NEW_SUBFILE_TYPE, 0)) & _REDUCED_OR_MASK:
                    return True
            return True
    except EOFError:
        return False
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):
        # A further directory that cannot be read is no page; the first one was read before.
        return False


def check_size(header: ImageHeader, geometry: InputGeometry) -> None:
    """Raise ImageTooSmallError if the image is smaller than the model's geometry."""
    if not geometry.accepts(header.height, header.width):
        raise ImageTooSmallError((header.width, header.height), geometry.smallest)


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """Decode to uint8[H, W, C]; raises DamagedImageError if the pixels are truncated or damaged."""
    try:
        return decode(data, max_pixels)
    except ImageError as error:
        raise _damaged(error) from error


def _damaged(error: ImageError) -> DamagedImageError:
    return DamagedImageError(f"The image cannot be read: {error}.")
