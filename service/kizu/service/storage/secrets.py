"""Random keys that belong to the installation and are made on first use."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from kizu.service.storage.database import Base, Database, insert_or_ignore


class Secret(Base):
    """A named random key."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    value: Mapped[bytes]


def secret(database: Database, name: str) -> bytes:
    """Return 32 random bytes, the same for every process of this installation."""
    with database.writing() as session:
        insert_or_ignore(session, Secret, name=name, value=secrets.token_bytes(32))
        return session.scalars(sa.select(Secret.value).where(Secret.name == name)).one()
