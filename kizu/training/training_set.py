"""What a detector that learns from NG trains on: the camera's OK and NG, and the run's synthetic NG.

Notable here:
- Synthetic NG must show what the detector sees: crops of a generator do where it inspects tiles of the same window, and
  whole images where it inspects whole images. Anything else is refused before hours go into a generator.
- They are counted apart, are never held out, and do not lengthen an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kizu.errors import UserError
from kizu.training.data.batches import LabelledBatches, Stratum, apportion
from kizu.training.data.labelled import LabelledImages, hold_out, joined, labelled_images
from kizu.training.data.manifest import NG, Manifest, Row
from kizu.training.data.pool import in_order
from kizu.training.parallel import Processes
from kizu.training.progress import RunLog
from kizu.training.recipe import GeneratorSection, ImageSection, Recipe


class Sampling(Protocol):
    """How often what is shown."""

    @property
    def ng_share(self) -> float: ...
    @property
    def synthetic_weight(self) -> float: ...
    @property
    def synthetic_ratio(self) -> float: ...


@dataclass(frozen=True)
class HeldOut:
    """Images that calibrate scores: as `ClassifierMethod.calibrate` takes them."""

    images: Tensor
    owners: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TrainingSet:
    """Batches to train on, what was held out of them, and how many synthetic NG are in them."""

    batches: LabelledBatches
    held_out: HeldOut | None
    synthetic_ng: int


def training_set(
    manifest: Manifest,
    train: Sequence[Row],
    drawn: Manifest | None,
    recipe: Recipe,
    sampling: Sampling,
    *,
    device: torch.device,
    processes: Processes,
    log: RunLog,
) -> TrainingSet:
    """The labelled rows of `train` and the NG of `drawn`; says in the log what it is made of.

    Raises:
        UserError: there is no NG; or as `labelled_images`.
    """
    use_synthetic = sampling.synthetic_ratio > 0
    rows = [row for row in train if row.label and (use_synthetic or not (row.synthetic and row.label == NG))]
    rows, spared = hold_out(rows, recipe.seed)
    geometry = recipe.image.geometry
    with log.bar("preparing images", len(rows) + len(spared)) as advance:
        images = labelled_images(manifest, rows, geometry, advance)
        held_out = None
        if spared:
            tiles = labelled_images(manifest, spared, geometry, advance)
            held_out = HeldOut(tiles.images, tiles.owners, torch.tensor([int(row.label == NG) for row in spared]))
    if drawn is not None and use_synthetic:
        whole = geometry.model_copy(update={"tile": None, "stride": None})
        with log.bar("preparing synthetic NG", len(drawn)) as advance:
            images = joined(images, labelled_images(drawn, drawn.rows, whole, advance))
    batches = _batches(images, recipe, sampling, manifest, device, processes)
    synthetic = int((images.synthetic & (images.labels == 1)).sum())
    _say(images, batches, recipe, spared, log)
    return TrainingSet(batches, held_out, synthetic)


def check_synthetic_shows_what_is_inspected(
    manifest: Manifest, train: Sequence[Row], section: GeneratorSection, image: ImageSection
) -> None:
    """Refuse a generator whose images show another part of the product than the detector sees.

    Raises:
        UserError: names the keys and the remedy.
    """
    geometry = image.geometry
    size = section.sides or (geometry.height, geometry.width)
    remedy = "Or train without them: detector.options.synthetic_ratio = 0, or no [generator]."
    if size[0] < geometry.height or size[1] < geometry.width or size[0] * geometry.width != size[1] * geometry.height:
        raise UserError(
            f"generator.size: images of {size[1]}×{size[0]} pixels cannot stand for the {geometry.width}×"
            f"{geometry.height} that [image] asks for.",
            f"Leave generator.size out, or give it the shape of image.size, and no fewer pixels. {remedy}",
        )
    crop = section.crop or geometry.tile or max(size)
    if geometry.tile is not None:
        if crop != geometry.tile:
            raise UserError(
                f"generator.crop: windows of {crop} source pixels cannot stand for the tiles of {geometry.tile} that "
                "the detector inspects.",
                f"Leave generator.crop out: it is image.tile then. {remedy}",
            )
        return
    located = [row for row in train if row.label == NG and not row.synthetic and (row.boxes or row.mask)]
    window = size[0] * crop / max(size), size[1] * crop / max(size)
    for row, pixels in zip(located, in_order(manifest.image, located), strict=True):
        height, width = pixels.shape[:2]
        if height > window[0] or width > window[1]:
            raise UserError(
                f"The synthetic NG are crops of {window[1]:.0f}×{window[0]:.0f} source pixels around defects, but the "
                f"detector sees whole images ({manifest.root / row.path} is {width}×{height}).",
                f"Inspect in tiles (image.tile = {crop}), or raise generator.crop to the images' longer side. {remedy}",
            )


def _batches(
    images: LabelledImages,
    recipe: Recipe,
    sampling: Sampling,
    manifest: Manifest,
    device: torch.device,
    processes: Processes,
) -> LabelledBatches:
    clear = images.labels >= 0
    ng = images.labels == 1
    ok, real, synthetic = (
        torch.nonzero(chosen)[:, 0] for chosen in (clear & ~ng, ng & ~images.synthetic, ng & images.synthetic)
    )
    if not len(real) and not len(synthetic):
        raise UserError(
            f"{manifest.root}: the train split has no NG, and '{recipe.detector.kind}' learns from them.",
            "Add NG images, or choose a detector that learns from OK parts alone: ganomaly or fanogan.",
        )
    counts = apportion(
        recipe.detector.batch_size, sampling.ng_share, len(real), len(synthetic), sampling.synthetic_ratio
    )
    strata = [Stratum(members, n) for members, n in zip((ok, real, synthetic), counts, strict=True) if n]
    return LabelledBatches(
        images.images,
        recipe.seed,
        labels=images.labels.clamp(min=0),
        masks=images.masks,
        mask_of=images.mask_of,
        weights=torch.where(images.synthetic, sampling.synthetic_weight, 1.0),
        strata=strata,
        epoch=int((clear & ~images.synthetic).sum()),
        device=device,
        rank=processes.rank,
        world_size=processes.world_size,
    )


def _say(images: LabelledImages, batches: LabelledBatches, recipe: Recipe, spared: Sequence[Row], log: RunLog) -> None:
    ng, synthetic = images.labels == 1, images.synthetic
    counts = [int(chosen.sum()) for chosen in (images.labels == 0, ng & ~synthetic, ng & synthetic)]
    located = int((ng & (images.mask_of > 0)).sum())
    section, what = recipe.detector, "tiles" if recipe.image.tile else "images"
    log.say(
        f"{section.kind} ({section.preset}) on {counts[0]} OK, {counts[1]} NG and {counts[2]} synthetic NG {what} "
        f"({located} NG with their defects located), {batches.device}; a batch of {batches.batch_size} holds "
        + ", ".join(f"{s.per_batch} of {len(s.members)}" for s in batches.strata)
    )
    held = (
        f"{len(spared)} images held out of training to calibrate scores"
        if spared
        else ("too few NG to hold any out: scores are not calibrated")
    )
    log.say(held)
