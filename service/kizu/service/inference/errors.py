"""Errors of scoring: images that cannot be scored, and models that cannot score them.

`str()` of each is a sentence for people. The application turns them into HTTP responses.
"""

from __future__ import annotations


class InferenceError(Exception):
    """An image that cannot be scored, at all or now."""


class OverloadedError(InferenceError):
    """No room for one more image."""


class DeadlineExceededError(InferenceError):
    """A score that would come after its deadline."""

    def __init__(self) -> None:
        super().__init__("The image could not be scored in time.")


class ScoringFailedError(InferenceError):
    """An image on which the model fails."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__(f"The model failed on an image of shape {shape}.")
        self.shape = shape


class NoChampionError(InferenceError):
    """A recipe of which no model has been promoted."""

    def __init__(self, recipe: str):
        super().__init__(f"Recipe {recipe} has no champion.")
        self.recipe = recipe


class ModelUnusableError(InferenceError):
    """A registered model whose bundle is missing, damaged or not the one that was added."""

    def __init__(self, model_id: str, reason: str):
        super().__init__(f"Model {model_id} cannot be used: {reason}")
        self.model_id = model_id
        self.reason = reason


class EmptyImageError(InferenceError):
    """An image file of no bytes."""

    def __init__(self) -> None:
        super().__init__("The body holds no image: it is empty.")


class UnsupportedMediaTypeError(InferenceError):
    """A declared type, or a content, that is not one of the supported image formats."""


class MediaTypeMismatchError(InferenceError):
    """Content of another type than declared."""

    def __init__(self, declared: str, found: str):
        super().__init__(f"Declared as {declared}, but the content is {found}.")
        self.declared = declared
        self.found = found


class SeveralPagesError(InferenceError):
    """An image file with more than one page."""

    def __init__(self) -> None:
        super().__init__("The TIFF has several pages, and an inspection scores one image.")


class ImageTooLargeError(InferenceError):
    """An image with more pixels than allowed."""


class ImageTooSmallError(InferenceError):
    """An image smaller than the model's geometry, in pixels."""

    def __init__(self, size: tuple[int, int], smallest: str):
        super().__init__(f"The image is {size[0]}×{size[1]} pixels; the recipe needs at least {smallest}.")
        self.size = size
        """(width, height)"""


class DamagedImageError(InferenceError):
    """An image that is truncated or damaged."""
