"""Schema versions: bring an empty or older database up to date, refuse a newer one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from kizu.errors import UserError
from kizu.service.storage.database import Database

MIGRATIONS = Path(__file__).parent / "migrations"
_ADVISORY_LOCK = 0x6B697A75  # "kizu"

logger = logging.getLogger(__name__)


def head() -> str:
    """Return the schema version that this code works with."""
    revision = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    assert revision is not None
    return revision


def current(database: Database) -> str | None:
    """Return the schema version of the database; None if it is empty."""
    with database.engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(database: Database) -> bool:
    """Bring the database to `head`; return True if anything was done.

    Raises:
        UserError: the database was written by a newer Kizu, or does not answer.
    """
    try:
        with _exclusive(database) as connection:
            before = MigrationContext.configure(connection).get_current_revision()
            _refuse_newer(before)
            if before == head():
                return False
            command.upgrade(_config(connection), "head")
    except sa.exc.OperationalError as error:
        raise UserError(f"The database does not answer: {error.orig}", "Check KIZU_DATABASE_URL.") from error
    logger.info("database upgraded from %s to %s", before or "empty", head())
    return True


def downgrade(database: Database, revision: str) -> None:
    """Take the database back to an older schema; what that schema cannot hold is lost."""
    with _exclusive(database) as connection:
        command.downgrade(_config(connection), revision)


def _refuse_newer(revision: str | None) -> None:
    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if revision is not None and revision not in known:
        raise UserError(
            f"The database has schema {revision}, which this Kizu does not know; it knows up to {head()}. "
            "A newer Kizu wrote it.",
            "Update Kizu on this machine, or point KIZU_DATABASE_URL at another database.",
        )


@contextmanager
def _exclusive(database: Database) -> Iterator[sa.Connection]:
    """Lock out other migrating processes, and migrate in one transaction."""
    if database.is_sqlite:
        # Rebuilding a table means dropping it, which foreign keys would not survive; they are checked at the end.
        engine = database.engine.execution_options(sqlite_begin="IMMEDIATE")
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.execute("PRAGMA foreign_keys=OFF")
            try:
                with connection.begin():
                    yield connection
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
                    if broken:
                        raise UserError(f"The migration would break references: {broken[:3]}; nothing was changed.")
            finally:
                raw.execute("PRAGMA foreign_keys=ON")
    else:
        with database.engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
            yield connection


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
