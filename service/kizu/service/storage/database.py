"""The database: SQLite or PostgreSQL behind one class.

Notable here:
- SQLite runs in WAL mode with synchronous=FULL: a commit has reached the disk before it is reported.
- Writers begin with BEGIN IMMEDIATE, so two of them queue up instead of failing half-way.
- Times are stored in UTC and read back with their zone from either database.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

from kizu.errors import UserError

BUSY_TIMEOUT_S = 15


class UtcDateTime(sa.TypeDecorator[datetime]):
    """An instant. SQLite keeps no zone, so values are turned to UTC on the way in and marked on the way out."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Convert to UTC; without zone for SQLite."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """Return the instant in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of the tables. Constraints are named, because SQLite can only change what has a name."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime()}


class Database:
    """An engine with its two kinds of transaction: reading and writing."""

    def __init__(self, url: str):
        try:
            self.url = sa.make_url(url)
            dialect = self.url.get_dialect().name
        except sa.exc.ArgumentError as error:
            raise UserError("KIZU_DATABASE_URL is not a database URL.", "Example: sqlite:///var/kizu.db") from error
        if dialect not in ("sqlite", "postgresql"):
            raise UserError(f"Kizu does not run on {dialect}.", "Use sqlite:///… or postgresql+psycopg://….")
        self.is_sqlite = dialect == "sqlite"
        self.engine = self._sqlite_engine() if self.is_sqlite else self._postgresql_engine()

    def _sqlite_engine(self) -> sa.Engine:
        if self.url.database in (None, "", ":memory:"):
            raise UserError("An SQLite database in memory keeps no verdicts.", "Give a file: sqlite:///var/kizu.db")
        Path(str(self.url.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(
            self.url, pool_size=16, max_overflow=48, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine

    def _postgresql_engine(self) -> sa.Engine:
        return sa.create_engine(
            self.url,
            pool_size=8,
            max_overflow=24,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": 5,
                "options": f"-c timezone=UTC -c synchronous_commit=on -c lock_timeout={BUSY_TIMEOUT_S}s",
            },
        )

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a session for reading; all of its queries see the database at one moment, and nothing is written."""
        # SQLite reads so by itself, from the first query on.
        options = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        with Session(self.engine.execution_options(**options), expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a transaction that commits at the end of the block, or rolls back with its exception."""
        options = {"sqlite_begin": "IMMEDIATE"} if self.is_sqlite else {}
        engine = self.engine.execution_options(**options)
        with Session(engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def insert_or_ignore(session: Session, table: type[Base], **values: Any) -> bool:
    """INSERT unless a row with that key exists; return True if a row was added."""
    connection = session.connection()
    return connection.execute(_insert_or_ignore(table, connection.dialect.name), values).rowcount == 1


@cache
def _insert_or_ignore(table: type[Base], dialect: str) -> sa.Insert:
    # Built once: compiling it anew would cost more than running it.
    module = sqlite if dialect == "sqlite" else postgresql
    insert: sa.Insert = module.insert(table.__table__).on_conflict_do_nothing()
    return insert


def local_day(session: Session, moment: sa.ColumnElement[datetime], zone: str) -> sa.ColumnElement[str]:
    """Return the expression of the day, as `2026-03-01`, on which a stored time falls in an IANA time zone."""
    if session.get_bind().dialect.name != "sqlite":
        return sa.func.date(sa.func.timezone(zone, moment))
    # SQLite knows no time zones.
    return sa.func.date(moment) if zone == "UTC" else sa.func.local_day(moment, zone)


@lru_cache(maxsize=100_000)
def _day_of_minute(minute: str, zone: str) -> str:
    moment = datetime.strptime(minute, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    return moment.astimezone(ZoneInfo(zone)).date().isoformat()


def _local_day(stored: str | None, zone: str) -> str | None:
    # No zone has had offsets of seconds since 1972, so that all times of a minute are of one day.
    return None if stored is None else _day_of_minute(stored[:16], zone)


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.create_function("local_day", 2, _local_day, deterministic=True)
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-16000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # The sqlite3 module would begin on its own, late and deferred; isolation_level=None switches that off.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('sqlite_begin', 'DEFERRED')}")
