from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from kizu.service.storage.blobs import LocalBlobStore, StoreMissingError, key_of


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


def test_nothing_is_stored_where_the_store_is_not_mounted(tmp_path: Path) -> None:
    disk, root = tmp_path / "disk", tmp_path / "blobs"
    disk.mkdir()
    root.mkdir()

    def mount(*arguments: object) -> None:
        done = subprocess.run([str(argument) for argument in arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount: {done.stderr}")

    mount("mount", "-t", "tmpfs", "-o", "size=8m", "none", disk)
    try:
        mount("mount", "--bind", disk, root)
        store = LocalBlobStore(root)
        lock = store.open_shared(lambda: None)
        store.put(key_of(b"image"), b"image")
        # As a forced or lazy unmount would.
        mount("umount", "--lazy", root)
        for attempt in (lambda: store.put(key_of(b"other"), b"other"), lambda: store.probe(10)):
            with pytest.raises(StoreMissingError):
                attempt()
        assert list(root.iterdir()) == []
        mount("mount", "--bind", disk, root)
        store.put(key_of(b"other"), b"other")
        store.probe(10)
        assert set(store.keys()) == {key_of(b"image"), key_of(b"other")}
        lock.release()
    finally:
        for folder in (root, disk):
            subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def test_a_folder_that_was_removed_is_made_again_below_the_root(tmp_path: Path) -> None:
    store = LocalBlobStore(tmp_path)
    key = key_of(b"image")
    store.put(key, b"image")
    shutil.rmtree(tmp_path / key[:2])
    store.put(key, b"image")
    assert store.get(key) == b"image"
