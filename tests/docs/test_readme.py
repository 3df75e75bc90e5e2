"""README's own path, run as a newcomer would: import, train, evaluate, serve, inspect, review, ask for quality."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kizu.training.data.render import render_boards

from ..service.processes import free_port
from .tables import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
IMAGES = "my-images"


def blocks(language):
    """Return README's fenced blocks of a language, from the section that starts from a user's images on."""
    section = README[README.index("## From your images") :]
    return re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)


def sort_into_folders(folder, tmp_path):
    """Lay rendered boards out as README asks for: `ok/` and `ng/<defect>/`."""
    boards = render_boards(tmp_path / "rendered", boards=12, count_ok=60, count_ng=24, size=128, channels=1, seed=3)
    for row in boards.rows:
        into = folder / "ok" if row.label == "OK" else folder / "ng" / row.defects[0]
        into.mkdir(parents=True, exist_ok=True)
        shutil.copy(boards.root / row.path, into)


@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl"))), reason="README's commands need bash and curl")
def test_the_path_from_images_to_quality_works_as_written(tmp_path):
    sort_into_folders(tmp_path / IMAGES, tmp_path)
    shutil.copy(next((tmp_path / IMAGES / "ng").glob("*/*.png")), tmp_path / "part.png")
    (recipe,) = blocks("toml")
    assert "size = 128" in recipe
    quicker = "[detector]\nbatch_size = 8\noptions = { least_side = 64 }\n"
    (tmp_path / "my-part.toml").write_text(recipe.replace("size = 128", "size = 64") + quicker)
    port = free_port()
    script = "set -euo pipefail\n" + "\n".join(blocks("sh"))
    script = script.replace(":8000", f":{port}")
    # The service needs a moment to start, and a person reads the id off the answer.
    serve = next(line for line in script.splitlines() if line.startswith("kizu serve &"))
    ready = f"curl -s --retry 60 --retry-delay 1 --retry-connrefused -o ready.json http://127.0.0.1:{port}/readyz"
    script = script.replace(serve, f"{serve}\ntrap 'kill $!' EXIT\n{ready}")
    inspect = next(line for line in script.splitlines() if line.endswith("&station=AOI-1'"))
    script = script.replace(inspect, f"{inspect} | tee inspection.json")
    find_id = f'ID=$({sys.executable} -c \'import json; print(json.load(open("inspection.json"))["id"])\')'
    script = script.replace("/ID/reviews", "/$ID/reviews").replace(
        "curl -s -H 'Content-Type: application/json'", f"{find_id}\ncurl -s -H 'Content-Type: application/json'"
    )
    script = script.replace("&group_by=lot'", "&group_by=lot' | tee quality.json")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "KIZU_PORT": str(port)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "runs/my-part/bundle/report.html").exists()
    inspection = json.loads((tmp_path / "inspection.json").read_text())
    assert (inspection["recipe"], inspection["serial"], inspection["lot"]) == ("my-part", "A17", "7")
    assert inspection["verdict"] in ("OK", "REVIEW", "NG")
    (lot,) = json.loads((tmp_path / "quality.json").read_text())["groups"]
    assert lot["key"] == "7"
    assert lot["fnr"]["total"] == 1


def test_every_link_and_picture_exists():
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"), *(REPOSITORY / "benchmarks").glob("*.md")]
    pages += [
        page for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md") if (page := REPOSITORY / name).exists()
    ]
    missing = []
    for page in pages:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert not missing
