"""The one error that users are meant to read: what is wrong, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

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


def shortened(lines: Sequence[str]) -> list[str]:
    """Return the first lines of a list, and how many more there are."""
    if len(lines) <= SHOWN:
        return list(lines)
    return [*lines[:SHOWN], f"… and {len(lines) - SHOWN} more (--json lists all)"]
