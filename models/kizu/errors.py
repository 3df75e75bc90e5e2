"""The one error that users are meant to read: what is wrong, where, and what to do about it; and several as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SHOWN = 10
"""Lines of a long list that people are shown."""


class UserError(Exception):
    """A fault in what the user gave, with its remedy. The CLI prints it without a traceback and exits with 2.

    Args:
        problem: what is wrong, and where.
        remedy: what to do about it.
        details: one line for each thing at fault, where there may be many; all of them, however long the list.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str | None = None, details: Sequence[str] = ()):
        super().__init__("\n".join([problem, *shortened(details), *([] if remedy is None else [remedy])]))
        self.problem = problem
        self.remedy = remedy
        self.details = tuple(details)


class DivergedError(UserError):
    """Training produced NaN or collapsed; exits with 3, so that a scheduler can tell it from a bad recipe."""

    exit_code = 3


class Faults:
    """Collects the errors of checks that do not depend on each other, so that all are told at once."""

    def __init__(self) -> None:
        self._found: list[UserError] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep a UserError of the block for `tell`."""
        try:
            yield
        except UserError as fault:
            self._found.append(fault)

    def tell(self) -> None:
        """Raise what was kept: the one error, or one that says all of them."""
        if len(self._found) == 1:
            raise self._found[0]
        if self._found:
            # Two sections alike have one fault.
            problems = dict.fromkeys(fault.problem for fault in self._found)
            remedies = dict.fromkeys(fault.remedy for fault in self._found if fault.remedy)
            details = [line for fault in self._found for line in fault.details]
            raise UserError("\n".join(problems), "\n".join(remedies) or None, details)


def shortened(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list, and how many more there are."""
    if len(lines) <= SHOWN:
        return list(lines)
    return [*lines[:SHOWN], f"… and {len(lines) - SHOWN} more (--json lists all)"]
