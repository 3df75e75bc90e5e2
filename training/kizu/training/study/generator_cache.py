"""Generators that arms of one seed share: trained by the first arm that needs one, copied by the others.

Notable here:
- A copy appears whole or not at all, and `train_run` takes it only if it is the very generator that it would train.
- Each arm counts what training its generator took, whichever arm trained it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from kizu.training.run import GENERATOR_FOLDER
from kizu.training.study.arms import Arm
from kizu.training.study.recipes import generator_changes

COST_FILE = "seconds.json"


def generator_key(arm: Arm) -> str | None:
    """Key that arms of a seed have in common if they need the same generator; None without one that is trained."""
    if not arm.trains_gan:
        return None
    changes = generator_changes(arm)
    decisive = json.dumps([arm.base.key, *(changes.get(name) for name in ("kimg", "conditional", "crop"))])
    return hashlib.sha256(decisive.encode()).hexdigest()[:12]


def reuse_generator(cached: Path, run_dir: Path) -> None:
    """Copy a cached generator into a run that has none yet."""
    if cached.exists() and not (run_dir / GENERATOR_FOLDER).exists():
        _copy(cached, run_dir / GENERATOR_FOLDER)


def store_generator(run_dir: Path, cached: Path) -> None:
    """Copy a run's generator into the cache, unless one is there."""
    if not cached.exists():
        _copy(run_dir / GENERATOR_FOLDER, cached)


def add_generator_cost(
    run_dir: Path, seconds: MutableMapping[str, float], spent: Mapping[str, float], *, complete: bool
) -> bool:
    """Add the seconds of training the generator: to each arm that uses it, whichever arm trained it.

    Args:
        seconds: of this training; `generator` is set, and `total` raised where another arm trained the generator.
        spent: by the stages of this training.
        complete: it was not interrupted.

    Returns:
        True if all of the generator's training was counted.
    """
    path = run_dir / GENERATOR_FOLDER / COST_FILE
    if path.exists():
        cost = json.loads(path.read_text(encoding="utf-8"))
        seconds["total"] += cost["seconds"]
    else:
        took = sum(took for stage, took in spent.items() if stage.startswith(f"{GENERATOR_FOLDER}/"))
        cost = {"seconds": took, "complete": complete}
        path.write_text(json.dumps(cost), encoding="utf-8")
    seconds["generator"] = cost["seconds"]
    return bool(cost["complete"])


def _copy(source: Path, destination: Path) -> None:
    """Copy a folder so that it appears whole or not at all."""
    temporary = destination.with_name(destination.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, temporary)
    temporary.rename(destination)
