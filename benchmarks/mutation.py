"""Mutation tests: change one thing in a module and see whether the module's own tests notice.

Notable here:
- A mutant is a fork of a process that has imported everything and collected the tests, so it costs what its tests take
  and nothing else. Nothing on the disk changes: the fork gives the module's functions the mutant's code, whatever the
  installation is.
- The operators are those of the field (arithmetic, comparison, constant, condition, argument) and three that fit a
  training step: a statement removed, a term dropped, `mean` and `sum` exchanged.
- The tests of each target run once without a change first, and once with one that they must notice.
"""

from __future__ import annotations

import ast
import copy
import gc
import importlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Annotated, Any, NamedTuple, NoReturn

import pytest
import typer

from benchmarks import command
from kizu.errors import UserError

REPOSITORY = Path(__file__).parents[1]
TESTS = {
    "kizu.models.operating_point": ["tests/models/test_operating_point.py"],
    "kizu.models.rates": ["tests/models/test_rates.py"],
    "kizu.service.inference.batcher": ["tests/service/test_batcher.py"],
    "kizu.training.losses": ["tests/training/test_penalties_and_losses.py", "tests/training/detectors/test_draem.py"],
    "kizu.training.penalties": ["tests/training/test_penalties_and_losses.py"],
    "kizu.training.detectors.ganomaly": ["tests/training/detectors/test_ganomaly.py"],
    "kizu.training.detectors.fanogan": ["tests/training/detectors/test_fanogan.py"],
    "kizu.training.generators.stylegan2_ada": [
        "tests/training/generators/test_stylegan2_ada_losses.py",
        "tests/training/generators/test_stylegan2_ada.py",
    ],
    "kizu.service.quality.bounds": ["tests/service/test_estimates.py"],
    "kizu.service.quality.estimates": ["tests/service/test_estimates.py"],
}
"""Module → the tests that belong to it, the quickest first."""
SLOW = "not separates and not resumed and not leak and not learns"
"""Tests that train for seconds protect the whole; what a mutant changes, others are to notice."""

SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult},
    **{ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
}
EXCHANGED = {"mean": "sum", "sum": "mean", "min": "max", "max": "min", "ceil": "floor", "floor": "ceil"}


class Mutant(NamedTuple):
    """A changed module."""

    line: int
    change: str
    tree: ast.Module


class Outcome(NamedTuple):
    """What the tests made of a mutant."""

    line: int
    change: str
    result: str
    """`killed`, `survived` or `timeout`; the last counts as killed."""


def mutants(source: str) -> Iterator[Mutant]:
    """Change one place in the source, each in its turn from the top down."""
    tree = ast.parse(source)
    ignored = _ignored(tree)
    found: list[tuple[int, int, str, str, Any]] = []
    for index, node in enumerate(ast.walk(tree)):
        if id(node) not in ignored:
            found += [(getattr(node, "lineno", 0), index, *edit) for edit in _edits(node)]
    for line, index, change, field, value in sorted(found, key=lambda entry: entry[:2]):
        changed = copy.deepcopy(tree)
        node = next(n for i, n in enumerate(ast.walk(changed)) if i == index)
        if field == "":
            _replace(changed, node, value(node))
        else:
            setattr(node, field, value(node))
        yield Mutant(line, change, ast.fix_missing_locations(changed))


def _ignored(tree: ast.Module) -> set[int]:
    """Nodes to leave alone: annotations, docstrings, messages and decorators; fields of classes, see `apply`."""
    roots: list[ast.AST | None] = []
    for node in ast.walk(tree):
        roots += [getattr(node, name, None) for name in ("annotation", "returns")]
        roots += getattr(node, "decorator_list", [])
        if isinstance(node, ast.ClassDef):
            roots += [inner for inner in node.body if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)]
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            roots.append(node)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("logger.", "ClassVar", "cast")):
            roots.append(node)
        if isinstance(node, ast.Raise) and node.exc is not None:
            roots.append(node.exc)
    return {id(inner) for root in roots if root is not None for inner in ast.walk(root)}


def _edits(node: ast.AST) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """(description, field that changes or "" for the node itself, node → new value)."""
    match node:
        case ast.BinOp() if type(node.op) in SWAPPED:
            operation = SWAPPED[type(node.op)]
            yield f"{ast.unparse(node)}: {type(node.op).__name__} → {operation.__name__}", "op", lambda _: operation()
            if isinstance(node.op, ast.Add | ast.Sub):
                yield f"{ast.unparse(node)}: second term dropped", "", lambda n: n.left
        case ast.Compare() if type(node.ops[0]) in SWAPPED:
            comparison = SWAPPED[type(node.ops[0])]
            yield f"{ast.unparse(node)}: → {comparison.__name__}", "ops", lambda n: [comparison(), *n.ops[1:]]
        case ast.BoolOp():
            joined = SWAPPED[type(node.op)]
            yield f"{ast.unparse(node)}: → {joined.__name__}", "op", lambda _: joined()
        case ast.UnaryOp():
            yield f"{ast.unparse(node)}: operator dropped", "", lambda n: n.operand
        case ast.If() | ast.IfExp():
            yield (
                f"if {ast.unparse(node.test)}: negated",
                "test",
                lambda n: ast.UnaryOp(ast.Not(), n.test),
            )
        case ast.Constant() if isinstance(node.value, bool):
            yield f"{node.value}: flipped", "value", lambda n: not n.value
        case ast.Constant() if isinstance(node.value, int | float):
            changed = node.value + 1 if isinstance(node.value, int) else (2 * node.value or 1.0)
            yield f"{node.value} → {changed}", "value", lambda _: changed
        case ast.Attribute() if node.attr in EXCHANGED:
            yield f"{ast.unparse(node)} → {EXCHANGED[node.attr]}", "attr", lambda n: EXCHANGED[n.attr]
        case ast.Call():
            yield from _edits_of_call(node)
        case ast.Expr() | ast.AugAssign() | ast.Raise():
            yield f"{ast.unparse(node).splitlines()[0]}: removed", "", lambda _: ast.Pass()
        case ast.Assign() if not isinstance(node.targets[0], ast.Name | ast.Tuple):
            yield f"{ast.unparse(node).splitlines()[0]}: removed", "", lambda _: ast.Pass()


def _edits_of_call(node: ast.Call) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    shown = ast.unparse(node)[:80]
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("detach", "abs", "sqrt", "square", "clamp"):
        yield f"{shown}: {node.func.attr} dropped", "", lambda n: n.func.value
    for i, keyword in enumerate(node.keywords):
        yield f"{shown}: argument {keyword.arg} dropped", "keywords", _without(i)


def _without(index: int) -> Callable[[Any], Any]:
    return lambda call: call.keywords[:index] + call.keywords[index + 1 :]


def _replace(tree: ast.Module, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
            elif isinstance(value, list) and any(item is old for item in value):
                setattr(parent, name, [new if item is old else item for item in value])


def functions_of(module: ModuleType) -> list[FunctionType]:
    """Functions that were made from the module's file, whoever holds them."""
    return [f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename == module.__file__]


def apply(module: ModuleType, functions: list[FunctionType], tree: ast.Module) -> None:
    """Give the functions that were made from the module's file the code that they have in the tree.

    Whoever holds one runs the mutant then, however it was imported. Numbers at module level and defaults of arguments
    follow; fields of classes do not, and `mutants` leaves them out.
    """
    path = str(module.__file__)
    program = compile(tree, path, "exec", dont_inherit=True)
    codes = {(code.co_qualname, code.co_firstlineno): code for code in _inside(program)}
    fresh: dict[str, Any] = {"__name__": module.__name__, "__file__": path}
    exec(program, fresh)
    classes = [value for value in fresh.values() if isinstance(value, type) and value.__module__ == module.__name__]
    values = [*fresh.values(), *(value for cls in classes for value in vars(cls).values())]
    made = {_key(f): f for f in values if type(f) is FunctionType}
    for name, value in fresh.items():
        if isinstance(value, int | float) and name in vars(module):
            setattr(module, name, value)
    for function in functions:
        if (code := codes.get(_key(function))) is not None:
            function.__code__ = code
        if (twin := made.get(_key(function))) is not None:
            function.__defaults__, function.__kwdefaults__ = twin.__defaults__, twin.__kwdefaults__


def _key(function: FunctionType) -> tuple[str, int]:
    return function.__code__.co_qualname, function.__code__.co_firstlineno


def _inside(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _inside(constant)


class Forks:
    """Pytest plugin that runs the collected tests once per mutant, each time in a fork.

    Args:
        name: of the module.
        seconds: after which no further mutant starts. Mutants come in random order, so those tried are a sample.
        say: progress.
    """

    def __init__(self, name: str, seconds: float, say: Callable[[str], None]):
        self.name, self.seconds, self.say = name, seconds, say
        self.functions: list[FunctionType] = []
        self.outcomes: list[Outcome] = []
        self.total = 0
        self.problem = "cannot be collected"

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """See the tests green as it is and red with an exception in every function; then the mutants."""
        session.config.pluginmanager.unregister(name="terminalreporter")
        module = sys.modules[self.name]
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        gc.unfreeze()  # the module before froze what is looked through here
        self.functions = functions_of(module)
        gc.freeze()  # so that collecting garbage in a fork copies no memory
        began = time.monotonic()
        if self._fork(session, module, ast.parse(source), 600) != "survived":
            self.problem = "fail as it is"
            return True
        once = time.monotonic() - began
        broken = ast.parse(source)
        for node in ast.walk(broken):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body.insert(0, ast.parse("if True:\n    raise RuntimeError").body[0])
        if self._fork(session, module, ast.fix_missing_locations(broken), 600) != "killed":
            self.problem = "do not notice exceptions in it"
            return True
        found = list(mutants(source))
        self.total, self.problem = len(found), ""
        self.say(f"{self.name}: {self.total} mutants, {len(session.items)} tests, {once:.1f} s")
        until = began + self.seconds
        for mutant in random.Random(0).sample(found, len(found)):
            if time.monotonic() > until:
                break
            result = self._fork(session, module, mutant.tree, 10 + 5 * once)
            self.outcomes.append(Outcome(mutant.line, mutant.change, result))
            if result != "killed":
                self.say(f"{self.name}:{mutant.line} {result}: {mutant.change}")
        return True

    def _fork(self, session: pytest.Session, module: ModuleType, tree: ast.Module, limit: float) -> str:
        child = os.fork()
        if child == 0:
            self._run(session, module, tree)
        until = time.monotonic() + limit
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return "survived" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else "killed"
            time.sleep(0.01)
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "timeout"

    def _run(self, session: pytest.Session, module: ModuleType, tree: ast.Module) -> NoReturn:
        code = 1
        try:
            os.setpgrp()
            with Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
            apply(module, self.functions, tree)
            for number, item in enumerate(session.items):
                following = session.items[number + 1] if number + 1 < len(session.items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    break
            code = int(session.testsfailed > 0)
        finally:
            os._exit(code)


def mutation(
    modules: Annotated[list[str] | None, typer.Argument(help="Modules; left out: all that have tests here.")] = None,
    minutes: Annotated[float, typer.Option(help="For each module at most.")] = 60.0,
) -> None:
    """Change modules in one place at a time and print what their tests did not notice."""
    os.environ["OMP_NUM_THREADS"] = "1"
    say = command.progress()
    for name in modules or list(TESTS):
        if name not in TESTS:
            raise UserError(f"No tests are named for {name}.", f"Choose one of {', '.join(TESTS)}.")
        importlib.import_module(name)
        plugin = Forks(name, 60 * minutes, say)
        options = ["-p", "no:cacheprovider", "-n", "0", "--timeout", "0", "-k", SLOW]
        paths = [str(REPOSITORY / path) for path in TESTS[name]]
        pytest.main([*options, "--rootdir", str(REPOSITORY), *paths], plugins=[plugin])
        if plugin.problem:
            raise UserError(f"The tests of {name} {plugin.problem}.", f"Run pytest {' '.join(TESTS[name])}.")
        survived = sum(outcome.result == "survived" for outcome in plugin.outcomes)
        count = len(plugin.outcomes)
        typer.echo(f"| {name} | {count} of {plugin.total} | {count - survived} | {survived} |")


if __name__ == "__main__":
    command.main(command.single_command(mutation))
