"""Bundles on the service's disk: read and verified, with words that name no path where others can read them."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kizu.models.bundle import MANIFEST_FILE, Bundle, BundleError
from kizu.service.fields import Name

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle whose recipe can be asked for.

    Raises:
        BundleError: as `Bundle.read`; or `bundle.json` is nested too deeply, or names its recipe in no usable way.
    """
    try:
        bundle = Bundle.read(path)
        name = bundle.manifest.recipe.get("name")
        if _NAME.validate_python(name) == name:
            return bundle
    except RecursionError as error:
        raise BundleError(f"{path / MANIFEST_FILE} is nested too deeply.", "Export the bundle again.") from error
    except ValidationError:
        pass
    problem = f"The recipe that {path / MANIFEST_FILE} names is not one line of 1 to 128 characters."
    raise BundleError(problem, "Name the recipe otherwise, and export the bundle again.")


def without_path(error: BundleError, path: Path) -> BundleError:
    """Return the error of the bundle at `path` with its files named alone, for answers over HTTP."""
    problem = error.problem.replace(f"{path}{os.sep}", "").replace(str(path), "the bundle")
    return BundleError(problem[:1].upper() + problem[1:] if problem.startswith("the bundle") else problem, error.remedy)
