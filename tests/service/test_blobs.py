from __future__ import annotations

from pathlib import Path

import pytest

from kizu.service.storage.blobs import LocalBlobStore, key_of


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
