"""Small image trees, the real data where there is some, and the command line as a process."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[3]
REAL_DATA = Path(os.environ.get("KIZU_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

Draw = Callable[..., Path]


@pytest.fixture
def draw() -> Draw:
    """`draw(path, size=(16, 16), value=None, mode="L")`: an image file of noise or of one value."""

    def write(path: Path, size: tuple[int, int] = (16, 16), value: int | None = None, mode: str = "L") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
        random = np.random.default_rng(sum(map(ord, path.name)))
        pixels = random.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
        buffer = io.BytesIO()
        formats = {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"}
        Image.fromarray(pixels).save(buffer, formats.get(path.suffix.lower(), "PNG"))
        path.write_bytes(buffer.getvalue())
        return path

    return write


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """The folder of a real data set; the test is skipped where it is not there."""

    def locate(name: str) -> Path:
        folder = REAL_DATA / name
        if not folder.is_dir():
            pytest.skip(f"no real images at {folder} (KIZU_TEST_DATA says where they are)")
        return folder

    return locate


@pytest.fixture
def kizu() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `kizu` as a process of its own."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kizu", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False)

    return run


def leftovers(folder: Path) -> list[str]:
    """Everything in a folder, hidden staging included."""
    return sorted(path.name for path in folder.iterdir())
