"""Small parts on their own: identifiers, the writer, blobs, audit draws, settings, imports."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
import sqlalchemy as sa

from kizu.errors import UserError
from kizu.service.identifiers import first_id_at, new_id, time_of
from kizu.service.inspections.heatmap import colour_map
from kizu.service.inspections.service import draw
from kizu.service.settings import Settings
from kizu.service.storage import schema
from kizu.service.storage.blobs import LocalBlobStore, key_of
from kizu.service.storage.database import Database
from kizu.service.storage.secrets import Secret, secret
from kizu.service.storage.writer import GroupCommitWriter


def test_identifiers_are_uuid7_unique_and_in_order() -> None:
    identifiers = [new_id() for _ in range(20_000)]
    assert identifiers == sorted(set(identifiers))
    assert {(identifier.version, identifier.variant) for identifier in identifiers} == {(7, UUID(int=0).variant)} or {
        identifier.version for identifier in identifiers
    } == {7}
    assert abs(time_of(identifiers[0]) - datetime.now(UTC)) < timedelta(seconds=10)


def test_the_first_identifier_of_a_moment_includes_it() -> None:
    identifier = new_id()
    assert first_id_at(time_of(identifier)) <= identifier
    assert first_id_at(time_of(identifier) + timedelta(microseconds=1)) > identifier


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/kizu.db")
    schema.upgrade(database)
    return database


def test_a_write_that_fails_does_so_alone(database: Database) -> None:
    writer = GroupCommitWriter(database)

    def insert(name: str):
        return lambda session: session.execute(sa.insert(Secret).values(name=name, value=b"x")).rowcount

    futures = [writer.submit(insert(name)) for name in ("a", "b", "a", "c")]
    assert [futures[i].result(5) for i in (0, 1, 3)] == [1, 1, 1]
    assert isinstance(futures[2].exception(5), sa.exc.IntegrityError)
    writer.close()
    with database.reading() as session:
        assert set(session.scalars(sa.select(Secret.name))) == {"a", "b", "c"}


def test_closing_the_writer_commits_what_was_submitted(database: Database) -> None:
    writer = GroupCommitWriter(database)
    for i in range(500):
        writer.submit(lambda session, i=i: session.add(Secret(name=str(i), value=b"x")))
    writer.close()
    with database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Secret)) == 500


def test_the_installation_keeps_its_secret(database: Database) -> None:
    assert len(secret(database, "audit")) == 32
    assert secret(database, "audit") == secret(database, "audit") != secret(database, "other")


def test_audit_draws_are_uniform_and_need_the_key() -> None:
    identifiers = [new_id() for _ in range(20_000)]
    drawn = sum(draw(b"key", identifier) < 0.02 for identifier in identifiers)
    assert abs(drawn - 400) < 5 * (20_000 * 0.02 * 0.98) ** 0.5
    assert draw(b"key", identifiers[0]) == draw(b"key", identifiers[0]) != draw(b"other", identifiers[0])


def test_blobs_are_kept_once_and_damage_is_repaired(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    key = key_of(b"image")
    store.put(key, b"image")
    store.put(key, b"image")
    assert list(store.keys()) == [key]
    store.path(key).write_bytes(b"im")
    store.put(key, b"image")
    assert store.get(key) == b"image"
    with pytest.raises(FileNotFoundError):
        store.get("0" * 64)
    with pytest.raises(ValueError, match="not a blob key"):
        store.get("../../etc/passwd")


def test_a_store_in_use_is_not_swept(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    swept = []
    first = store.open_shared(lambda: swept.append("first"))
    second = store.open_shared(lambda: swept.append("second"))
    first.release()
    second.release()
    store.open_shared(lambda: swept.append("third")).release()
    assert swept == ["first", "third"]


def test_the_colour_map_is_even_in_lightness() -> None:
    linear = np.where((c := colour_map() / 255) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(np.cbrt(luminance)) > 0).mean() > 0.97
    assert len(np.unique(colour_map(), axis=0)) > 250


def test_settings_need_nothing_and_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIZU_DATA_DIR", raising=False)
    assert Settings().resolved_database_url().endswith("/var/kizu.db")
    assert Settings(database_url="postgresql://u@h/d").resolved_database_url() == "postgresql+psycopg://u@h/d"
    assert Settings(blob_url="file:///srv/blobs").blob_dir() == Path("/srv/blobs")
    with pytest.raises(UserError, match="not supported"):
        Settings(blob_url="s3://bucket").blob_dir()


def test_the_service_imports_no_torch_and_no_training() -> None:
    code = """
import sys, kizu.service.app, kizu.service.cli
found = [name for name in sys.modules if name.split(".")[0] == "torch" or name.startswith("kizu.training")]
sys.exit(", ".join(found) or None)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
