"""A real `kizu serve` process on a free port, and real databases to run it on."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from kizu.service.storage.database import Database

POSTGRES = os.environ.get("KIZU_TEST_POSTGRES", "postgresql://root@localhost/test")
START_TIMEOUT_S = 60


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A service with its own folder; `settings` are given as KIZU_* variables."""

    def __init__(self, home: Path, **settings: object):
        self.home = home
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("KIZU_")} | {
            "KIZU_DATA_DIR": str(home),
            "KIZU_DRAIN_SECONDS": "0",
            "KIZU_INFERENCE_THREADS": "1",
            **{f"KIZU_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self.models: dict[str, str] = {}
        """Recipe → id of the model that the tests added for it last."""
        self.process: subprocess.Popen[bytes] | None = None
        self.client = httpx.Client(base_url=self.url, timeout=30)

    def start(self) -> Server:
        """Start, and wait until requests are answered."""
        with (self.home / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kizu", "serve", "--port", str(self.port)],
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            try:
                self.client.get("/healthz")
                return self
            except httpx.TransportError:
                assert self.process.poll() is None, self.log()
                time.sleep(0.05)
        raise AssertionError(f"the service did not start: {self.log()}")

    def log(self) -> str:
        return (self.home / "serve.log").read_text()

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.terminate()
            self.process.wait(30)

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another `kizu` on the same data."""
        return subprocess.run(
            [sys.executable, "-m", "kizu", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def database(self) -> Database:
        """The service's database, for looking at it or being another process."""
        url = self.environment.get("KIZU_DATABASE_URL", f"sqlite:///{self.home}/kizu.db")
        return Database(url.replace("postgresql://", "postgresql+psycopg://"))

    def blobs(self) -> set[str]:
        """The names of all stored images."""
        return {path.name for path in (self.home / "blobs").glob("??/??/*")}

    def temporary_files(self) -> list[Path]:
        return list((self.home / "blobs" / "tmp").iterdir())

    def inspections(self, **filters: str) -> list[dict]:
        """Every inspection, page by page."""
        items: list[dict] = []
        cursor: str | None = None
        while True:
            page = self.client.get(
                "/v1/inspections", params={**filters, "limit": "500", **({"cursor": cursor} if cursor else {})}
            )
            assert page.status_code == 200, page.text
            items += page.json()["items"]
            cursor = page.json()["next"]
            if cursor is None:
                return items


@contextmanager
def postgres_database() -> Iterator[str]:
    """A fresh PostgreSQL database, dropped afterwards; without a server the test is skipped, but not in CI."""
    name = f"kizu_test_{uuid.uuid4().hex[:12]}"
    try:
        with psycopg.connect(POSTGRES, autocommit=True, connect_timeout=3) as connection:
            connection.execute(f"CREATE DATABASE {name}")
    except psycopg.OperationalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no PostgreSQL at {POSTGRES}: {error}")
    try:
        yield POSTGRES.rpartition("/")[0] + f"/{name}"
    finally:
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
