"""Staging: a data set appears complete or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kizu.errors import UserError
from kizu.training.data.importers.staging import Journal, staged, survey

from ..conftest import Draw, leftovers


def test_the_folder_appears_with_its_parents_when_the_block_ends(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "set"
    with staged(destination) as staging:
        (staging / "file").write_text("x")
        assert not destination.exists()
    assert leftovers(destination) == ["file"]
    assert leftovers(destination.parent) == ["set"]


def test_an_empty_destination_is_taken_and_keeps_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "other").mkdir()
    with staged(tmp_path / "set") as staging:
        (staging / "file").write_text("x")
    assert leftovers(tmp_path / "set") == ["file"]
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_stays_behind_when_the_block_fails(tmp_path: Path, error: BaseException) -> None:
    expected = UserError if isinstance(error, OSError) else type(error)

    def fail() -> None:
        with staged(tmp_path / "deep" / "set") as staging:
            (staging / "file").write_text("x")
            raise error

    with pytest.raises(expected):
        fail()
    assert leftovers(tmp_path) == []


def test_a_destination_in_use_is_never_touched(tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    for destination, problem in ((used, "not empty"), (tmp_path / "file", "not a folder")):
        with pytest.raises(UserError, match=problem), staged(destination):
            raise AssertionError("must not be reached")
    assert leftovers(used) == ["mine"]


def test_a_destination_inside_the_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inside the source"), staged(tmp_path / "set", tmp_path):
        raise AssertionError("must not be reached")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"), staged(tmp_path / "set"):
        raise AssertionError("must not be reached")


def test_ctrl_c_during_an_import_leaves_nothing(tmp_path: Path, draw: Draw) -> None:
    for number in range(20):
        draw(tmp_path / "source" / "ok" / f"{number}.png")
    program = textwrap.dedent(
        """
        import signal, sys, time
        from pathlib import Path
        from kizu.training.data.importers import staging
        from kizu.training.data.importers.folder import import_folder

        # A shell that starts the tests in the background has them ignore SIGINT, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        copy = staging._copy
        def slow(item, folder):
            row = copy(item, folder)
            print("copied", flush=True)
            time.sleep(0.3)
            return row
        staging._copy = slow
        import_folder(Path(sys.argv[1]), Path(sys.argv[2]))
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "source", tmp_path / "set"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"copied")
    assert any(".set.incomplete-" in name for name in leftovers(tmp_path))
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert time.monotonic() - started < 3
    assert leftovers(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["back\\slash.png", "line\nbreak.png", b"latin-\xfc.png"])
def test_file_names_that_a_manifest_cannot_carry_are_refused(tmp_path: Path, draw: Draw, name: str | bytes) -> None:
    image = draw(tmp_path / "ok" / "1.png")
    image.rename(image.with_name(os.fsdecode(name)))
    with pytest.raises(UserError, match="cannot be kept in a manifest"):
        survey(tmp_path, Journal())


def test_the_survey_finds_images_and_says_what_it_passes_over(tmp_path: Path, draw: Draw) -> None:
    source = tmp_path / "source"
    inside = draw(source / "ok" / "Ünï 1.PNG")
    draw(source / ".hidden" / "x.png")
    draw(source / "__MACOSX" / "x.png")
    outside = draw(tmp_path / "outside" / "x.png")
    for name, text in (("Thumbs.db", "x"), (".DS_Store", "x"), ("notes.txt", "x")):
        (source / name).write_text(text)
    (source / "ok" / "same.png").symlink_to(inside)
    (source / "ok" / "out.png").symlink_to(outside)
    (source / "folder").symlink_to(outside.parent)
    journal = Journal()
    assert [str(path) for path in survey(source, journal)] == ["ok/same.png", "ok/Ünï 1.PNG"]
    assert sorted(journal.skipped) == [
        "folder (symbolic link to a folder)",
        "notes.txt (not a JPEG, PNG, BMP or TIFF file)",
        "ok/out.png (symbolic link that leads out of the source)",
    ]
