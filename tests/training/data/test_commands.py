"""The commands as a user meets them: exit codes, stdout for machines, stderr for people."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

from .conftest import Draw, leftovers

Kizu = Callable[..., CompletedProcess[str]]


def test_import_prints_one_json_object_and_nothing_else_to_stdout(tmp_path: Path, draw: Draw, kizu: Kizu) -> None:
    for name in ("ok/1.png", "ok/2.png", "ng/dent/[3].png", "notes.txt"):
        draw(tmp_path / "source" / name)
    done = kizu("import", "folder", tmp_path / "source", tmp_path / "set", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["images"] == {"OK": 2, "NG": 1, "unlabelled": 0}
    assert summary["defects"] == {"dent": 1}
    assert summary["skipped"] == ["notes.txt (not a JPEG, PNG, BMP or TIFF file)"]
    assert summary["destination"] == str(tmp_path / "set")


def test_an_import_says_which_ng_have_an_empty_mask(tmp_path: Path, draw: Draw, kizu: Kizu) -> None:
    draw(tmp_path / "source" / "ok" / "1.png")
    for number in range(12):
        draw(tmp_path / "source" / "ng" / f"{number:02}.png")
        draw(tmp_path / "source" / "masks" / f"{number:02}.png", value=0)
    done = kizu("import", "folder", tmp_path / "source", tmp_path / "set")
    assert "warning: 12 NG images with an empty mask" in done.stdout
    assert "ng/09.png" in done.stdout
    assert "ng/10.png" not in done.stdout
    assert "… and 2 more (--json lists all)" in done.stdout
    done = kizu("import", "folder", tmp_path / "source", tmp_path / "again", "--json")
    summary = json.loads(done.stdout)
    assert summary["empty_masks"] == [f"ng/{number:02}.png" for number in range(12)]
    assert summary["masks"] == 0


def test_a_bad_image_ends_with_exit_code_2_one_message_and_nothing_written(
    tmp_path: Path, draw: Draw, kizu: Kizu
) -> None:
    bad = draw(tmp_path / "source" / "ok" / "1.png")
    bad.write_bytes(bad.read_bytes()[:-30])
    done = kizu("import", "folder", tmp_path / "source", tmp_path / "set")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"error: {bad}: the image is truncated" in done.stderr
    assert "remedy: " in done.stderr
    assert "Traceback" not in done.stderr
    assert leftovers(tmp_path) == ["source"]


def test_render_shows_a_summary(tmp_path: Path, kizu: Kizu) -> None:
    options = ("--count-ok", 6, "--count-ng", 7, "--boards", 3, "--size", 32, "--channels", 1)
    done = kizu("data", "render", tmp_path / "set", *options)
    assert done.returncode == 0, done.stderr
    assert "13 images" in done.stdout
    assert "pinhole" in done.stdout
    assert (tmp_path / "set" / "manifest.csv").is_file()


def test_render_makes_a_texture_where_asked_and_boards_otherwise(tmp_path: Path, kizu: Kizu) -> None:
    options = ("--count-ok", 6, "--count-ng", 6, "--size", 32, "--channels", 1)
    done = kizu("data", "render", tmp_path / "set", "--product", "texture", "--sheets", 3, *options, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"] == 3
    assert {path.name for path in (tmp_path / "set" / "ng" / "smear").iterdir()} <= {f"sheet-00{n}" for n in (1, 2, 3)}


def test_a_texture_has_no_views(tmp_path: Path, kizu: Kizu) -> None:
    done = kizu("data", "render", tmp_path / "set", "--product", "texture", "--views", 2)
    assert done.returncode == 2
    assert "a texture has no views" in done.stderr
    assert leftovers(tmp_path) == []
