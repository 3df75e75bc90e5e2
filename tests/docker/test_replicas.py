"""Two replicas as docker-compose.yml runs them: one database, one volume, a proxy in front."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from PIL import Image

from ..service.bundles import make_bundle
from ..service.conftest import upload
from ..service.processes import Server, free_port, postgres_database
from .conftest import REPOSITORY, find_binary

CONFIGURATION = REPOSITORY / "docker" / "haproxy.cfg"
LIMIT = 100_000


@pytest.fixture
def haproxy() -> str:
    """HAProxy; the test is skipped where PATH has none."""
    binary = find_binary("haproxy")
    if binary is None:
        pytest.skip("no haproxy on PATH")
    return binary


@contextmanager
def replicas(home: Path, **settings: object) -> Iterator[tuple[Server, Server]]:
    """Two services that start at the same moment on an empty database and an empty volume."""
    home.mkdir()
    with postgres_database() as url:
        pair = Server(home, database_url=url, **settings), Server(home, database_url=url, **settings)
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(Server.start, pair))
            yield pair
        finally:
            for server in pair:
                server.stop()


@dataclass
class Proxy:
    """A running HAProxy."""

    url: str
    process: subprocess.Popen[bytes]

    def wait_until(self, status: int) -> None:
        """Wait for an answer of this status on /readyz."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"no {status} from the proxy")


@contextmanager
def proxy(binary: str, folder: Path, ports: list[int]) -> Iterator[Proxy]:
    """HAProxy with the repository's configuration; replicas have ports here instead of names in a container network."""
    port = free_port()
    text = CONFIGURATION.read_text(encoding="utf-8").replace("bind :8080", f"bind 127.0.0.1:{port}")
    text = re.sub(r"resolvers docker init-addr none resolve-prefer ipv4", "", text)
    text = re.sub(r"^ +server-template .*\n", "", text, flags=re.MULTILINE)
    text += "".join(f"    server s{number} 127.0.0.1:{number}\n" for number in ports)
    configuration = folder / "haproxy.cfg"
    configuration.write_text(text, encoding="utf-8")
    process = subprocess.Popen(
        [binary, "-db", "-f", str(configuration)],
        env={"KIZU_MAX_BODY_BYTES": str(LIMIT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Proxy(f"http://127.0.0.1:{port}", process)
    finally:
        process.kill()
        process.wait()


def test_replicas_that_start_at_once_share_database_and_volume(tmp_path: Path) -> None:
    with replicas(tmp_path / "data") as (first, second):
        assert first.log().count("database upgraded from empty") == 1
        make_bundle(tmp_path / "bundle", "boards")
        upload(first, tmp_path / "bundle", promote=True)
        image = png(tmp_path)
        answer = inspect(second.url, image)
        assert answer.status_code == 201, answer.text
        assert first.client.get(f"/v1/inspections/{answer.json()['id']}/image").content == image
        assert inspect(first.url, image).headers["idempotent-replay"] == "true"


def test_no_request_fails_while_a_replica_drains(haproxy: str, tmp_path: Path) -> None:
    with (
        replicas(tmp_path / "data", drain_seconds=4) as (first, second),
        proxy(haproxy, tmp_path, [first.port, second.port]) as front,
    ):
        make_bundle(tmp_path / "bundle", "boards")
        upload(first, tmp_path / "bundle", promote=True)
        front.wait_until(200)
        image, statuses = png(tmp_path), []
        assert first.process is not None
        first.terminate()
        while first.process.poll() is None:
            statuses.append(inspect(front.url, image, key=None).status_code)
        statuses += [inspect(front.url, image, key=None).status_code for _ in range(20)]
        assert set(statuses) == {201}
        second.kill()


def test_haproxy_accepts_its_configuration(haproxy: str) -> None:
    done = subprocess.run([haproxy, "-c", "-f", str(CONFIGURATION)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


class Echo(BaseHTTPRequestHandler):
    """Answers every request with its headers."""

    def do_GET(self) -> None:
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def echo(haproxy: str, tmp_path: Path) -> Iterator[Proxy]:
    """The proxy in front of a server that shows what arrives."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with proxy(haproxy, tmp_path, [server.server_port]) as front:
            front.wait_until(200)
            yield front
    finally:
        server.shutdown()
        server.server_close()


def test_the_proxy_says_who_asks_and_believes_nobody(echo: Proxy) -> None:
    claimed = {"X-Forwarded-For": "10.9.9.9", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "elsewhere"}
    headers = httpx.get(f"{echo.url}/v1/models", headers=claimed).json()
    assert headers["x-forwarded-for"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert headers["x-forwarded-host"] == echo.url.removeprefix("http://")


def test_the_proxy_refuses_bodies_that_the_service_would_refuse(echo: Proxy) -> None:
    assert httpx.post(f"{echo.url}/v1/inspections", content=b"x" * LIMIT).status_code == 200
    answer = httpx.post(f"{echo.url}/v1/inspections", content=b"x" * (LIMIT + 1))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:kizu:problem:body-too-large"
    assert httpx.post(f"{echo.url}/v1/models", content=b"x" * (LIMIT + 1)).status_code == 200


def test_without_a_ready_replica_the_proxy_answers_with_a_problem(haproxy: str, tmp_path: Path) -> None:
    with proxy(haproxy, tmp_path, [free_port()]) as front:
        front.wait_until(503)
        answer = httpx.get(f"{front.url}/readyz")
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json()["status"], answer.headers["retry-after"]) == (503, "1")


def inspect(url: str, image: bytes, key: str | None = "part-1") -> httpx.Response:
    headers = {"content-type": "image/png"} | ({"idempotency-key": key} if key else {})
    return httpx.post(f"{url}/v1/inspections", params={"recipe": "boards"}, content=image, headers=headers, timeout=30)


def png(folder: Path) -> bytes:
    Image.new("L", (64, 64), 200).save(folder / "part.png")
    return (folder / "part.png").read_bytes()
