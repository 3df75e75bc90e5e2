"""Recipe of an arm of the scarce study, and the rows of the train split that the arm sees.

Notable here:
- Arms of one seed share their sample: a half is the same half, and 1 % of the NG is part of 2 %.
- Every arm trains for the same number of updates, to within half an epoch, so that less data does not mean less
  training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Row
from kizu.training.recipe import AugmentSection, DetectorSection, GeneratorSection, Recipe
from kizu.training.study.arms import Arm, OneClassKind, RealData, Remedy, Source

CROP = 0.7
"""Side of the crops of placed defects, as a share of the recipe's window: a full-size crop fits few positions."""
GENERATORS: dict[Source, dict[str, Any]] = {
    Source.CLASSIC: {"kind": "classic"},
    Source.CUTPASTE: {"kind": "cutpaste"},
    Source.POISSON: {"kind": "poisson"},
    Source.PERLIN: {"kind": "perlin"},
    Source.REAL_PLACED: {"kind": "poisson", "options": {"patches": "ng"}},
    Source.GAN_WHOLE: {"placed": False},
    Source.GAN_PLACED: {"placed": True, "crop": CROP},
}
"""Changes to the recipe's `[generator]`; `crop` and `kimg` are factors of the recipe's."""
REMEDY_GENERATORS: dict[Remedy, dict[str, Any]] = {
    Remedy.FILTERED_BY_D: {"filter": "discriminator", "keep": 0.5},
    Remedy.FILTERED_BY_CLASSIFIER: {"filter": "classifier", "keep": 0.5},
    Remedy.CLASSES_MIXED: {"conditional": False},
    Remedy.TRAINED_LONGER: {"kimg": 3.0},
}
"""Further changes to `[generator]`."""
REMEDY_OPTIONS: dict[Remedy, dict[str, Any]] = {
    Remedy.QUARTER_RATIO: {"synthetic_ratio": 0.25},
    Remedy.FALLING_WEIGHT: {"synthetic_schedule": "falling"},
}
"""Changes to the options of `[detector]`."""
REMEDY_KINDS = {Remedy.OWN_CLASS: "semi-supervised"}
"""Another kind of `[detector]`."""
AUGMENTED = (OneClassKind.DRAEM,)
"""Detectors on OK alone that take `[augment]`."""
STRONG = {"shift": 0.1, "scale": 0.1, "brightness": 0.1, "contrast": 0.3, "noise": 0.02}
"""Least amounts of strong classic augmentation, larger than usual in recipes."""
SHAPE = ("backbone", "features", "stem_stride", "halvings", "blocks", "views", "dense_weight")
"""Options that the detectors which learn from NG share."""
QUICK_KIMG, QUICK_IMAGES, QUICK_UPDATES = 4.0, 400, 600


def sample_rows(rows: Sequence[Row], base: RealData, seed: int) -> list[Row]:
    """Sample the base's share of OK and of NG, at least one of each; unlabelled rows are kept.

    A larger share holds all of a smaller one with the same seed.
    """
    kept: list[Row] = []
    for label, share in ((OK, base.share), (NG, base.share * base.ng_share)):
        of_label = sorted((row for row in rows if row.label == label), key=lambda row: sampling_key(row.path, seed))
        kept += of_label[: max(1, round(share * len(of_label)))]
    chosen = {row.path for row in kept}
    return [row for row in rows if row.path in chosen or row.label not in (OK, NG)]


def sampling_key(path: str, seed: int) -> bytes:
    """Pseudo-random sort key of a row."""
    return hashlib.sha256(f"scarce\0{seed}\0{path}".encode()).digest()


def quick_recipe(recipe: Recipe, train_images: int) -> Recipe:
    """The recipe with caps on what takes long: it shows that everything runs, and little about what it is worth.

    Args:
        train_images: in the training of `all`, for the detector's epochs.
    """
    detectors = []
    for section in recipe.detector:
        most = max(1, round(QUICK_UPDATES * section.batch_size / max(1, train_images)))
        detectors.append(section.model_copy(update={"epochs": min(section.epochs, most)}))
    generator = recipe.generator
    if generator is not None:
        less = {"kimg": min(generator.kimg, QUICK_KIMG), "count": min(generator.count, QUICK_IMAGES), "measurements": 0}
        generator = generator.model_copy(update=less)
    return recipe.model_copy(update={"detector": tuple(detectors), "generator": generator})


def recipe_of(
    arm: Arm, recipe: Recipe, seed: int, train: Sequence[Row], seen: Sequence[Row], one_class_epochs: int | None = None
) -> Recipe:
    """The recipe as an arm runs it: its generator, its detector's options, and epochs for as many updates as `all`.

    Args:
        train: the whole train split.
        seen: the rows of it that the arm sees.
        one_class_epochs: of detectors on OK alone; left out, for as many updates as `all` too.

    Raises:
        UserError: a change that the recipe's sections do not know.
    """
    labels = (OK,) if arm.one_class else (OK, NG)
    whole = sum(row.label in (OK, NG) and not row.synthetic for row in train)
    stretch = whole / sum(row.label in labels and not row.synthetic for row in seen)
    if arm.one_class is not None:
        detectors = [_one_class_detector(arm.one_class, recipe.detector[0], stretch, one_class_epochs)]
    else:
        detectors = [_detector(arm, section, stretch) for section in recipe.detector]
    return recipe.model_copy(
        update={
            "seed": seed,
            "detector": tuple(detectors),
            "generator": _generator(arm, recipe),
            "augment": _augment(arm, recipe),
        }
    )


def _detector(arm: Arm, section: DetectorSection, stretch: float) -> DetectorSection:
    options = dict(section.options)
    kind = section.kind
    if arm.remedy is not None:
        options |= REMEDY_OPTIONS.get(arm.remedy, {})
        kind = REMEDY_KINDS.get(arm.remedy, kind)
    if kind != section.kind:
        options = {name: value for name, value in options.items() if name in SHAPE}
    return section.model_copy(update={"kind": kind, "options": options, "epochs": _epochs(section, stretch)})


def _one_class_detector(
    kind: OneClassKind, section: DetectorSection, stretch: float, epochs: int | None
) -> DetectorSection:
    changes: dict[str, Any] = {"kind": kind.value, "preset": "small", "learning_rate": None}
    if kind != section.kind:
        changes["options"] = {}
    return section.model_copy(update=changes | {"epochs": epochs or _epochs(section, stretch)})


def _epochs(section: DetectorSection, stretch: float) -> int:
    return max(1, round(section.epochs * stretch))


def _augment(arm: Arm, recipe: Recipe) -> AugmentSection | None:
    if arm.one_class is not None and arm.one_class not in AUGMENTED:
        return None
    if not arm.strong_augment:
        return recipe.augment
    augment = recipe.augment or AugmentSection()
    return augment.model_copy(update={name: max(getattr(augment, name), least) for name, least in STRONG.items()})


def generator_changes(arm: Arm) -> dict[str, Any]:
    """Changes to the recipe's `[generator]`; empty without synthetic NG."""
    if arm.source is None:
        return {}
    return GENERATORS[arm.source] | (REMEDY_GENERATORS.get(arm.remedy, {}) if arm.remedy else {})


def _generator(arm: Arm, recipe: Recipe) -> GeneratorSection | None:
    section, changes = recipe.generator, generator_changes(arm)
    if arm.source is None or section is None:
        return None
    content = section.model_dump(exclude_unset=True)
    if changes.get("kind", section.kind) != section.kind:
        content = {"count": section.count}
    if "kimg" in changes:
        changes["kimg"] = changes["kimg"] * section.kimg
    if "crop" in changes:
        image = recipe.image.geometry
        window = section.crop or image.tile or max(section.sides or (image.height, image.width))
        changes["crop"] = max(16, round(changes["crop"] * window))
    try:
        return GeneratorSection.model_validate({**content, **changes})
    except ValidationError as error:
        raise UserError(
            f"'{arm.label}' asks for what [generator] does not offer: {error.errors()[0]['loc'][0]}."
        ) from error
