"""Operations on models: add, promote, roll back, retire; the API and the CLI both use them.

Notable here:
- A bundle is verified and made to score, then copied and the copy verified, and only then does a row name it: what is
  in the registry can be served.
- Promotions are a history that is only added to. Rolling back walks it like a stack, so two rollbacks in a row go
  back two champions.
"""

from __future__ import annotations

import shutil
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from kizu import files
from kizu.errors import UserError
from kizu.models.bundle import BUNDLE_FILES, Bundle, BundleError, Device
from kizu.service.registry import repository
from kizu.service.registry.bundle_files import read_bundle
from kizu.service.registry.errors import (
    ModelIsChampionError,
    ModelRetiredError,
    NothingToRollBackToError,
    UnknownModelError,
    UnknownRecipeError,
)
from kizu.service.registry.tables import Model, RegisteredRecipe
from kizu.service.storage.database import Database

TEMPORARY = ".adding-"
_STALE_AFTER_S = 3600


def add(database: Database, folder: Path, source: Path, device: Device = "auto") -> tuple[Model, bool]:
    """Register the bundle at `source`; return (model, whether it is new).

    Adding a bundle that is registered already gives that model; it repairs its files and ends its retirement.

    Args:
        folder: where registered bundles are kept.

    Raises:
        BundleError: the bundle is incomplete, corrupt or tampered with, or does not score as it must.
    """
    bundle = read_bundle(source)
    check_scoring(bundle, device)
    model_id = bundle.fingerprint[:16]
    _copy(bundle, folder, model_id)
    recipe_name = bundle.manifest.recipe_name
    with database.writing() as session:
        repository.ensure_recipe(session, recipe_name)
        known = repository.model_with_fingerprint(session, bundle.fingerprint)
        if known is not None:
            known.retired_at = None
            return known, False
        manifest = bundle.manifest.model_dump(mode="json")
        added = repository.add_model(
            session, model_id=model_id, recipe=recipe_name, fingerprint=bundle.fingerprint, manifest=manifest
        )
        return added, True


def promote(database: Database, model_id: str) -> Model:
    """Make a model the champion of its recipe; nothing happens if it is.

    Raises:
        UnknownModelError: no model has this id.
        ModelRetiredError: the model is out of use.
    """
    with database.writing() as session:
        model, recipe = _lock_model(session, model_id)
        if model.retired_at is not None:
            raise ModelRetiredError(model.name)
        if recipe.champion_id != model.id:
            repository.set_champion(session, recipe, model.id, "promote")
        return model


def rollback(database: Database, recipe_name: str) -> Model:
    """Make the previous champion champion again.

    Raises:
        UnknownRecipeError: no model was ever added for the recipe.
        NothingToRollBackToError: there is no earlier champion that is still in use.
    """
    with database.writing() as session:
        recipe = repository.lock_recipe(session, recipe_name)
        if recipe is None:
            raise UnknownRecipeError(recipe_name)
        stack: list[str] = []
        for promotion in repository.promotions(session, recipe_name):
            if promotion.action == "promote":
                stack.append(promotion.model_id)
            else:
                del stack[len(stack) - 1 - stack[::-1].index(promotion.model_id) + 1 :]
        for candidate in reversed(stack[:-1]):
            model = repository.model(session, candidate)
            if model is not None and model.retired_at is None and candidate != recipe.champion_id:
                repository.set_champion(session, recipe, candidate, "rollback")
                return model
        raise NothingToRollBackToError(recipe_name)


def retire(database: Database, model_id: str) -> Model:
    """Take a model out of use.

    Raises:
        UnknownModelError: no model has this id.
        ModelIsChampionError: the model decides; it must be replaced first.
    """
    with database.writing() as session:
        model, recipe = _lock_model(session, model_id)
        if recipe.champion_id == model.id:
            raise ModelIsChampionError(model.name, recipe.name)
        model.retired_at = model.retired_at or datetime.now(UTC)
        return model


def status_of(model: Model, champion_id: str | None) -> str:
    """Return `champion`, `challenger` or `retired`."""
    if model.id == champion_id:
        return "champion"
    return "challenger" if model.retired_at is None else "retired"


def check_scoring(bundle: Bundle, device: Device = "auto") -> None:
    """Score two random images in grey and in colour; raises BundleError if the outputs have the wrong shape."""
    geometry = bundle.manifest.geometry
    remedy = "Export the bundle again with this version of Kizu."
    rng = np.random.default_rng(0)
    try:
        session = bundle.open(device)
        for channels in (1, 3):
            shape = (2, geometry.min_height, geometry.min_width, channels)
            score, heatmap = session.score(rng.integers(0, 256, shape, dtype=np.uint8))
            if score.shape != (2,) or heatmap.ndim != 3 or len(heatmap) != 2:
                found = f"score{list(score.shape)} and heatmap{list(heatmap.shape)}"
                raise BundleError(
                    f"{bundle.path} answers two images with {found}, not score[2], heatmap[2, h, w].", remedy
                )
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common base but this
        raise BundleError(f"{bundle.path} cannot score an image: {error}", remedy) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed `add` left behind, once it is too old to belong to a running one."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if time.time() - leftover.stat().st_mtime > _STALE_AFTER_S:
            shutil.rmtree(leftover, ignore_errors=True)


def _lock_model(session: Session, model_id: str) -> tuple[Model, RegisteredRecipe]:
    locked = repository.lock_model(session, model_id)
    if locked is None:
        raise UnknownModelError(model_id)
    return locked


def _copy(bundle: Bundle, folder: Path, model_id: str) -> None:
    destination = folder / model_id
    if _is_intact(destination, bundle.fingerprint):
        return
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir(parents=True)
    try:
        for name in BUNDLE_FILES:
            if (bundle.path / name).is_file():
                _copy_durably(bundle.path / name, temporary / name)
        if not _is_intact(temporary, bundle.fingerprint):
            raise BundleError(f"{bundle.path} changed while it was copied.", "Add it again.")
        if destination.exists():
            destination.rename(folder / f"{TEMPORARY}{uuid.uuid4().hex}")
        temporary.rename(destination)
    except OSError:
        # Another process may have put the same bundle there at the same moment.
        if not _is_intact(destination, bundle.fingerprint):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files.sync_folder(folder)


def _is_intact(path: Path, fingerprint: str) -> bool:
    try:
        return read_bundle(path).fingerprint == fingerprint
    except BundleError:
        return False


def _copy_durably(source: Path, destination: Path) -> None:
    with source.open("rb") as reader, files.atomic_file(destination) as writer:
        shutil.copyfileobj(reader, writer)
