"""Filters of synthetic NG: keep those that look most real, or most like a defect.

Notable here:
- The shares of the defect classes stay what they were: each class is filtered by itself.
- Two passes: all are sampled and rated, then the kept ones are sampled again, so that memory does not grow with their
  number.
- The discriminator rates each image by itself: in place of the spread of a group, which it saw beside each image in
  training and which one image does not have, it gets the mean spread of groups that the generator makes.
- The classifier learns from the train split's real views alone; calibration and test take no part.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from kizu.errors import UserError
from kizu.models.bundle import InputGeometry
from kizu.models.stylegan2 import Discriminator
from kizu.training import checkpoint
from kizu.training.data.batches import LabelledBatches, Stratum
from kizu.training.data.synthetic import SyntheticBatch
from kizu.training.detectors.classifier import ClassifierMethod
from kizu.training.detectors.method import DetectorContext
from kizu.training.execution import Execution
from kizu.training.generators import configure
from kizu.training.generators.placing import to_size
from kizu.training.generators.sampling import DefectGenerator, to_unit
from kizu.training.generators.trained import TrainedGenerator
from kizu.training.generators.views import NgViews
from kizu.training.loop import LoopSettings, TrainingLoop
from kizu.training.parallel import Processes
from kizu.training.penalties import spectral_normalised
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection, GeneratorSection

STEPS = 300
"""Training steps of the quick classifier."""
BATCH = 32
CHUNK = 32

SPREAD_SEED = 1 << 30
"""First seed of the images that D's minibatch statistic is measured on; far from those that a run draws."""

Rating = Callable[[SyntheticBatch, list[int]], Tensor]
"""Images and their class numbers → float [N], higher is better."""


def candidates(count: int, keep: float) -> int:
    """Return the number of images to sample in order to keep `count`."""
    return max(count, math.ceil(count / keep - 1e-9))


def kept_seeds(ratings: Tensor, numbers: list[int], wanted: list[int], seed: int) -> list[tuple[int, int]]:
    """Return (seed, class number) of the images kept, in the order of seeds: of each class as many as `wanted` holds.

    Args:
        ratings: [N], of the images with the seeds `seed`, `seed` + 1, …
        numbers: their classes.
        wanted: the classes of the images to keep.
    """
    kept = []
    for number in sorted(set(wanted)):
        own = [index for index, found in enumerate(numbers) if found == number]
        own.sort(key=lambda index: (-float(ratings[index]), index))
        kept += [(seed + index, number) for index in own[: wanted.count(number)]]
    return sorted(kept)


def filtered(
    generator: DefectGenerator,
    rated: DefectGenerator,
    rating: Rating,
    *,
    count: int,
    keep: float,
    seed: int,
    truncation: float = 1.0,
) -> Iterator[SyntheticBatch]:
    """Yield the best `count` of `count` / `keep` images of `generator`.

    Args:
        rated: source of the images that are rated, by the same seeds: the generator itself, or the generator of crops
            whose defects it places.
    """
    numbers = generator.class_numbers(candidates(count, keep))
    ratings = []
    for start in range(0, len(numbers), CHUNK):
        chunk = numbers[start : start + CHUNK]
        batch = rated.sample(range(seed + start, seed + start + len(chunk)), chunk, truncation)
        ratings.append(rating(batch, chunk).float().cpu())
    kept = kept_seeds(torch.cat(ratings), numbers, generator.class_numbers(count), seed)
    for start in range(0, len(kept), CHUNK):
        part = kept[start : start + CHUNK]
        yield generator.sample([s for s, _ in part], [n for _, n in part], truncation)


def discriminator_rating(generator: TrainedGenerator, section: GeneratorSection, folder: Path) -> Rating:
    """Rate by D's logits, from the checkpoint that the generator's training left in `folder`.

    Raises:
        UserError: there is no such checkpoint, or it is of another discriminator.
    """
    remedy = "Train the generator again, or leave generator.filter out."
    state = checkpoint.load(folder)
    if state is None:
        raise UserError(f"{folder} holds no checkpoint, and so no discriminator.", remedy)
    shape = generator.shape
    _, config, _ = configure(section, (shape.height, shape.width), shape.channels, shape.classes)
    network = Discriminator(shape)
    if config.spectral_norm:
        spectral_normalised(network)
    weights = {k.removeprefix("D."): v for k, v in state["networks"].items() if k.startswith("D.")}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{folder} holds another discriminator than this recipe's.", remedy) from error
    device = next(generator.network.parameters()).device
    network.to(device).eval().requires_grad_(False)
    spread = training_spread(network, generator, min(shape.group, config.batch_size))
    network.head.statistic = ConstantSpread(spread)

    @torch.no_grad()
    def rate(batch: SyntheticBatch, numbers: list[int]) -> Tensor:
        classes = torch.tensor(numbers, device=device) if generator.conditional else None
        return cast(Tensor, network(to_unit(batch.images.to(device)), classes))

    return rate


class ConstantSpread(nn.Module):
    """Appends one channel of a constant where training appended the spread of a group, as `MinibatchStd` does."""

    def __init__(self, spread: float):
        super().__init__()
        self.spread = spread

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] → [N, C + 1, h, w]."""
        return torch.cat([x, torch.full_like(x[:, :1], self.spread)], 1)


@torch.no_grad()
def training_spread(network: Discriminator, generator: TrainedGenerator, group: int, groups: int = 16) -> float:
    """Return the mean of D's minibatch statistic over `groups` groups of `group` generated images.

    Images are whole, without truncation and of classes as often as in training, each group of random ones; they are
    those of fixed seeds, so that a rating stays a function of the image.
    """
    numbers = torch.tensor(generator.class_numbers(group * groups))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(0))
    device = next(network.parameters()).device
    found = []
    for index, chunk in enumerate(numbers[order].split(group)):
        first = SPREAD_SEED + index * group
        images = generator.images(range(first, first + group), chunk.tolist())
        features = network.features(to_unit(images.to(device)))[-1]
        found.append(network.head.statistic(features.float())[0, -1, 0, 0])
    return float(torch.stack(found).mean())


def classifier_rating(
    ok: Tensor,
    ng: NgViews,
    geometry: InputGeometry,
    folder: Path,
    execution: Execution,
    *,
    seed: int,
    steps: int | None = None,
) -> Rating:
    """Rate by the logits of a classifier that learns, in `steps` (left out: `STEPS`), to tell OK from NG views.

    Args:
        ok: uint8 [M, C, h, w].
        folder: for its checkpoint; emptied.
    """
    execution.log.say(f"a quick classifier on {len(ok)} OK and {len(ng)} NG views, to filter synthetic NG")
    torch.manual_seed(seed)
    section = DetectorSection(kind="classifier", epochs=1, batch_size=BATCH)
    method = ClassifierMethod(DetectorContext(geometry, section))
    method.networks.to(execution.device)
    batches = _view_batches(ok, ng, seed, steps or STEPS, execution.device)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    alone = Processes()
    alone.rank, alone.world_size = 0, 1  # only the main process samples
    settings = LoopSettings(sample_every=10**9)
    log = RunLog(None, quiet=execution.log.console.quiet)
    TrainingLoop(method, batches, folder, identity="filter", log=log, processes=alone, settings=settings).run()
    method.average.eval()

    @torch.no_grad()
    def rate(batch: SyntheticBatch, numbers: list[int]) -> Tensor:
        del numbers
        images = to_size(batch.images, (geometry.height, geometry.width)).to(execution.device) / 127.5 - 1
        return method.average.pooled(method.average.logits(images))

    return rate


def _view_batches(ok: Tensor, ng: NgViews, seed: int, steps: int, device: torch.device) -> LabelledBatches:
    """Batches half of OK and half of NG views; NG whose defects are not located have no mask."""
    return LabelledBatches(
        torch.cat([ok, ng.images]),
        seed,
        labels=torch.cat([torch.zeros(len(ok)), torch.ones(len(ng))]).long(),
        masks=torch.cat([torch.zeros_like(ng.masks[:1]), ng.masks]),
        mask_of=torch.cat([torch.zeros(len(ok)), torch.where(ng.located, torch.arange(len(ng)) + 1, -1)]).long(),
        weights=torch.ones(len(ok) + len(ng)),
        strata=[
            Stratum(torch.arange(len(ok)), BATCH - BATCH // 2),
            Stratum(torch.arange(len(ng)) + len(ok), BATCH // 2),
        ],
        epoch=steps * BATCH,
        device=device,
    )
