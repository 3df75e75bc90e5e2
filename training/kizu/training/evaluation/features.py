"""Feature extractors for the generator metrics: Inception from a local file, or a network trained on the images.

Notable here:
- Nothing is downloaded, and no weights are ever replaced by random ones: a missing file is an error.
- Only the published file of 2015 may give a figure called FID; anything else in its layout has its digest in the name.
- The net of our own learns without labels from the data set at hand, so that it sees what tells these parts apart,
  of which ImageNet has none.
- Files are read as tensors alone; none can run code.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kizu.errors import UserError
from kizu.files import atomic_file
from kizu.training.data.pool import Progress

INCEPTION = "inception-2015-12-05"
TORCHVISION = "torchvision-inception-v3"
CONTRASTIVE = "kizu-contrastive-v1"
DIMENSIONS = 128
STEPS = 150
# How the SHA-256 of the published files begin; their names say so too.
_PUBLISHED = {INCEPTION: ("6726825d",), TORCHVISION: ("0cc3c7bd", "1a9a5a14")}
_LARGEST_SIDE = 64
_BATCH = 48
_CHUNK = 64
_TEMPERATURE = 0.2
_MAKE_ANOTHER = "Train the extractor again, or give the file that `ContrastiveExtractor.save` wrote."
_INCEPTION_REMEDY = (
    "Give the path of weights-inception-2015-12-05-6726825d.pth (torch-fidelity; pt_inception-… is the same file) or "
    "of torchvision's inception_v3_google-0cc3c7bd.pth, or leave it out to use the built-in extractor."
)


class FeatureExtractor(Protocol):
    """Turns images into features, in evaluation mode and without gradients."""

    @property
    def name(self) -> str:
        """Two extractors with one name give the same features."""

    @property
    def is_inception(self) -> bool:
        """True where a Fréchet distance of these features may be called FID."""

    def __call__(self, images: Tensor) -> Tensor:
        """Uint8 [N, C, H, W] → float32 [N, d] on the CPU; in batches."""


class InceptionExtractor:
    """The pooled 2 048 features of an Inception-v3; grey images are repeated to three channels."""

    def __init__(self, name: str, is_inception: bool, network: nn.Module):
        self.name = name
        self.is_inception = is_inception
        self.network = network

    def to(self, device: torch.device | str) -> InceptionExtractor:
        """Move the network to a device; return the extractor itself."""
        self.network.to(device)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] → features [N, d]."""
        _check(images)
        if images.shape[1] not in (1, 3):
            raise ValueError(f"Inception takes images of 1 or 3 channels, not {images.shape[1]}")
        return _in_chunks(self.network, images.expand(-1, 3, -1, -1))


def load_inception(path: Path) -> InceptionExtractor:
    """Inception-v3 with the weights in `path`: torch-fidelity's of 2015-12-05, or torchvision's.

    Each has its name; where the file is not the published one, the digest is appended to it and it is not FID's.

    Raises:
        UserError: there is no such file, or it is not the weights of either network.
    """
    try:
        content = Path(path).read_bytes()
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read as Inception weights: {error}", _INCEPTION_REMEDY) from error
    classes = weights.get("fc.bias") if isinstance(weights, dict) else None
    try:
        # TensorFlow's network has 1 008 outputs, torchvision's 1 000.
        original = isinstance(classes, Tensor) and len(classes) == 1008
        network = _FidelityInception(weights) if original else _TorchvisionInception(weights)
    except Exception as error:
        raise UserError(f"{path} does not hold the weights of an Inception-v3: {error}", _INCEPTION_REMEDY) from error
    name = INCEPTION if original else TORCHVISION
    digest = hashlib.sha256(content).hexdigest()
    published = digest.startswith(_PUBLISHED[name])
    return InceptionExtractor(name if published else f"{name}+{digest[:8]}", original and published, network)


class _FidelityInception(nn.Module):
    """torch-fidelity's network, which resizes and scales as TensorFlow did."""

    def __init__(self, weights: dict[str, Any]):
        super().__init__()
        from torch_fidelity import FeatureExtractorInceptionV3

        # The library unpickles whatever the file holds; what it gets to read is our own copy of the checked tensors.
        copy = io.BytesIO()
        torch.save(weights, copy)
        copy.seek(0)
        with torch.random.fork_rng(devices=[]):
            self.network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=copy)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images)[0]
        return features


class _TorchvisionInception(nn.Module):
    """torchvision's network on images resized to 299 × 299 and scaled to [−1, 1], as it was trained."""

    def __init__(self, weights: dict[str, Any]):
        super().__init__()
        from torchvision.models import inception_v3

        with torch.random.fork_rng(devices=[]):
            self.network = inception_v3(weights=None, init_weights=False)
        self.network.load_state_dict(weights)
        self.network.fc = nn.Identity()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        scaled = images.float() / 127.5 - 1
        features: Tensor = self.network(F.interpolate(scaled, (299, 299), mode="bilinear", antialias=True))
        return features


class ContrastiveExtractor(nn.Module):
    """A small convolutional network whose 128 features have mean 0 and variance 1 over its training images.

    Args:
        channels: C of the images.
        size: height and width that images are reduced to, at most 64 each.
    """

    name = CONTRASTIVE
    is_inception = False

    def __init__(self, channels: int, size: tuple[int, int]):
        super().__init__()
        self.channels, self.size = channels, size
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, 24, 5, stride=2, padding=2),
            *_block(24, 40),
            *_block(40, 64),
            *_block(64, DIMENSIONS),
            nn.GroupNorm(8, DIMENSIONS),
            nn.ReLU(),
        )
        self.pooled = nn.Linear(2 * DIMENSIONS, DIMENSIONS)
        self.register_buffer("mean", torch.zeros(DIMENSIONS))
        self.register_buffer("scale", torch.ones(DIMENSIONS))

    mean: Tensor
    scale: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Uint8 [N, C, H, W] → float32 [N, 128] on the CPU."""
        _check(images)
        if images.shape[1] != self.channels:
            raise ValueError(f"the extractor was trained on {self.channels} channels, not {images.shape[1]}")
        return _in_chunks(
            lambda batch: (self.represent(self.reduce(batch)) - self.mean) / self.scale, images, self.mean
        )

    def reduce(self, images: Tensor) -> Tensor:
        """Uint8 [N, C, H, W] → [N, C, h, w] in [−1, 1], by area."""
        return F.interpolate(images.float(), self.size, mode="area") / 127.5 - 1

    def represent(self, images: Tensor) -> Tensor:
        """[N, C, h, w] in [−1, 1] → [N, 128], not standardised."""
        maps = self.trunk(images)
        # The mean tells what an image is made of; the maximum keeps a defect that covers a hundredth of it.
        features: Tensor = self.pooled(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
        return features

    def save(self, path: Path) -> None:
        """Write what `load_extractor` reads, whole or not at all."""
        state = {name: value.cpu() for name, value in self.state_dict().items()}
        content = {"format": CONTRASTIVE, "channels": self.channels, "size": list(self.size), "state": state}
        with atomic_file(path) as file:
            torch.save(content, file)


def load_extractor(path: Path) -> ContrastiveExtractor:
    """The extractor that `ContrastiveExtractor.save` wrote, ready to use.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {error}", _MAKE_ANOTHER) from error
    found = saved.get("format") if isinstance(saved, dict) else None
    if found != CONTRASTIVE:
        raise UserError(f"{path} holds no extractor {CONTRASTIVE}, but {found or 'something else'}.", _MAKE_ANOTHER)
    try:
        extractor = _untrained(int(saved["channels"]), (int(saved["size"][0]), int(saved["size"][1])))
        extractor.load_state_dict(saved["state"])
    except Exception as error:
        raise UserError(f"{path} is damaged: {error}", _MAKE_ANOTHER) from error
    return extractor.requires_grad_(False).eval()


def train_extractor(
    images: Tensor, *, seed: int = 0, steps: int = STEPS, progress: Progress | None = None
) -> ContrastiveExtractor:
    """Learn features without labels: two views of an image are to be told from the views of all others.

    Args:
        images: uint8 [M, C, H, W], M ≥ 2; copied to the CPU, where it trains.
        seed: fixes the result, on one machine with one number of threads.
        steps: of at most 48 images each.
        progress: called after each step.

    NT-Xent (Chen et al. 2020, SimCLR, equation 1) with AdamW. The caller's random state stays as it is.
    """
    _check(images)
    if len(images) < 2:
        raise ValueError("one image cannot be told from others")
    generator = torch.Generator().manual_seed(seed % 2**63)
    height, width = images.shape[-2:]
    reduction = max(1.0, max(height, width) / _LARGEST_SIDE)
    extractor = _untrained(images.shape[1], (max(1, round(height / reduction)), max(1, round(width / reduction))))
    with torch.random.fork_rng(devices=[]):
        head = nn.Sequential(nn.ReLU(), nn.Linear(DIMENSIONS, DIMENSIONS), nn.ReLU(), nn.Linear(DIMENSIONS, 64))
    _initialise(extractor, generator)
    _initialise(head, generator)
    pool = torch.cat([extractor.reduce(chunk.cpu()) for chunk in torch.split(images, 256)])
    with torch.enable_grad():
        _contrast(nn.ModuleList([extractor, head]), pool, generator, steps, progress)
    extractor.requires_grad_(False).eval()
    features = _in_chunks(extractor.represent, pool)
    spread = features.std(dim=0)
    extractor.mean.copy_(features.mean(dim=0))
    # A feature that never varies says nothing, and is not to be blown up by dividing by its rounding errors.
    extractor.scale.copy_(torch.where(spread > 1e-5, spread, torch.ones_like(spread)))
    return extractor


def _contrast(
    networks: nn.ModuleList,
    pool: Tensor,
    generator: torch.Generator,
    steps: int,
    progress: Progress | None,
) -> None:
    """Train extractor and projection head on `pool`, [M, C, h, w] in [−1, 1]; the rate falls to 0 by half a cosine."""
    extractor, head = networks
    assert isinstance(extractor, ContrastiveExtractor)
    optimizer = torch.optim.AdamW(networks.parameters(), lr=1e-3, weight_decay=1e-2)
    order = torch.empty(0, dtype=torch.long)
    count = min(_BATCH, len(pool))
    for step in range(steps):
        if len(order) < count:
            order = torch.randperm(len(pool), generator=generator)
        batch, order = pool[order[:count]], order[count:]
        loss = nt_xent(head(extractor.represent(torch.cat([_view(batch, generator), _view(batch, generator)]))))
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        if progress:
            progress(1)


def nt_xent(projections: Tensor) -> Tensor:
    """Normalised, temperature-scaled cross-entropy; [2B, p], where rows i and i + B are views of one image."""
    unit = F.normalize(projections, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    similarity = (unit @ unit.T / _TEMPERATURE).masked_fill(itself, -math.inf)
    return F.cross_entropy(similarity, torch.arange(len(unit), device=unit.device).roll(len(unit) // 2))


def _view(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random view of each image of [N, C, h, w] in [−1, 1]: cropped and shifted, brighter or darker, with noise.

    No flips and no blur: they would teach the features to overlook what a generator gets wrong.
    """
    count = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    zoom = uniform(0.8, 1.0)
    placement = torch.zeros(count, 2, 3)
    placement[:, 0, 0] = placement[:, 1, 1] = zoom
    placement[:, :, 2] = uniform(-1, 1, 2) * (1.08 - zoom)[:, None]
    grid = F.affine_grid(placement, list(images.shape), align_corners=False)
    cut = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    level = cut.mean(dim=(1, 2, 3), keepdim=True)
    cut = (cut - level) * uniform(0.7, 1.3, 1, 1, 1) + level + uniform(-0.25, 0.25, 1, 1, 1)
    return cut + uniform(0, 0.08, 1, 1, 1) * torch.randn(cut.shape, generator=generator)


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.GroupNorm(8, inputs), nn.ReLU(), nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)


def _untrained(channels: int, size: tuple[int, int]) -> ContrastiveExtractor:
    with torch.random.fork_rng(devices=[]):
        return ContrastiveExtractor(channels, size)


def _initialise(module: nn.Module, generator: torch.Generator) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu", generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _in_chunks(network: Callable[[Tensor], Tensor], images: Tensor, like: Tensor | None = None) -> Tensor:
    """`network` over all images, on the device of `like` or of the network's parameters; the result is on the CPU."""
    if like is None and isinstance(network, nn.Module):
        like = next(network.parameters())
    device = torch.device("cpu") if like is None else like.device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        return torch.cat([network(chunk.to(device)).float().cpu() for chunk in torch.split(images, _CHUNK)])


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not len(images):
        raise ValueError(f"expected uint8 [N, C, H, W] with N ≥ 1, not {images.dtype} {tuple(images.shape)}")
