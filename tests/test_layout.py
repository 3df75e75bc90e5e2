"""The parts of the repository, and the one direction in which they know each other."""

import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("cli", "models", "training", "service")


def test_kizu_is_a_namespace_package_over_all_parts():
    assert not [part for part in PARTS if (REPOSITORY / part / "kizu" / "__init__.py").exists()]


def test_the_wheel_takes_the_package_of_every_part():
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert sorted(build["targets"]["wheel"]["packages"]) == sorted(f"{part}/kizu" for part in PARTS)
    assert sorted(build["dev-mode-dirs"]) == sorted(PARTS)


def test_the_service_imports_neither_torch_nor_training():
    code = (
        "import sys, kizu.service.app, kizu.service.cli, kizu.service.server\n"
        "print([name for name in sys.modules if name == 'torch' or name.startswith('kizu.training')])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"
