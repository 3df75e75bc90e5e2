"""The parts of the repository, and the one direction in which they know each other.

Notable here:
- Every import statement counts, wherever it stands: inside a function and under `TYPE_CHECKING` too.
- A unit is a module directly in a part's package, or a folder in it. What units import must be free of circles; so must
  what modules import.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PARTS = ("cli", "models", "training", "service")
MAY_IMPORT = {
    "models": {"models"},
    "training": {"models", "training"},
    "service": {"models", "service"},
    "cli": set(PARTS),
}
"""The service's worker, which runs training as a job, will be the one exception; it does not exist yet."""


def modules() -> dict[str, Path]:
    """Return every module of every part by its dotted name."""
    found = {}
    for part in PARTS:
        for path in (REPOSITORY / part).rglob("*.py"):
            words = path.relative_to(REPOSITORY / part).with_suffix("").parts
            found[".".join(words[:-1] if words[-1] == "__init__" else words)] = path
    return found


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Yield the names of the modules of Kizu that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative imports are not counted"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            if name:
                yield name


IMPORTS = {name: set(imported(path)) - {name} for name, path in MODULES.items()}


def part_of(module: str) -> str:
    """Return the top-level folder that holds a module."""
    return MODULES[module].relative_to(REPOSITORY).parts[0]


def unit_of(module: str) -> str:
    """Return a module's unit: `kizu.training.loop` is its own, `kizu.training.data.crops` belongs to its folder."""
    return ".".join(module.split(".")[:3])


def circle(graph: Mapping[str, Set[str]]) -> list[str]:
    """Return the nodes of a circle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


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


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_the_parts_below_it(part):
    wrong = [
        f"{module} -> {name}"
        for module, names in IMPORTS.items()
        for name in names
        if part_of(module) == part and part_of(name) not in MAY_IMPORT[part]
    ]
    assert not wrong


def test_modules_import_each_other_in_one_direction():
    assert not circle(IMPORTS)


def test_units_import_each_other_in_one_direction():
    units: dict[str, set[str]] = {}
    for module, names in IMPORTS.items():
        units.setdefault(unit_of(module), set()).update(unit_of(name) for name in names)
    assert not circle({unit: names - {unit} for unit, names in units.items()})


def test_a_circle_would_be_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}})


def test_a_class_name_stands_for_one_thing():
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert not {name: places for name, places in homes.items() if len(places) > 1}
