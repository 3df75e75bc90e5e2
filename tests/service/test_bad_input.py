"""Whatever is wrong with a request: a problem that says so, and nothing stored."""

from __future__ import annotations

import io
import socket
import struct
import zlib
from collections.abc import Iterator

import pytest
from PIL import Image

from kizu.models.bundle import InputGeometry

from .bundles import SIDE, picture
from .conftest import MakeRecipe, assert_problem, inspect, inspected, upload
from .processes import Server

MAX_BODY = 1_000_000  # as the session's SQLite service is set


@pytest.fixture
def server(sqlite_server: Server) -> Iterator[Server]:
    """The SQLite service; after the test it holds what it held before."""
    rows, blobs = len(sqlite_server.inspections()), sqlite_server.blobs()
    yield sqlite_server
    assert len(sqlite_server.inspections()) == rows
    assert sqlite_server.blobs() == blobs
    assert sqlite_server.temporary_files() == []


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header announces width × height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def tiff(*subfile_types: int) -> bytes:
    """A TIFF with a page of each NewSubfileType: 0 a page, 1 a thumbnail, 4 a mask."""
    pages = []
    for number, kind in enumerate(subfile_types):
        page = Image.new("L", (SIDE, SIDE), number)
        page.encoderinfo = {"tiffinfo": {254: kind}}
        pages.append(page)
    buffer = io.BytesIO()
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:], tiffinfo={254: subfile_types[0]})
    return buffer.getvalue()


BAD_IMAGES = {
    "empty": (b"", "png", 422, "empty-image"),
    "text": (b"this is not an image at all, it only says that it is", "png", 415, "unsupported-media-type"),
    "only magic": (b"\x89PNG\r\n\x1a\n", "png", 422, "damaged-image"),
    "truncated PNG": (picture(9, seed=1)[:-20], "png", 422, "damaged-image"),
    "truncated JPEG": (picture(9, size=(200, 200), kind="JPEG", seed=1)[:900], "jpeg", 422, "damaged-image"),
    "truncated BMP": (picture(9, kind="BMP", seed=1)[:-50], "bmp", 422, "damaged-image"),
    "truncated TIFF": (picture(9, size=(200, 200), kind="TIFF", seed=1)[:900], "tiff", 422, "damaged-image"),
    "flipped bytes": (picture(9, seed=1)[:50] + b"\xff" * 30 + picture(9, seed=1)[80:], "png", 422, "damaged-image"),
    "TIFF of two pages": (tiff(0, 0), "tiff", 422, "several-pages"),
    "TIFF with a page behind its thumbnail": (tiff(0, 1, 0), "tiff", 422, "several-pages"),
    "TIFF of many thumbnails": (tiff(0, *[1] * 30), "tiff", 422, "several-pages"),
    "JPEG called PNG": (picture(9, kind="JPEG"), "png", 415, "media-type-mismatch"),
    "PNG called TIFF": (picture(9), "tiff", 415, "media-type-mismatch"),
    "GIF": (b"GIF89a" + bytes(50), "gif", 415, "unsupported-media-type"),
    "bomb": (bomb(30_000, 30_000), "png", 413, "too-many-pixels"),
    "bomb of the largest size": (bomb(2**31 - 1, 2**31 - 1), "png", 413, "too-many-pixels"),
    "no pixels": (bomb(0, 10), "png", 422, "damaged-image"),
    "too large a body": (picture(9) + bytes(MAX_BODY), "png", 413, None),
    "smaller than the geometry": (picture(9, size=(15, 40)), "png", 422, "image-too-small"),
}


@pytest.mark.parametrize("data", [tiff(0), tiff(0, 1), tiff(0, 4), tiff(0, 5, 1)], ids=["one", "small", "mask", "both"])
def test_a_tiff_of_one_page_may_have_thumbnails_and_masks(
    sqlite_server: Server, add_recipe: MakeRecipe, data: bytes
) -> None:
    assert inspected(sqlite_server, add_recipe(sqlite_server), data, kind="tiff")["score"] == 0


def test_a_tiff_whose_second_directory_is_damaged_is_one_page(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    data = tiff(0, 0)
    first = struct.unpack_from("<I", data, 4)[0]
    entries = struct.unpack_from("<H", data, first)[0]
    link = first + 2 + 12 * entries
    beyond = data[:link] + struct.pack("<I", len(data) + 1000) + data[link + 4 :]
    inspected(sqlite_server, add_recipe(sqlite_server), beyond, kind="tiff")


@pytest.mark.parametrize("name", BAD_IMAGES)
@pytest.mark.parametrize("keyed", [False, True])
def test_bad_images(server: Server, add_recipe: MakeRecipe, name: str, keyed: bool) -> None:
    data, kind, status, problem = BAD_IMAGES[name]
    recipe = add_recipe(server)
    answer = inspect(server, recipe, data, kind=kind, key="k" if keyed else None)
    content = assert_problem(answer, status, problem)
    if problem == "image-too-small":
        assert "15×40" in content["detail"]
        assert "16×16" in content["detail"]
    if kind == "gif":
        assert "image/jpeg, image/png, image/bmp, image/tiff" in content["detail"]


def test_tiles_set_the_minimum(server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(server, geometry=InputGeometry(height=16, width=16, channels=1, tile=64, stride=48))
    content = assert_problem(inspect(server, recipe, picture(9, size=(63, 64))), 422, "image-too-small")
    assert "64×64" in content["detail"]


def test_a_letterboxed_image_needs_one_side_only(server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(server, geometry=InputGeometry(height=32, width=48, channels=1, fit="letterbox", enlarge=2))
    content = assert_problem(inspect(server, recipe, picture(9, size=(23, 15))), 422, "image-too-small")
    assert "at least 24 pixels of width or 16 of height" in content["detail"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "image/svg+xml", "x"])
def test_content_types_that_are_no_image(server: Server, kind: str) -> None:
    answer = server.client.post("/v1/inspections?recipe=r", content=picture(1), headers={"content-type": kind})
    assert "image/png" in assert_problem(answer, 415, "unsupported-media-type")["detail"]


def raw(server: Server, request: bytes) -> bytes:
    """Send bytes as they are; the status line and headers of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer and (received := connection.recv(65536)):
            answer += received
        return answer


def test_a_chunked_body_ends_at_the_limit(server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(server)
    head = f"POST /v1/inspections?recipe={recipe} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    # The last chunk never comes: the answer must not wait for it.
    answer = raw(server, head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_a_content_length_over_the_limit_is_refused_before_the_body(server: Server) -> None:
    head = b"POST /v1/inspections?recipe=r HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
    assert raw(server, head + b"Content-Length: 99999999999\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_an_image_hidden_in_a_multipart_body_over_the_limit(server: Server) -> None:
    files = {"image": ("p.png", picture(1) + bytes(MAX_BODY), "image/png")}
    assert_problem(server.client.post("/v1/inspections?recipe=r", files=files), 413)


def test_other_routes_take_only_small_bodies(server: Server) -> None:
    url = "/v1/inspections/01a20413-ab57-7000-9c86-324ce9bb2b01/reviews"
    answer = server.client.post(
        url, content=b'{"note": "' + b"x" * 2_000_000, headers={"content-type": "application/json"}
    )
    assert_problem(answer, 413)


def test_unknown_recipe(server: Server) -> None:
    assert_problem(inspect(server, "nobody-knows", picture(1)), 404, "unknown-recipe")


def test_recipe_without_champion(server: Server, tmp_path) -> None:
    from .bundles import make_bundle

    make_bundle(tmp_path / "b", "only-challengers")
    upload(server, tmp_path / "b")
    assert_problem(inspect(server, "only-challengers", picture(1)), 409, "no-champion")


@pytest.mark.parametrize(
    "metadata",
    [
        {"serial": "x" * 129},
        {"serial": "a\0b"},
        {"lot": "a\nb"},
        {"station": "\x1b[31m"},
        {"captured_at": "yesterday"},
        {"captured_at": "2026-03-01T12:30:00"},
        {"captured_at": "1772000000"},
        {"captured_at": "2026-13-01T12:30:00Z"},
        {"captured_at": "0001-01-01T00:00:00+14:00"},
        {"stationn": "cam"},
    ],
    ids=str,
)
def test_bad_metadata(server: Server, metadata: dict[str, str]) -> None:
    content = assert_problem(inspect(server, "r", picture(1), **metadata), 422, "invalid-request")
    assert next(iter(metadata)) in content["detail"]


LATIN_1 = "%E9"  # é, which is no UTF-8 by itself


@pytest.mark.parametrize("name", ["recipe", "serial", "lot", "station", "seri%E9l"])
def test_metadata_that_is_not_utf_8(server: Server, name: str) -> None:
    url = f"/v1/inspections?recipe=r&{name}=part-{LATIN_1}"
    answer = server.client.post(url, content=picture(1), headers={"content-type": "image/png"})
    assert "UTF-8" in assert_problem(answer, 422, "invalid-request")["detail"]


@pytest.mark.parametrize(
    "url",
    ["/v1/inspections?serial={}", "/v1/quality?recipe={}", "/v1/models/{}", "/v1/reviews/queue?recipe=a&reviewer={}"],
)
def test_addresses_that_are_not_utf_8(sqlite_server: Server, url: str) -> None:
    answer = sqlite_server.client.get(url.format(LATIN_1))
    assert "UTF-8" in assert_problem(answer, 422, "invalid-request")["detail"]


def test_a_form_field_that_is_not_utf_8(server: Server, add_recipe: MakeRecipe) -> None:
    recipe = add_recipe(server)
    part = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    image = part % (b"image", b'; filename="a.png"', picture(1))
    body = part % (b"serial", b"", b"part-\xe9") + image + b"--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = server.client.post(f"/v1/inspections?recipe={recipe}", content=body, headers=headers)
    assert "utf-8" in assert_problem(answer, 422, "bad-form")["detail"]


def test_a_review_that_is_not_utf_8(server: Server) -> None:
    url = "/v1/inspections/01a20413-ab57-7000-9c86-324ce9bb2b01/reviews"
    answer = server.client.post(
        url, content=b'{"label": "NG", "note": "\xe9"}', headers={"content-type": "application/json"}
    )
    assert_problem(answer, 400)


def test_metadata_given_twice(server: Server) -> None:
    url = "/v1/inspections?recipe=r&serial=a&serial=b"
    assert_problem(server.client.post(url, content=picture(1), headers={"content-type": "image/png"}), 422)
    form = server.client.post(
        "/v1/inspections?recipe=r", data={"recipe": "s"}, files={"image": ("p.png", picture(1), "image/png")}
    )
    assert_problem(form, 422)


def test_no_recipe(server: Server) -> None:
    answer = server.client.post("/v1/inspections", content=picture(1), headers={"content-type": "image/png"})
    assert "recipe" in assert_problem(answer, 422)["detail"]


@pytest.mark.parametrize("key", ["", "k" * 256, "k\u00fc".encode("latin-1")])
def test_bad_idempotency_keys(server: Server, key: str | bytes) -> None:
    headers = {b"idempotency-key": key if isinstance(key, bytes) else key.encode(), b"content-type": b"image/png"}
    answer = server.client.post("/v1/inspections?recipe=r", content=picture(1), headers=headers)
    assert_problem(answer, 422, "bad-idempotency-key")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"nothing like it", "multipart/form-data"),
        (b"nothing like it", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="serial"\r\n\r\na\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a"\r\n\r\na\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nMZ\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
    ids=["no boundary", "no parts", "no file", "another field", "not an image"],
)
def test_bad_forms(server: Server, add_recipe: MakeRecipe, body: bytes, content_type: str) -> None:
    url = f"/v1/inspections?recipe={add_recipe(server)}"
    answer = server.client.post(url, content=body, headers={"content-type": content_type})
    assert answer.status_code in (415, 422), answer.text
    assert_problem(answer, answer.status_code)


def test_unknown_routes_and_methods_are_problems(server: Server) -> None:
    assert_problem(server.client.get("/v2/anything"), 404)
    answer = server.client.delete("/v1/inspections")
    assert_problem(answer, 405)
    assert "POST" in answer.headers["allow"]


def test_every_operation_documents_its_errors_as_problems(server: Server) -> None:
    document = server.client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation.get("summary"), (method, path)
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (method, path, status)


def test_letters_of_every_alphabet_are_kept(sqlite_server: Server, add_recipe: MakeRecipe) -> None:
    serial = "é-部品-\U0001f600-\ufffd"
    recipe = add_recipe(sqlite_server)
    assert inspected(sqlite_server, recipe, picture(1), serial=serial)["serial"] == serial
    form = sqlite_server.client.post(
        "/v1/inspections",
        data={"recipe": recipe, "serial": serial},
        files={"image": ("é.png", picture(1), "image/png")},
    )
    assert form.json()["serial"] == serial
    declared = b'--x\r\nContent-Disposition: form-data; name="serial"\r\n\r\n\xe9\r\n--x\r\n'
    declared += b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + picture(1) + b"\r\n--x--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=x; charset=latin-1"}
    answer = sqlite_server.client.post(f"/v1/inspections?recipe={recipe}", content=declared, headers=headers)
    assert answer.json()["serial"] == "é"
    assert {item["serial"] for item in sqlite_server.inspections(recipe=recipe)} == {serial, "é"}


def test_a_refused_request_does_not_hurt_the_next_on_the_same_connection(
    sqlite_server: Server, add_recipe: MakeRecipe
) -> None:
    recipe = add_recipe(sqlite_server)
    assert_problem(inspect(sqlite_server, recipe, picture(9) + bytes(MAX_BODY)), 413)
    inspected(sqlite_server, recipe, picture(1))
