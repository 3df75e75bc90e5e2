from __future__ import annotations

import io
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kizu.service.identifiers import first_id_at, new_id
from kizu.service.inspections.tables import Inspection
from kizu.service.registry import repository
from kizu.service.registry.tables import Model
from kizu.service.storage.database import Database

from .bundles import make_bundle
from .processes import Server, postgres_database

MakeRecipe = Callable[..., str]


@pytest.fixture(scope="session")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service on SQLite for all tests that do not stop it."""
    server = Server(
        tmp_path_factory.mktemp("sqlite"),
        audit_rate=1.0,
        max_body_bytes=1_000_000,
        max_pixels=1_000_000,
        max_bundle_bytes=20_000_000,
    )
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same on PostgreSQL."""
    with postgres_database() as url:
        server = Server(tmp_path_factory.mktemp("postgres"), audit_rate=1.0, database_url=url)
        yield server.start()
        server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest) -> Server:
    """A running service, on each database in turn."""
    server = request.getfixturevalue("sqlite_server" if request.param == "sqlite" else "postgres_server")
    assert isinstance(server, Server)
    return server


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Makes a service of one's own, to be killed, filled up or damaged."""
    with ExitStack() as stack:

        def make(name: str = "home", **settings: object) -> Server:
            home = tmp_path / name
            home.mkdir(exist_ok=True)
            server = Server(home, **settings)
            stack.callback(server.stop)
            return server

        yield make


@pytest.fixture
def add_recipe(tmp_path: Path) -> Callable[..., str]:
    """Adds a recipe of a fresh name with a champion; keywords are `make_bundle`'s."""

    def add(server: Server, **keywords: Any) -> str:
        recipe = f"recipe-{uuid.uuid4().hex[:8]}"
        make_bundle(tmp_path / recipe, recipe, **keywords)
        answer = upload(server, tmp_path / recipe, promote=True)
        assert answer["status"] == "champion"
        return recipe

    return add


@pytest.fixture
def recipe(server: Server, add_recipe: MakeRecipe) -> str:
    """A recipe of the test's own: NG from half brightness on."""
    return add_recipe(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/kizu.db")
        yield database
        database.close()
    else:
        with postgres_database() as url:
            database = Database(url.replace("postgresql://", "postgresql+psycopg://"))
            yield database
            database.close()


def fill(database: Database, captured_at: datetime | None = None, at: datetime | None = None) -> Inspection:
    """A recipe, a model and an inspection, received `at` or now; the first two once."""
    now = datetime.now(UTC)
    with database.writing() as session:
        repository.ensure_recipe(session, "r")
        if session.get(Model, "m") is None:
            session.add(Model(id="m", recipe="r", number=1, fingerprint="f", manifest={"a": 1}, created_at=now))
        session.flush()
        inspection = Inspection(
            id=new_id() if at is None else first_id_at(at),
            recipe="r",
            model_id="m",
            verdict="NG",
            score=0.1 + 0.2,
            threshold=0.3,
            captured_at=captured_at,
            received_at=at or now,
            image_sha256="0" * 64,
            image_bytes=1,
            width=1,
            height=1,
            media_type="image/png",
            audited=False,
        )
        session.add(inspection)
    return inspection


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def send_bundle(server: Server, content: bytes, kind: str = "application/zip"):
    """POST a bundle's archive; the response, whatever it is."""
    return server.client.post("/v1/models", content=content, headers={"content-type": kind})


def upload(server: Server, folder: Path, *, promote: bool = False) -> dict:
    answer = server.client.post(
        "/v1/models",
        params={"promote": promote},
        content=zipped(folder),
        headers={"content-type": "application/zip"},
    )
    assert answer.status_code in (200, 201), answer.text
    model = answer.json()
    server.models[model["recipe"]] = model["id"]
    return model


def inspect(server: Server, recipe: str, image: bytes, *, key: str | None = None, kind: str = "png", **metadata: str):
    """POST one image; the response, whatever it is."""
    headers = {"content-type": f"image/{kind}"} | ({"idempotency-key": key} if key is not None else {})
    return server.client.post("/v1/inspections", params={"recipe": recipe, **metadata}, content=image, headers=headers)


def inspected(server: Server, recipe: str, image: bytes, **keywords: str) -> dict:
    """POST one image that must be accepted; the answer."""
    answer = inspect(server, recipe, image, **keywords)
    assert answer.status_code == 201, answer.text
    return answer.json()


def assert_problem(answer: Any, status: int, kind: str | None = None) -> dict:
    """The answer is a problem+json of this status and kind; its content."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    content = answer.json()
    assert {"type", "title", "status", "detail", "instance"} <= set(content)
    assert content["status"] == status
    if kind is not None:
        assert content["type"] == f"urn:kizu:problem:{kind}"
    return content
