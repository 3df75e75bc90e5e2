"""Training set of a detector: the camera's OK alone, or its OK and NG with the run's synthetic NG.

Notable here:
- Synthetic NG must show what the detector sees: crops of a generator do where it inspects tiles of the same window, and
  whole images where it inspects whole images. Anything else is refused before hours go into a generator.
- They are counted apart, are never held out, and do not lengthen an epoch.
- Unlabelled images come only to those who can use them, as a stratum of their own, and never from a board on which
  scores are calibrated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from kizu.errors import UserError
from kizu.training.data.batches import Batches, LabelledBatches, Stratum, apportion
from kizu.training.data.labelled import UNKNOWN, LabelledImages, defect_classes, hold_out, joined, labelled_images
from kizu.training.data.loading import training_tensor
from kizu.training.data.manifest import NG, OK, UNLABELLED, Manifest, Row
from kizu.training.data.pool import in_order
from kizu.training.execution import Execution
from kizu.training.progress import RunLog
from kizu.training.recipe import DetectorSection, GeneratorSection, ImageSection
from kizu.training.run import Run


class Sampling(Protocol):
    """Shares of OK, NG, synthetic NG and unlabelled images in a batch."""

    @property
    def ng_share(self) -> float:
        """Share of NG in a batch, of its labelled images."""
        ...

    @property
    def synthetic_weight(self) -> float:
        """Weight of a synthetic image in the loss."""
        ...

    @property
    def synthetic_ratio(self) -> float:
        """Synthetic NG per real one in a batch, at most."""
        ...

    @property
    def synthetic_is_ng(self) -> bool:
        """Synthetic NG count among the NG's share of a batch."""
        ...

    @property
    def needs_ng(self) -> bool:
        """It cannot learn from OK alone."""
        ...

    @property
    def unlabelled_share(self) -> float:
        """Share of a batch, for detectors that use unlabelled images, where there are any."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """Images that calibrate scores."""

    images: Tensor
    """All tiles: pixels from 0 to 255, uint8 or float32 [M, C, h, w]."""
    owners: Tensor
    """Index of the image that each tile is of, int64 [M]."""
    labels: Tensor
    """Label of each image, 0 or 1, int64 [K]."""


@dataclass(frozen=True)
class TrainingSet:
    """Batches to train on, what was held out of them, and how many synthetic NG are in them."""

    batches: Batches
    held_out: HeldOut | None = None
    synthetic_ng: int = 0


def ok_set(
    run: Run,
    section: DetectorSection,
    seed: int,
    execution: Execution,
    *,
    unlabelled: bool,
) -> TrainingSet:
    """Load the train split's OK images and, on demand, its unlabelled ones, labelled `UNKNOWN`; `seed` orders them."""
    log, device, processes = execution.log, execution.device, execution.processes
    rows = [row for row in run.training if row.label == OK]
    others = [row for row in run.training if unlabelled and row.label == UNLABELLED]
    geometry = run.recipe.image.geometry
    log.say(
        f"{section.kind} ({section.preset}) on {len(rows)} images"
        + (f" and {len(others)} unlabelled ones" if others else "")
        + f", {device}"
    )
    with log.bar("preparing images", len(rows) + len(others)) as advance:
        images = training_tensor(run.manifest, rows, geometry, advance)
        labels = torch.zeros(len(images), dtype=torch.int64)
        if others:
            more = training_tensor(run.manifest, others, geometry, advance)
            images = torch.cat([images, more])
            labels = torch.cat([labels, torch.full((len(more),), UNKNOWN)])
    batches = Batches(
        images,
        section.batch_size,
        seed,
        labels=labels,
        device=device,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    return TrainingSet(batches)


def labelled_set(
    run: Run,
    section: DetectorSection,
    sampling: Sampling,
    synthetic_ng: Manifest | None,
    seed: int,
    execution: Execution,
    *,
    unlabelled: bool = False,
) -> TrainingSet:
    """Load the labelled rows of the train split and this run's synthetic NG; log the composition.

    Args:
        synthetic_ng: this run's synthetic NG, if it has any.
        seed: chooses what is held out, and orders the images.
        unlabelled: the split's unlabelled rows come as well; their label is `UNKNOWN`.

    Raises:
        UserError: there is no NG; or as `labelled_images`.
    """
    manifest, log = run.manifest, execution.log
    use_synthetic = sampling.synthetic_ratio > 0
    rows = [row for row in run.training if row.label and (use_synthetic or not (row.synthetic and row.label == NG))]
    rows, held_out_rows = hold_out(rows, seed)
    if unlabelled:
        rows += _unlabelled(run.training, rows, held_out_rows)
    classes = defect_classes(run.training)
    geometry = run.recipe.image.geometry
    with log.bar("preparing images", len(rows) + len(held_out_rows)) as advance:
        images = labelled_images(manifest, rows, geometry, advance, classes=classes)
        held_out = None
        if held_out_rows:
            tiles = labelled_images(manifest, held_out_rows, geometry, advance)
            labels = torch.tensor([int(row.label == NG) for row in held_out_rows])
            held_out = HeldOut(tiles.images, tiles.owners, labels)
    if synthetic_ng is not None and use_synthetic:
        whole = geometry.model_copy(update={"tile": None, "stride": None})
        with log.bar("preparing synthetic NG", len(synthetic_ng)) as advance:
            more = labelled_images(synthetic_ng, synthetic_ng.rows, whole, advance, classes=classes)
            images = joined(images, more)
    batches = _batches(images, run, section, sampling, seed, execution)
    count = int((images.synthetic & (images.labels == 1)).sum())
    _log_composition(images, batches, section, geometry.tile is not None, len(held_out_rows), log)
    return TrainingSet(batches, held_out, count)


def check_synthetic_geometry(
    manifest: Manifest, train: Sequence[Row], section: GeneratorSection, image: ImageSection
) -> None:
    """Refuse a generator whose images show another part of the product than the detector sees.

    Raises:
        UserError: names the keys and the remedy.
    """
    if section.kind != "stylegan2-ada" or section.placed:
        return  # these alter views of the detector
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


def _unlabelled(train: Sequence[Row], rows: Sequence[Row], held_out: Sequence[Row]) -> list[Row]:
    """Return the unlabelled rows, without those of boards that were held out as a whole."""
    held = {row.group for row in held_out if row.group} - {row.group for row in rows}
    return [row for row in train if row.label == UNLABELLED and row.group not in held]


def _batches(
    images: LabelledImages,
    run: Run,
    section: DetectorSection,
    sampling: Sampling,
    seed: int,
    execution: Execution,
) -> LabelledBatches:
    clear = images.labels >= 0
    ng, unlabelled = images.labels == 1, images.labels == UNKNOWN
    ok, real, synthetic, unknown = (
        torch.nonzero(chosen)[:, 0]
        for chosen in (images.labels == 0, ng & ~images.synthetic, ng & images.synthetic, unlabelled)
    )
    without_ng = not len(real) and not (len(synthetic) and sampling.synthetic_is_ng)
    if without_ng and sampling.needs_ng:
        raise UserError(
            f"{run.manifest.root}: the train split has no NG, and '{section.kind}' learns from them.",
            "Add NG images, or choose a detector that learns from OK parts alone: ganomaly or fanogan.",
        )
    wanted = round(sampling.unlabelled_share * section.batch_size)
    unlabelled_count = min(wanted, section.batch_size - 2) if len(unknown) else 0
    labelled = section.batch_size - unlabelled_count
    counts = (labelled, 0, 0)
    if not without_ng:
        counts = apportion(
            labelled,
            sampling.ng_share,
            len(real),
            len(synthetic),
            sampling.synthetic_ratio,
            synthetic_is_ng=sampling.synthetic_is_ng,
        )
    members = (ok, real, synthetic, unknown)
    per_batch = (*counts, unlabelled_count)
    strata = [Stratum(indices, n) for indices, n in zip(members, per_batch, strict=True) if n]
    return LabelledBatches(
        images.images,
        seed,
        labels=images.labels.clamp(min=0),
        masks=images.masks,
        mask_of=images.mask_of,
        weights=torch.where(images.synthetic, sampling.synthetic_weight, 1.0),
        defects=images.defects,
        synthetic=images.synthetic,
        strata=strata,
        epoch=int((clear & ~images.synthetic).sum()),
        device=execution.device,
        rank=execution.processes.rank,
        world_size=execution.processes.world_size,
    )


def _log_composition(
    images: LabelledImages,
    batches: LabelledBatches,
    section: DetectorSection,
    tiles: bool,
    held_out: int,
    log: RunLog,
) -> None:
    ng, synthetic = images.labels == 1, images.synthetic
    counts = [int(chosen.sum()) for chosen in (images.labels == 0, ng & ~synthetic, ng & synthetic)]
    located, unknown = int((ng & (images.mask_of > 0)).sum()), int((images.labels == UNKNOWN).sum())
    what = "tiles" if tiles else "images"
    log.say(
        f"{section.kind} ({section.preset}) on {counts[0]} OK, {counts[1]} NG and {counts[2]} synthetic NG {what} "
        f"({located} NG with their defects located)"
        + (f" and {unknown} unlabelled" if unknown else "")
        + f", {batches.device}; a batch of {batches.batch_size} holds "
        + ", ".join(f"{s.per_batch} of {len(s.members)}" for s in batches.strata)
    )
    held = (
        f"{held_out} images held out of training to calibrate scores"
        if held_out
        else ("too few NG to hold any out: scores are not calibrated")
    )
    log.say(held)
