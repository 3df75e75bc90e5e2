from __future__ import annotations

from pathlib import Path

from kizu.service.storage import schema
from kizu.service.storage.database import Database
from kizu.service.storage.secrets import secret


def test_the_installation_keeps_its_secret(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/kizu.db")
    schema.upgrade(database)
    assert len(secret(database, "audit")) == 32
    assert secret(database, "audit") == secret(database, "audit") != secret(database, "other")
