from __future__ import annotations

from pathlib import Path

import pytest

from kizu.errors import UserError
from kizu.service.settings import Settings


def test_settings_need_nothing_and_say_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KIZU_DATA_DIR", raising=False)
    assert Settings().resolved_database_url().endswith("/var/kizu.db")
    assert Settings(database_url="postgresql://u@h/d").resolved_database_url() == "postgresql+psycopg://u@h/d"
    assert Settings(blob_url="file:///srv/blobs").blob_dir() == Path("/srv/blobs")
    assert Settings(time_zone="Asia/Tokyo").time_zone == "Asia/Tokyo"
    for name in ("Mars/Olympus", "", "../etc/passwd", "/etc/localtime"):
        with pytest.raises(ValueError, match="no time zone"):
            Settings(time_zone=name)
    with pytest.raises(UserError, match="not supported"):
        Settings(blob_url="s3://bucket").blob_dir()
