"""Imports of the training half point one way, between modules and between its folders."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import kizu.training

PACKAGE = "kizu.training"
ROOT = Path(kizu.training.__path__[0])


def modules() -> dict[str, Path]:
    """All modules of the package by their dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join((PACKAGE, *(part for part in parts if part != "__init__")))] = path
    return found


def imports() -> dict[str, set[str]]:
    """Modules of the package that each module imports anywhere, functions and TYPE_CHECKING blocks included."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative import"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {target if target in known else str(node.module) for target in inside}
        graph[name] = (targets & known.keys()) - {name}
    return graph


def unit(module: str) -> str:
    """The module or folder directly under the package that a module belongs to."""
    return ".".join(module.split(".")[:3])


def test_modules_import_each_other_without_a_circle() -> None:
    TopologicalSorter(imports()).prepare()


def test_folders_import_each_other_without_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, targets in imports().items():
        graph.setdefault(unit(module), set()).update(unit(target) for target in targets if unit(target) != unit(module))
    TopologicalSorter(graph).prepare()


def test_ways_to_synthesise_know_no_detector_and_no_stage() -> None:
    for module, targets in imports().items():
        if unit(module) == f"{PACKAGE}.generators":
            assert not {unit(target) for target in targets} & {f"{PACKAGE}.detectors", f"{PACKAGE}.synthesis"}, module
