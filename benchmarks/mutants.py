"""Mutants of a module: its source with one place changed.

Notable here:
- The operators are those of the field (arithmetic, comparison, constant, condition, argument) and three that fit a
  training step: a statement removed, a term dropped, `mean` and `sum` exchanged.
- A mutant names the lines of its statement, so that only tests that reach them need to meet it.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
    lines: range | None
    """Of the statement, without those of statements inside it; None outside functions, which every test depends on."""


def mutants(source: str) -> Iterator[Mutant]:
    """Change one place in the source, each in its turn from the top down."""
    tree = ast.parse(source)
    ignored, statements = _ignored(tree), _statements(tree)
    found: list[tuple[int, int, str, str, Any]] = []
    for index, node in enumerate(ast.walk(tree)):
        if id(node) not in ignored:
            found += [(getattr(node, "lineno", 0), index, *edit) for edit in _edits(node)]
    for line, index, change, field, value in sorted(found, key=lambda entry: entry[:2]):
        lines = statements.get(id(next(n for i, n in enumerate(ast.walk(tree)) if i == index)))
        changed = copy.deepcopy(tree)
        node = next(n for i, n in enumerate(ast.walk(changed)) if i == index)
        if field == "":
            _replace(changed, node, value(node))
        else:
            setattr(node, field, value(node))
        yield Mutant(line, change, ast.fix_missing_locations(changed), lines)


def _statements(tree: ast.Module) -> dict[int, range]:
    """Node inside a function → lines of the innermost statement around it; inner ones come later and replace outer."""
    lines: dict[int, range] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in (inner for statement in function.body for inner in ast.walk(statement)):
                if isinstance(node, ast.stmt):
                    body = getattr(node, "body", None)
                    last = body[0].lineno - 1 if body else node.end_lineno or 0
                    own = range(node.lineno, max(last, node.lineno) + 1)
                    lines |= {id(inner): own for inner in ast.walk(node)}
    return lines


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
