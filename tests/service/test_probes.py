from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import sqlalchemy as sa

from kizu.service.storage import schema
from kizu.service.storage.blobs import LocalBlobStore
from kizu.service.storage.database import Database
from kizu.service.storage.probes import PROBE_BYTES, TIMEOUT_S, VALID_S, ProbeRow, StoreProbes
from kizu.service.storage.writer import GroupCommitWriter


class CountedStore(LocalBlobStore):
    """A store in a folder that remembers its probes, and can be told to hang."""

    def __init__(self, root: Path):
        super().__init__(root)
        self.sizes: list[int] = []
        self.free = threading.Event()
        self.free.set()

    def probe(self, size: int) -> None:
        self.sizes.append(size)
        self.free.wait(30)
        super().probe(size)


def test_many_questions_make_few_probes_and_leave_nothing_behind(database: Database, tmp_path: Path) -> None:
    schema.upgrade(database)
    writer, store = GroupCommitWriter(database), CountedStore(tmp_path / "blobs")

    async def ask() -> None:
        probes = StoreProbes(writer, store)
        for _ in range(50):
            assert await asyncio.gather(*(probes.failures() for _ in range(4))) == [[]] * 4
        assert store.sizes == [PROBE_BYTES]
        await asyncio.sleep(VALID_S)
        assert await probes.failures() == []
        assert store.sizes == [PROBE_BYTES] * 2

    asyncio.run(ask())
    writer.close()
    assert [path.name for path in (tmp_path / "blobs").rglob("*")] == ["tmp"]
    with database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(ProbeRow)) == 0


def test_a_store_that_hangs_is_asked_once_and_said_in_time(database: Database, tmp_path: Path) -> None:
    schema.upgrade(database)
    writer, store = GroupCommitWriter(database), CountedStore(tmp_path / "blobs")
    store.free.clear()

    async def ask() -> None:
        probes = StoreProbes(writer, store)
        for limit in (TIMEOUT_S + 1, 0.5, 0.5):
            began = time.monotonic()
            (failure,) = await probes.failures()
            assert (failure.store, failure.kind) == ("images", "storage-unavailable")
            assert "No answer" in failure.problem
            assert time.monotonic() - began < limit
        assert len(store.sizes) == 1
        store.free.set()
        while await probes.failures():
            await asyncio.sleep(0.05)
        assert len(store.sizes) == 1

    asyncio.run(ask())
    writer.close()


def test_another_schema_and_a_database_without_it(database: Database, tmp_path: Path) -> None:
    schema.upgrade(database)
    writer, store = GroupCommitWriter(database), LocalBlobStore(tmp_path / "blobs")

    async def kinds() -> list[str]:
        return [failure.kind for failure in await StoreProbes(writer, store).failures()]

    with database.writing() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    assert asyncio.run(kinds()) == ["schema-mismatch"]
    with database.writing() as session:
        session.execute(sa.text("DROP TABLE probes"))
    assert asyncio.run(kinds()) == ["database-unavailable"]
    writer.close()
