"""Each benchmark is a command of the repository that shows its options and reports a user's error in one message."""

import runpy
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NAMES = ("detectors", "detectors_peers", "devices", "gan", "ganomaly", "limited", "speed")


pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


def run(name: str, *options: str) -> int:
    """Run the module as `python -m` does; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *options])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("name", NAMES)
def test_a_command_shows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(name, "--help") == 0
    shown = capsys.readouterr().out
    for option in ("--report", "--json"):
        assert option in shown


def test_a_users_error_is_one_message_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("limited", "nowhere", "--augment", "magic") == 2
    assert capsys.readouterr().err.splitlines() == [
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
