"""The commands of docs/service.md do what the page says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .bundles import make_bundle, picture
from .conftest import upload
from .processes import Server

PAGE = Path(__file__).parents[2] / "docs" / "service.md"


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="the commands need bash and curl")
def test_curl_inspects_and_reviews_as_written(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server().start()
    make_bundle(tmp_path / "bundle", "my-part")
    upload(server, tmp_path / "bundle", promote=True)
    (tmp_path / "part.jpg").write_bytes(picture(200, kind="JPEG", size=(64, 64)))
    commands = [block for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) if "curl" in block]
    answers: list[dict] = []
    for command in commands:
        script = command.replace("http://127.0.0.1:8000", server.url)
        if answers:
            script = script.replace("019a…", answers[0]["id"])
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout))
    form, raw, review = answers
    assert (form["recipe"], form["serial"], form["lot"]) == ("my-part", "A17", None)
    assert (raw["lot"], raw["station"], raw["captured_at"]) == ("7", "AOI-1", "2026-11-21T23:00:00Z")
    assert (review["inspection_id"], review["defect"], review["reviewer"]) == (form["id"], "scratch", "ann")
