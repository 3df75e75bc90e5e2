"""Mutation tests: change one thing in a module and see whether the module's own tests notice.

Notable here:
- A mutant is a fork of a process that has imported everything and collected the tests, so it costs what its tests take
  and nothing else. Nothing on the disk changes: the fork gives the module's functions the mutant's code, whatever the
  installation is.
- The tests of each target run once without a change first, and once with one that they must notice. The first run
  traces which lines each test reaches: a mutant meets only the tests that reach its statement, the quickest first, up
  to the first that fails.
- Results can be kept in a file, and a later run goes on with what is missing in it.
"""

from __future__ import annotations

import ast
import contextlib
import gc
import hashlib
import importlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Annotated, Any, NamedTuple

import pytest
import typer

from benchmarks import command
from benchmarks.mutants import Mutant, mutants
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


class Outcome(NamedTuple):
    """What the tests made of a mutant."""

    line: int
    change: str
    result: str
    """`killed`, `survived`, `timeout` or `unreached`: killed as well, and survived as no test runs the statement."""


class Reach(NamedTuple):
    """What a test runs of the module, and the seconds that it takes: of the processor, and in all."""

    lines: set[int]
    busy: float
    seconds: float

    def limit(self) -> None:
        """Have the process end itself where the test takes several times as long."""
        signal.setitimer(signal.ITIMER_PROF, 5 + 5 * self.busy)  # does not depend on what else the machine does
        signal.setitimer(signal.ITIMER_REAL, 60 + 10 * self.seconds)


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


class Results:
    """Outcomes of mutants, kept in a file of JSON lines if one is named.

    A kill holds while the module is the same, a survival while its tests are the same as well.
    """

    def __init__(self, path: Path | None, module: str, source: str, tests: str):
        self._path, self._module = path, module
        self._source, self._tests = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (source, tests))
        self.outcomes: dict[int, Outcome] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []:
            entry = json.loads(line)
            if (entry["module"], entry["source"]) == (module, self._source):
                outcome = Outcome(entry["line"], entry["change"], entry["result"])
                self.outcomes.pop(entry["index"], None)
                if outcome.result in ("killed", "timeout") or entry["tests"] == self._tests:
                    self.outcomes[entry["index"]] = outcome

    def add(self, index: int, outcome: Outcome) -> None:
        """Keep the outcome of the mutant with that index in the source."""
        self.outcomes[index] = outcome
        if self._path:
            made = {"module": self._module, "source": self._source, "tests": self._tests, "index": index}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(made | outcome._asdict()) + "\n")


class Tracer:
    """Trace function that collects which lines of a file run, in every thread that starts while it is set."""

    def __init__(self, path: str):
        self.path = path
        self.lines: set[int] = set()

    def __call__(self, frame: FrameType, _event: str, _argument: object) -> Tracer | None:
        """Note the line, and go on inside functions of the file only."""
        if frame.f_code.co_filename != self.path:
            return None
        self.lines.add(frame.f_lineno)
        return self


class Forks:
    """Pytest plugin that runs the collected tests once per mutant, each time in a fork.

    Args:
        name: of the module.
        seconds: after which no further mutant starts. Mutants come in random order, so those tried are a sample.
        results: of earlier runs, which are not repeated.
        say: progress.
    """

    def __init__(self, name: str, seconds: float, results: Results, say: Callable[[str], None]):
        self.name, self.seconds, self.results, self.say = name, seconds, results, say
        self.functions: list[FunctionType] = []
        self.reach: list[Reach] = []
        self.total = 0
        self.problem = "cannot be collected"
        self._shared: Tracer | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        """Give what fixtures run to all tests: one test sets up what others may share."""
        own = sys.gettrace()
        if self._shared is not None:
            _set_trace(self._shared)
        try:
            return (yield)
        finally:
            if self._shared is not None:
                _set_trace(own)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """See the tests green as it is and red with an exception in every function; then the mutants."""
        session.config.pluginmanager.unregister(name="terminalreporter")
        module = sys.modules[self.name]
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        gc.unfreeze()  # the module before froze what is looked through here
        self.functions = functions_of(module)
        gc.freeze()  # so that collecting garbage in a fork copies no memory
        self.reach = self._trace(session, module)
        if len(self.reach) < len(session.items):
            self.problem = "fail as it is"
            return True
        once = sum(test.busy for test in self.reach)
        broken = ast.parse(source)
        for node in ast.walk(broken):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body.insert(0, ast.parse("if True:\n    raise RuntimeError").body[0])
        if self._try(session, module, Mutant(0, "", ast.fix_missing_locations(broken), None)) != "killed":
            self.problem = "do not notice exceptions in it"
            return True
        found = list(enumerate(mutants(source)))
        self.total, self.problem = len(found), ""
        self.say(f"{self.name}: {self.total} mutants, {len(session.items)} tests, {once:.1f} s")
        until = time.monotonic() + self.seconds
        for index, mutant in random.Random(0).sample(found, len(found)):
            if time.monotonic() > until:
                break
            known = self.results.outcomes.get(index)
            if known is None or known[:2] != mutant[:2]:
                outcome = Outcome(mutant.line, mutant.change, self._try(session, module, mutant))
                self.results.add(index, outcome)
                if outcome.result != "killed":
                    self.say(f"{self.name}:{mutant.line} {outcome.result}: {mutant.change}")
        return True

    def _trace(self, session: pytest.Session, module: ModuleType) -> list[Reach]:
        """Run the tests as they are, in a fork; shorter than the tests if one failed."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            with _forked(), os.fdopen(writer, "w") as pipe:
                self._shared = Tracer(str(module.__file__))
                own = []
                for number in range(len(session.items)):
                    tracer, began, busy = Tracer(str(module.__file__)), time.monotonic(), time.process_time()
                    _set_trace(tracer)
                    _run(session.items[number : number + 2])
                    _set_trace(None)
                    own.append(Reach(tracer.lines, time.process_time() - busy, time.monotonic() - began))
                    if session.testsfailed:
                        break
                else:
                    json.dump([(sorted(test.lines | self._shared.lines), *test[1:]) for test in own], pipe)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            traced = pipe.read()
        os.waitpid(child, 0)
        return [Reach(set(lines), *seconds) for lines, *seconds in json.loads(traced or "[]")]

    def _try(self, session: pytest.Session, module: ModuleType, mutant: Mutant) -> str:
        """Run the tests that reach the mutant in a fork: killed, survived, timeout or unreached."""
        tests = zip(self.reach, session.items, strict=True)
        reached = [pair for pair in tests if mutant.lines is None or not pair[0].lines.isdisjoint(mutant.lines)]
        if not reached:
            return "unreached"
        child = os.fork()
        if child == 0:
            with _forked():
                apply(module, self.functions, mutant.tree)
                reached.sort(key=lambda pair: pair[0].busy)
                for number, (test, _) in enumerate(reached):
                    test.limit()
                    _run([item for _, item in reached[number : number + 2]])
                    if session.testsfailed:
                        os._exit(1)
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGPROF):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what the tests started
            return "timeout"
        return "survived" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else "killed"


@contextlib.contextmanager
def _forked() -> Iterator[None]:
    """Keep a fork quiet and in a process group of its own, and end it with the block, as failed if not ended before."""
    try:
        os.setpgrp()
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os._exit(1)


def _run(items: list[pytest.Item]) -> None:
    """Run the first of the items; fixtures that the second shares stay."""
    items[0].config.hook.pytest_runtest_protocol(item=items[0], nextitem=items[1] if len(items) > 1 else None)


def _set_trace(tracer: Any) -> None:
    threading.settrace(tracer)
    sys.settrace(tracer)


def mutation(
    modules: Annotated[list[str] | None, typer.Argument(help="Modules; left out: all that have tests here.")] = None,
    minutes: Annotated[float, typer.Option(help="For each module at most.")] = 60.0,
    results: Annotated[Path | None, typer.Option(help="File that keeps results; a later run goes on with it.")] = None,
) -> None:
    """Change modules in one place at a time and print what their tests did not notice."""
    os.environ["OMP_NUM_THREADS"] = "1"
    say = command.progress()
    for name in modules or list(TESTS):
        if name not in TESTS:
            raise UserError(f"No tests are named for {name}.", f"Choose one of {', '.join(TESTS)}.")
        paths = [REPOSITORY / path for path in TESTS[name]]
        source = Path(str(importlib.import_module(name).__file__)).read_text(encoding="utf-8")
        kept = Results(results, name, source, "".join(path.read_text(encoding="utf-8") for path in paths))
        plugin = Forks(name, 60 * minutes, kept, say)
        options = ["-p", "no:cacheprovider", "-n", "0", "--timeout", "0", "--tb", "no", "-k", SLOW]
        pytest.main([*options, "--rootdir", str(REPOSITORY), *map(str, paths)], plugins=[plugin])
        if plugin.problem:
            raise UserError(f"The tests of {name} {plugin.problem}.", f"Run pytest {' '.join(TESTS[name])}.")
        survived = sum(outcome.result in ("survived", "unreached") for outcome in kept.outcomes.values())
        count = len(kept.outcomes)
        typer.echo(f"| {name} | {count} of {plugin.total} | {count - survived} | {survived} |")


if __name__ == "__main__":
    command.main(command.single_command(mutation))
