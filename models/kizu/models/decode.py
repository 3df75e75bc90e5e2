"""File bytes → the array that the graph takes: one definition for training, evaluation and the service.

Notable here:
- The header is read and judged before a pixel is decoded, so a decompression bomb costs nothing.
- 16-bit images are scaled over their full range (65535 → 255), alpha is dropped, EXIF orientation is applied.
- Grey stays one channel: grey conversion, where a recipe wants it, happens inside the graph.
- Strict about truncation: a file that lacks its end is refused even where every pixel could be guessed.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "TIFF")
MEDIA_TYPES = {"JPEG": "image/jpeg", "PNG": "image/png", "BMP": "image/bmp", "TIFF": "image/tiff"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000

# Kizu's own limit is checked on the header; Pillow's warning at a lower one would only be noise.
Image.MAX_IMAGE_PIXELS = None

_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _PLANAR = 0x0112, 258, 262, 284
_WHITE_IS_ZERO = 0
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = {5, 6, 7, 8}
# Everything that Pillow was seen to raise on damaged files; anything else is a fault of ours and should be heard.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)


class ImageError(ValueError):
    """Bytes that are not an image Kizu can inspect."""


class TooManyPixelsError(ImageError):
    """An image whose header announces more pixels than allowed."""


@dataclass(frozen=True)
class Header:
    """Format and size that a file's header states; in pixels, after EXIF orientation."""

    format: str
    width: int
    height: int

    @property
    def media_type(self) -> str:
        """Media type as HTTP names it."""
        return MEDIA_TYPES[self.format]


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read format and size without decoding.

    Raises:
        ImageError: not a JPEG, PNG, BMP or TIFF, or a damaged header.
        TooManyPixelsError: more than `max_pixels`.
    """
    with _open(data, max_pixels) as image, _pillow_errors("the image's header is damaged"):
        width, height = image.size
        if _orientation(image, data) in _TRANSPOSED:
            width, height = height, width
        return Header(_format(image), width, height)


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode to uint8[H, W, C], C = 1 (grey) or 3 (RGB). Of several frames or pages, the first.

    Raises:
        ImageError: as `read_header`, or truncated or damaged pixels, or a pixel type with no fixed range
            (float, 32-bit or signed integers).
    """
    with _open(data, max_pixels) as image:
        return _to_uint8(_load(image, data))


def decode_mask(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.bool_]:
    """Decode a defect mask to bool[H, W]: true where the pixel is not black, or from mid-grey on in a lossy JPEG.

    Unlike `decode`, values are not scaled first, so that a label map that counts 1, 2, 3 in 16 or 32 bits works.

    Raises:
        ImageError: as `decode`.
    """
    with _open(data, max_pixels) as image:
        lossy = _format(image) == "JPEG"
        loaded = _load(image, data)
        if loaded.mode.startswith(("I", "F")):
            marked: NDArray[np.bool_] = np.asarray(loaded) != 0
            return marked
        pixels = _to_uint8(loaded)
        return np.asarray(pixels.max(axis=2) >= (128 if lossy else 1))


@contextmanager
def _pillow_errors(problem: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except _PILLOW_ERRORS as error:
        raise ImageError(f"{problem}: {error}") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("the file is empty")
    with _pillow_errors("the image's header is damaged"):
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError("not a JPEG, PNG, BMP or TIFF image") from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError("the image has no pixels")
    if width * height > max_pixels:
        raise TooManyPixelsError(f"{width}×{height} is more than the {max_pixels} pixels allowed")
    return image


def _format(image: Image.Image) -> str:
    # A JPEG with further pictures behind it, as some cameras write, opens as "MPO".
    return "JPEG" if image.format == "MPO" else str(image.format)


def _load(image: Image.Image, data: bytes) -> Image.Image:
    with _pillow_errors("the image is truncated or damaged"):
        transposition = _TRANSPOSITIONS.get(_orientation(image, data))
        if image.format == "PNG" and not _png_chunks(data)[1]:
            raise ImageError("the image is truncated: its end is missing")
        tags = getattr(image, "tag_v2", {})
        if tags.get(_PLANAR) == 2 and max(tags.get(_BITS_PER_SAMPLE, (8,))) > 8:
            # Pillow would read the planes as 8-bit ones, without complaint.
            raise ImageError("16-bit TIFFs with separate colour planes cannot be read; save the planes interleaved")
        image.load()
        return image if transposition is None else image.transpose(transposition)


def _orientation(image: Image.Image, data: bytes) -> int:
    """EXIF orientation still to be applied, 1–8."""
    if image.format == "TIFF":
        return 1  # Pillow turns TIFFs itself, in size already when opened
    if image.format == "PNG":
        # Pillow would decode the whole image to look for EXIF behind the pixels.
        exif = Image.Exif()
        exif.load(_png_chunks(data)[0])
    else:
        exif = image.getexif()
    value = exif.get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _png_chunks(data: bytes) -> tuple[bytes, bool]:
    """The content of the eXIf chunk, wherever it is, and whether the file reaches its IEND chunk."""
    exif, position = b"", 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return exif, True
        if kind == b"eXIf":
            exif = data[position + 8 : position + 8 + length]
        position += 12 + length
    return exif, False


def _to_uint8(image: Image.Image) -> NDArray[np.uint8]:
    mode = image.mode
    if mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        tags = getattr(image, "tag_v2", {})
        # Pillow leaves 12-bit TIFFs unscaled, and 16-bit ones whose zero is white uninverted.
        if tags.get(_BITS_PER_SAMPLE) == (12,):
            wide = (wide * 65535 + 2047) // 4095
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            wide = 65535 - wide
        return ((wide + 128) // 257).astype(np.uint8)[..., None]
    if mode in ("I", "F"):
        kind = "floating-point" if mode == "F" else "32-bit or signed integer"
        raise ImageError(f"{kind} pixels have no fixed range; save the image with 8 or 16 bits")
    grey = mode in ("1", "L", "LA", "La")
    with _pillow_errors(f"pixels of type {mode} cannot be read"):
        array = np.asarray(image.convert("L" if grey else "RGB"), dtype=np.uint8)
    return array[..., None] if grey else array
