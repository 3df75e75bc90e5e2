"""Each benchmark is a command of the repository that shows its options and reports a user's error in one message."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NAMES = ("gan", "ganomaly", "limited")


def run(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_shows_its_options(name: str) -> None:
    shown = run(name, "--help")
    assert shown.returncode == 0, shown.stderr
    for option in ("--report", "--json"):
        assert option in shown.stdout


def test_a_users_error_is_one_message_with_a_remedy() -> None:
    refused = run("limited", "nowhere", "--augment", "magic")
    assert refused.returncode == 2
    assert refused.stderr.splitlines() == [
        "error: Unknown augmentation magic.",
        "remedy: Choose ada, diffaugment or none.",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_name_the_command(name: str) -> None:
    assert f"`python -m benchmarks.{name}`" in (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_nothing_in_the_wheel_imports_from_the_benchmarks() -> None:
    sources = [path for part in ("cli", "models", "training", "service") for path in (REPOSITORY / part).rglob("*.py")]
    assert len(sources) > 100
    found = [path for path in sources if "benchmarks" in path.read_text(encoding="utf-8")]
    assert not found
