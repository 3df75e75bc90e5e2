"""Mutants are changes of one place each, and run wherever the module's functions are held."""

import ast
import importlib.util
import os
import subprocess
import sys

import pytest

from benchmarks.mutants import mutants
from benchmarks.mutation import REPOSITORY, TESTS, Outcome, Results, apply, functions_of

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


def test_a_mutant_names_the_lines_of_its_statement_and_none_outside_functions() -> None:
    lines = {mutant.change: mutant.lines for mutant in mutants(SOURCE)}
    assert lines["x is None: → IsNot"] == range(9, 10)  # the condition runs where what it guards does not
    assert lines["WEIGHT * x: Mult → Div"] == range(11, 12)
    assert lines["2.0 → 4.0"] is None
    assert lines["1 → 2"] is None  # a default argument is evaluated at import


def test_a_later_run_knows_kills_and_repeats_survivals_once_the_tests_changed(tmp_path) -> None:
    path = tmp_path / "results.jsonl"
    outcomes = {3: Outcome(11, "first", "killed"), 4: Outcome(11, "second", "survived")}
    made = Results(path, "module", source="a", tests="t")
    for index, outcome in outcomes.items():
        made.add(index, outcome)
    assert Results(path, "module", source="a", tests="t").outcomes == outcomes
    assert Results(path, "module", source="a", tests="more").outcomes == {3: outcomes[3]}
    assert Results(path, "module", source="b", tests="t").outcomes == {}
    assert Results(path, "other", source="a", tests="t").outcomes == {}


def test_only_the_tests_that_reach_a_statement_meet_its_mutants(tmp_path) -> None:
    (tmp_path / "halved.py").write_text(
        "def half(x):\n    return x / 2\n\n\ndef unused(x):\n    return -x\n\n\n"
        "def both(x, y):\n    return half(x + y)\n"
    )
    (tmp_path / "test_halved.py").write_text(
        "import halved\n\n\ndef test_half():\n    assert halved.half(4) == 2\n\n\n"
        "def test_both():\n    halved.both(1, 2)\n"
    )
    program = (
        "import sys, halved, pytest\n"
        "from pathlib import Path\n"
        "from benchmarks.mutation import Forks, Results\n"
        "results = Results(None, 'halved', '', '')\n"
        "forks = Forks('halved', 60.0, results, print)\n"
        "pytest.main(['-p', 'no:cacheprovider', '-c', '/dev/null', 'test_halved.py'], plugins=[forks])\n"
        "assert forks.problem == '', forks.problem\n"
        "print([sorted(test.lines) for test in forks.reach])\n"
        "print(sorted((o.change, o.result) for o in results.outcomes.values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:."},
        capture_output=True,
        text=True,
        check=True,
    )
    *_, reach, outcomes = done.stdout.splitlines()
    assert ast.literal_eval(reach) == [[1, 2], [1, 2, 9, 10]]
    assert ast.literal_eval(outcomes) == [
        ("-x: operator dropped", "unreached"),
        ("2 → 3", "killed"),
        ("x + y: Add → Sub", "survived"),
        ("x + y: second term dropped", "survived"),
        ("x / 2: Div → Mult", "killed"),
    ]


def test_the_tests_of_every_module_exist() -> None:
    for name, paths in TESTS.items():
        assert importlib.util.find_spec(name) is not None
        assert all((REPOSITORY / path).exists() for path in paths)
