from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from kizu.service.storage import schema
from kizu.service.storage.database import Database
from kizu.service.storage.secrets import Secret
from kizu.service.storage.writer import GroupCommitWriter


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

    def insert(name: str) -> None:
        writer.submit(lambda session: session.add(Secret(name=name, value=b"x")))

    for i in range(500):
        insert(str(i))
    writer.close()
    with database.reading() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(Secret)) == 500
