"""Decoding: every format that a line camera or an operator brings, and every way in which a file can be bad."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kizu.models.decode import ImageError, TooManyPixelsError, decode, decode_mask, read_header

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 17), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (12, 17, 3), dtype=np.uint8)
GREY16 = RANDOM.integers(0, 65536, (12, 17), dtype=np.uint16)
COLOUR16 = RANDOM.integers(0, 65536, (12, 17, 3), dtype=np.uint16)


def encoded(image: np.ndarray | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format, **options)
    return buffer.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of 1 to 4 channels; Pillow writes only grey ones."""
    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


SAMPLES = {
    "jpeg": encoded(COLOUR, "JPEG"),
    "progressive jpeg": encoded(COLOUR, "JPEG", progressive=True),
    "png": encoded(COLOUR, "PNG"),
    "16-bit png": encoded(GREY16, "PNG"),
    "bmp": encoded(COLOUR, "BMP"),
    "tiff": encoded(COLOUR, "TIFF"),
    "lzw tiff": encoded(COLOUR, "TIFF", compression="tiff_lzw"),
    "deflate tiff": tiff(GREY16, compression="zlib"),
}


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_8_bit_images_come_back_exactly(format: str, pixels: np.ndarray) -> None:
    image = decode(encoded(pixels, format))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels.reshape(12, 17, -1))


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_jpeg_keeps_its_channels(pixels: np.ndarray) -> None:
    assert decode(encoded(pixels, "JPEG")).shape == pixels.reshape(12, 17, -1).shape


@pytest.mark.parametrize(
    "data",
    [
        encoded(GREY16, "PNG"),
        png16(GREY16[..., None]),
        tiff(GREY16),
        tiff(GREY16, byteorder=">"),
        tiff(GREY16, byteorder=">", compression="zlib", predictor=True),
        tiff(GREY16, bigtiff=True),
        tiff(65535 - GREY16, photometric="miniswhite"),
    ],
    ids=["png", "own png", "tiff", "big-endian", "deflate", "bigtiff", "zero is white"],
)
def test_16_bit_grey_is_scaled_over_its_full_range(data: bytes) -> None:
    np.testing.assert_array_equal(decode(data)[..., 0], np.round(GREY16 / 257))


@pytest.mark.parametrize(
    "data",
    [
        png16(COLOUR16),
        png16(np.dstack([COLOUR16, GREY16])),
        tiff(COLOUR16, photometric="rgb"),
        tiff(COLOUR16, photometric="rgb", byteorder=">", compression="zlib"),
        tiff(np.dstack([COLOUR16, GREY16]), photometric="rgb", extrasamples=["unassalpha"]),
    ],
    ids=["png", "png with alpha", "tiff", "big-endian deflate", "tiff with alpha"],
)
def test_16_bit_colour_is_scaled_to_within_one_level(data: bytes) -> None:
    image = decode(data)
    assert image.shape == COLOUR16.shape
    assert np.abs(image - COLOUR16 / 257).max() < 1.01


def test_full_scale_is_white_and_zero_black_at_16_bits() -> None:
    extremes = np.array([[0, 65535]], dtype=np.uint16)
    assert decode(encoded(extremes)).ravel().tolist() == [0, 255]
    assert decode(png16(np.repeat(extremes[..., None], 3, axis=2)))[0, :, 0].tolist() == [0, 255]


def test_alpha_is_dropped_not_blended() -> None:
    transparent = np.dstack([COLOUR, np.zeros((12, 17), np.uint8)])
    np.testing.assert_array_equal(decode(encoded(transparent)), COLOUR)
    grey_alpha = np.dstack([GREY, np.zeros((12, 17), np.uint8)])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey_alpha, "LA")))[..., 0], GREY)


def test_a_palette_image_becomes_rgb() -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    np.testing.assert_array_equal(decode(encoded(palette)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_one_bit_images_become_0_and_255(format: str) -> None:
    image = decode(encoded(Image.fromarray(GREY > 127), format))
    np.testing.assert_array_equal(image[..., 0], np.where(GREY > 127, 255, 0))


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    assert decode(encoded(Image.fromarray(COLOUR).convert("CMYK"), "JPEG")).shape == (12, 17, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_the_header_agrees(format: str, orientation: int) -> None:
    upright = np.zeros((8, 24), np.uint8)
    upright[:4, :8] = 200
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format == "JPEG" else {}
    data = encoded(np.ascontiguousarray(stored), format, exif=exif, **options)
    header = read_header(data)
    assert (header.width, header.height) == (24, 8)
    assert np.abs(decode(data)[..., 0].astype(int) - upright).max() <= 3


def test_exif_behind_the_pixels_of_a_png_counts_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(GREY)
    late = data[:-12] + png_chunk(b"eXIf", exif.tobytes()[6:]) + data[-12:]
    assert decode(late).shape == (17, 12, 1)
    assert (read_header(late).width, read_header(late).height) == (12, 17)


def test_of_several_pages_or_frames_the_first_counts() -> None:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    for format in ("TIFF", "PNG"):
        data = encoded(first, format, save_all=True, append_images=[second])
        np.testing.assert_array_equal(decode(data)[..., 0], GREY)


def test_a_jpeg_with_further_pictures_is_a_jpeg() -> None:
    data = encoded(Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[Image.fromarray(COLOUR)])
    assert read_header(data).media_type == "image/jpeg"
    assert decode(data).shape == (12, 17, 3)


@pytest.mark.parametrize(
    "data",
    [
        tiff(GREY16.astype(np.float32)),
        tiff(GREY16.astype(np.uint32)),
        tiff(GREY16.astype(np.int16)),
        tiff(np.moveaxis(COLOUR16, 2, 0), photometric="rgb", planarconfig="separate"),
    ],
    ids=["float", "32 bits", "signed", "separate 16-bit planes"],
)
def test_pixels_without_a_fixed_range_are_refused_with_a_remedy(data: bytes) -> None:
    with pytest.raises(ImageError, match="save the"):
        decode(data)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(40)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data)
    with pytest.raises(ImageError):
        read_header(data)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_truncation_is_refused(kind: str) -> None:
    data = SAMPLES[kind]
    padding = 3 if kind == "bmp" else 0  # the end of a BMP's last row holds no pixel
    for length in range(len(data) - padding):
        with pytest.raises(ImageError):
            decode(data[:length])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.booleans(),
)
def test_damaged_bytes_only_ever_raise_image_errors(
    kind: str, damage: list[tuple[float, int]], in_header: bool
) -> None:
    data = bytearray(SAMPLES[kind])
    reach = min(len(data), 120) if in_header else len(data)
    for where, value in damage:
        data[min(int(where * reach), reach - 1)] = value
    for read in (read_header, decode, decode_mask):
        try:
            read(bytes(data), max_pixels=1_000_000)
        except ImageError:
            continue


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    side = 20_000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1_000_000), 9)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    tracemalloc.start()
    try:
        for read in (read_header, decode, decode_mask):
            with pytest.raises(TooManyPixelsError, match="20000×20000"):
                read(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_is_on_pixels_and_can_be_set() -> None:
    data = encoded(GREY)
    assert decode(data, max_pixels=12 * 17).shape == (12, 17, 1)
    with pytest.raises(TooManyPixelsError):
        decode(data, max_pixels=12 * 17 - 1)


def test_a_mask_is_where_the_image_is_not_black_at_any_depth() -> None:
    expected = GREY > 200
    for label_map in (
        expected.astype(np.uint8),
        expected.astype(np.uint8) * 255,
        np.repeat(expected[..., None], 3, axis=2).astype(np.uint8) * np.array([0, 0, 9], np.uint8),
        expected.astype(np.uint16),
    ):
        np.testing.assert_array_equal(decode_mask(encoded(label_map)), expected)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(expected))), expected)
    np.testing.assert_array_equal(decode_mask(tiff(expected.astype(np.float32))), expected)


def test_a_lossy_mask_is_cut_at_mid_grey() -> None:
    square = np.zeros((32, 32), np.uint8)
    square[8:24, 8:24] = 255
    mask = decode_mask(encoded(square, "JPEG", quality=30))
    np.testing.assert_array_equal(mask, square > 0)
