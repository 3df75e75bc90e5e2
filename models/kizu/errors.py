"""The one error that users are meant to read: what is wrong, where, and what to do about it."""


class UserError(Exception):
    """A fault in what the user gave, with its remedy. The CLI prints it without a traceback and exits with 2."""

    exit_code = 2

    def __init__(self, problem: str, remedy: str | None = None):
        super().__init__(problem if remedy is None else f"{problem}\n{remedy}")
        self.problem = problem
        self.remedy = remedy


class DivergedError(UserError):
    """Training produced NaN or collapsed; exits with 3, so that a scheduler can tell it from a bad recipe."""

    exit_code = 3
