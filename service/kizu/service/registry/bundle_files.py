"""Bundles on the service's disk: read and verified, with words that name no path where others can read them."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from kizu.models.bundle import BUNDLE_FILES, MANIFEST_FILE, Bundle, BundleError
from kizu.service.fields import Name

FileStates = dict[str, tuple[int, int, int, int]]
"""File's name → (inode, size in bytes, times of the last change of its content and of its inode in nanoseconds)."""

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


def file_states(path: Path) -> FileStates | None:
    """Return the states of a bundle's files, to see that none was touched; None if there is no bundle, or no answer."""
    states: FileStates = {}
    try:
        for name in BUNDLE_FILES:
            if (path / name).exists():
                found = (path / name).stat()
                states[name] = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    except OSError:
        return None
    return states or None


def without_path(error: BundleError, path: Path) -> BundleError:
    """Return the error of the bundle at `path` with its files named alone, for answers over HTTP."""
    problem = error.problem.replace(f"{path}{os.sep}", "").replace(str(path), "the bundle")
    return BundleError(problem[:1].upper() + problem[1:] if problem.startswith("the bundle") else problem, error.remedy)
