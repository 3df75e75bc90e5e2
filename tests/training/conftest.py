"""A small run of the whole pipeline, shared by the tests that look at what it leaves behind."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kizu.models.bundle import Bundle
from kizu.training.data.manifest import Manifest
from kizu.training.data.render import render_boards
from kizu.training.pipeline import train

RECIPE = """\
name = "small-boards"
dataset = "boards"
target_fnr = 0.10

[image]
size = 32
channels = 1

[detector]
kind = "ganomaly"
epochs = 50
batch_size = 16

[detector.options]
features = 16
score = "peak"
"""

CLASSIFIER = """\
name = "few-ng"
dataset = "{dataset}"
target_fnr = 0.10

[image]
size = 32
channels = 1

[detector]
kind = "classifier"
epochs = 2

[detector.options]
features = 4
"""

GENERATOR = """
[generator]
kind = "stylegan2-ada"
preset = "demo"
kimg = 0.1
count = 20
batch_size = 8
measurements = 0

[generator.options]
capacity = 64
latent = 8
"""


def train_bundle(recipe: Path, folder: Path, *, resume: bool = False, quiet: bool = True) -> Bundle:
    """Train in this process, the only one, which therefore gets the bundle."""
    bundle = train(recipe, folder, resume=resume, quiet=quiet)
    assert bundle is not None
    return bundle


@dataclass(frozen=True)
class SmallRun:
    folder: Path
    recipe: Path
    dataset: Path
    manifest: Manifest
    bundle: Bundle


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> SmallRun:
    root = tmp_path_factory.mktemp("pipeline")
    manifest = render_boards(root / "boards", boards=20, count_ok=300, count_ng=140, size=32, channels=1)
    recipe = root / "recipe.toml"
    recipe.write_text(RECIPE)
    bundle = train_bundle(recipe, root / "run")
    return SmallRun(root / "run", recipe, root / "boards", manifest, bundle)
