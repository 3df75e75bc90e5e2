"""Mutants are changes of one place each, and run wherever the module's functions are held."""

import ast
import importlib.util

import pytest

from benchmarks.mutation import REPOSITORY, TESTS, apply, functions_of, mutants

SOURCE = '''
"""A module."""

WEIGHT = 2.0


def loss(x: int | None, bias: int = 1) -> float:
    """Return a loss."""
    if x is None:
        raise ValueError(f"needs {1} number")
    return WEIGHT * x + bias
'''


def test_each_mutant_is_one_change_of_what_runs() -> None:
    found = {mutant.change: ast.unparse(mutant.tree) for mutant in mutants(SOURCE)}
    assert set(found) == {
        "2.0 → 4.0",
        "1 → 2",
        "if x is None: negated",
        "x is None: → IsNot",
        "raise ValueError(f'needs {1} number'): removed",
        "WEIGHT * x + bias: Add → Sub",
        "WEIGHT * x + bias: second term dropped",
        "WEIGHT * x: Mult → Div",
    }
    assert found["WEIGHT * x + bias: second term dropped"].endswith("return WEIGHT * x")
    assert len(set(found.values()) | {ast.unparse(ast.parse(SOURCE))}) == len(found) + 1


@pytest.mark.parametrize(
    ("change", "value"), [("2.0 → 4.0", 13.0), ("1 → 2", 8.0), ("WEIGHT * x + bias: second term dropped", 6.0)]
)
def test_a_mutant_runs_in_functions_that_were_imported_before(change, value, tmp_path) -> None:
    path = tmp_path / "module.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loss = module.loss
    assert loss(3) == 7.0
    (mutant,) = (m for m in mutants(SOURCE) if m.change == change)
    apply(module, functions_of(module), mutant.tree)
    assert loss(3) == value


def test_the_tests_of_every_module_exist() -> None:
    for name, paths in TESTS.items():
        assert importlib.util.find_spec(name) is not None
        assert all((REPOSITORY / path).exists() for path in paths)
