"""Files are whole or not there."""

import pytest

from kizu import files


def test_a_file_appears_with_its_content_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "notes.txt"
    files.write_text(path, "Prüfling\n")
    assert path.read_bytes() == "Prüfling\n".encode()
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "state"
    files.write_bytes(path, b"old")
    with files.atomic_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_an_error_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path = tmp_path / "state"
    files.write_bytes(path, b"old")

    def fail_half_way():
        with files.atomic_file(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_leftover_of_a_crashed_writer_is_replaced(tmp_path):
    (tmp_path / ".state.tmp").write_bytes(b"from a process that was killed")
    files.write_bytes(tmp_path / "state", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_temporary_file_may_lie_elsewhere(tmp_path):
    (tmp_path / "tmp").mkdir()
    with files.atomic_file(tmp_path / "blob", temporary=tmp_path / "tmp" / "1") as file:
        file.write(b"x")
        assert (tmp_path / "tmp" / "1").exists()
    assert (tmp_path / "blob").read_bytes() == b"x"
    assert not list((tmp_path / "tmp").iterdir())
