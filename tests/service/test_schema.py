from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

import kizu.service.app  # noqa: F401 - loads the tables of every noun
from kizu.errors import UserError
from kizu.service.identifiers import new_id
from kizu.service.inspections.tables import Inspection
from kizu.service.reviews.tables import Review
from kizu.service.storage import schema
from kizu.service.storage.database import Base, Database

from .conftest import fill
from .processes import Server


def test_migrations_lead_to_what_the_code_expects(database: Database) -> None:
    assert schema.current(database) is None
    assert schema.upgrade(database)
    assert schema.current(database) == schema.head()
    assert not schema.upgrade(database)
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_down_and_up_again_with_data(database: Database) -> None:
    schema.upgrade(database)
    inspection = fill(database)
    with database.writing() as session:
        session.add(Review(id=new_id(), inspection_id=inspection.id, label="NG", created_at=datetime.now(UTC)))
    schema.downgrade(database, "0001")
    assert "reviews" not in sa.inspect(database.engine).get_table_names()
    schema.upgrade(database)
    with database.reading() as session:
        kept = session.get_one(Inspection, inspection.id)
        assert (kept.score, kept.received_at, kept.label) == (0.1 + 0.2, inspection.received_at, None)
    schema.downgrade(database, "base")
    assert sa.inspect(database.engine).get_table_names() in (["alembic_version"], [])
    schema.upgrade(database)


def test_passes_found_ng_before_second_reviews_need_one(database: Database) -> None:
    schema.upgrade(database)
    inspection = fill(database)
    with database.writing() as session:
        stored = session.get_one(Inspection, inspection.id)
        stored.verdict, stored.label = "OK", "NG"
    schema.downgrade(database, "0002")
    schema.upgrade(database)
    with database.reading() as session:
        kept = session.get_one(Inspection, inspection.id)
        assert (kept.label, kept.confirmed, kept.again) == ("NG", None, True)


def test_times_of_capture_that_the_api_does_not_take_are_forgotten(database: Database) -> None:
    schema.upgrade(database)
    stored = {
        datetime(1969, 12, 31, 15, 0, 7, tzinfo=UTC): None,
        datetime(9001, 1, 1, 9, tzinfo=UTC): None,
        (first := datetime(1970, 1, 1, tzinfo=UTC)): first,
        (last := datetime(9000, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)): last,
    }
    schema.downgrade(database, "0003")
    ids = {moment: fill(database, captured_at=moment).id for moment in stored}
    schema.upgrade(database)
    schema.downgrade(database, "0003")
    schema.upgrade(database)
    with database.reading() as session:
        kept = {moment: session.get_one(Inspection, ids[moment]).captured_at for moment in stored}
    assert kept == stored


def test_a_newer_schema_is_refused_and_left_alone(database: Database) -> None:
    schema.upgrade(database)
    inspection = fill(database)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(UserError, match="newer Kizu"):
        schema.upgrade(database)
    with database.reading() as session:
        assert session.get(Inspection, inspection.id) is not None


def test_serve_refuses_a_newer_schema(new_server: Callable[..., Server]) -> None:
    server = new_server()
    database = Database(f"sqlite:///{server.home}/kizu.db")
    schema.upgrade(database)
    with database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    refused = server.cli("serve", "--port", str(server.port))
    assert refused.returncode == 2
    assert "schema 9999" in refused.stderr
    assert "Update Kizu" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_references_are_enforced(database: Database) -> None:
    schema.upgrade(database)
    with pytest.raises(sa.exc.IntegrityError), database.writing() as session:
        session.add(Review(id=new_id(), inspection_id=new_id(), label="NG", created_at=datetime.now(UTC)))


def test_sqlite_flushes_every_commit(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/kizu.db")
    with database.engine.connect() as connection:
        found = {
            pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    database.close()
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "nonsense", "sqlite:///:memory:"])
def test_databases_that_will_not_do(url: str) -> None:
    with pytest.raises(UserError):
        Database(url)
