"""ZIPs that are sent as bundles: what is in them, and whether there is room for it."""

from __future__ import annotations

import io
import os
import resource
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from .bundles import make_bundle
from .conftest import assert_problem, send_bundle, zipped
from .processes import Server


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return buffer.getvalue()


def link() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        member = zipfile.ZipInfo("model.onnx")
        member.external_attr = (stat.S_IFLNK | 0o777) << 16
        opened.writestr(member, "/etc/passwd")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 but no zip",
        archive(**{"../../model.onnx": b"x"}),
        archive(**{"/model.onnx": b"x"}),
        archive(**{"a/b/model.onnx": b"x"}),
        archive(**{"a/model.onnx": b"x", "b/bundle.json": b"x"}),
        archive(**{"evil.py": b"x"}),
        archive(**{"model.onnx": b"x"}),
        archive(**{"model.onnx": b"x", "bundle.json": b"{}"}),
        archive(**{"model.onnx": b"x", "bundle.json": b"[" * 100_000}),
        archive(**{"model.onnx": b"x", "bundle.json": b'{"schema_version": 2, "a": ' + b'{"a": ' * 100_000}),
        link(),
    ],
    ids=[
        "empty",
        "no zip",
        "dots",
        "absolute",
        "deep",
        "two folders",
        "other file",
        "lacks one",
        "no bundle",
        "nested",
        "nested maps",
        "link",
    ],
)
def test_archives_that_are_no_bundle(sqlite_server: Server, content: bytes) -> None:
    models = sqlite_server.client.get("/v1/models").json()
    answer = assert_problem(send_bundle(sqlite_server, content), 422)
    assert str(sqlite_server.home) not in answer["detail"]
    assert answer["detail"].count(". ") >= 1, "it has a remedy"
    assert sqlite_server.client.get("/v1/models").json() == models
    assert not list((sqlite_server.home / "models").glob(".*"))


@pytest.mark.parametrize("name", ["", " padded", "two\nlines", "x" * 129])
def test_a_bundle_of_a_recipe_that_nobody_can_ask_for(sqlite_server: Server, tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "b", name)
    content = assert_problem(send_bundle(sqlite_server, zipped(tmp_path / "b")), 422, "unusable-bundle")
    assert "recipe" in content["detail"]


@pytest.mark.parametrize("content", [os.urandom(600_000), bytes(5_000_000)], ids=["sent", "extracted"])
def test_no_room_for_a_bundle(new_server: Callable[..., Server], content: bytes) -> None:
    """The process may write files of 400 kB, as if the disk had no more room."""
    server = new_server().start()
    assert server.process is not None
    before = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (400_000, before[1]))
    answer = assert_problem(send_bundle(server, archive(**{"model.onnx": content})), 507, "insufficient-storage")
    assert "Free space" in answer["detail"]
    assert str(server.home) not in answer["detail"]
    assert not list((server.home / "models").iterdir())


def test_a_folder_of_models_that_cannot_be_written(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server().start()
    make_bundle(tmp_path / "b", "boards")
    (server.home / "models").touch()
    answer = send_bundle(server, zipped(tmp_path / "b"))
    assert str(server.home) not in assert_problem(answer, 503, "storage-unavailable")["detail"]
    assert answer.headers["retry-after"]
    (server.home / "models").unlink()
    assert send_bundle(server, zipped(tmp_path / "b")).status_code == 201


def test_a_bundle_in_one_folder_of_the_archive_is_fine(sqlite_server: Server, tmp_path: Path) -> None:
    make_bundle(tmp_path / "b", "in-a-folder")
    members = {f"bundle/{path.name}": path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert send_bundle(sqlite_server, archive(**members)).status_code == 201


def test_another_content_type(sqlite_server: Server) -> None:
    assert_problem(send_bundle(sqlite_server, b"{}", "application/json"), 415)


def test_an_archive_larger_than_allowed_once_extracted(sqlite_server: Server) -> None:
    assert_problem(send_bundle(sqlite_server, archive(**{"model.onnx": bytes(50_000_000)})), 413, "bundle-too-large")
