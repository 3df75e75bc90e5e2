"""Errors of the registry; the CLI prints them, the application turns them into HTTP responses."""

from __future__ import annotations

from kizu.errors import UserError


class UnknownRecipeError(UserError):
    """A recipe for which no model was ever added."""

    def __init__(self, name: str):
        super().__init__(f"There is no recipe {name}.", "Add a model for it: kizu models add BUNDLE.")


class UnknownModelError(UserError):
    """An id that no model has."""

    def __init__(self, model_id: str):
        super().__init__(f"There is no model {model_id}.", "List them with kizu models list.")


class ModelRetiredError(UserError):
    """A retired model that cannot be promoted."""

    def __init__(self, name: str):
        super().__init__(f"{name} is retired.", "Add its bundle again to bring it back.")


class ModelIsChampionError(UserError):
    """A champion that cannot be retired."""

    def __init__(self, name: str, recipe: str):
        super().__init__(f"{name} is the champion of {recipe}.", "Promote another version first.")


class NothingToRollBackToError(UserError):
    """A recipe without an earlier champion in use."""

    def __init__(self, recipe: str):
        super().__init__(f"No earlier champion of {recipe} is left.")


class BadArchiveError(UserError):
    """A ZIP that is not a bundle."""

    def __init__(self, reason: str):
        super().__init__(f"The archive is refused: {reason}.", "Send a ZIP of the files of a bundle's folder.")


class ArchiveTooLargeError(UserError):
    """A ZIP with more content than allowed."""

    def __init__(self) -> None:
        super().__init__("The bundle is larger than allowed once extracted.")
