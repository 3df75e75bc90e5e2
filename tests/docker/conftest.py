from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The build context."""
    return REPOSITORY


def find_binary(name: str) -> str | None:
    """A command of the environment that runs the tests, else of PATH."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def required_binary(name: str) -> str:
    """The path of a command; the test is skipped where the platform has none."""
    binary = find_binary(name)
    if binary is None:
        pytest.skip(f"no {name} for this platform")
    return binary


@pytest.fixture(scope="session")
def uv() -> str:
    """uv, with a package index that answers; without one the test is skipped, but not in CI."""
    binary = required_binary("uv")
    probe = subprocess.run(
        [binary, "pip", "compile", "--no-cache", "--quiet", "-"],
        input="hatchling\n",
        capture_output=True,
        text=True,
        env=os.environ | {"UV_HTTP_TIMEOUT": "5", "UV_HTTP_RETRIES": "0"},
        cwd=Path(sys.prefix),
        check=False,
    )
    if probe.returncode != 0:
        if os.environ.get("CI") == "true":
            raise AssertionError(probe.stderr)
        pytest.skip("no package index answers")
    return binary
