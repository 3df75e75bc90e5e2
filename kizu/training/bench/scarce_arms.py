"""The arms of `kizu bench scarce`: how much data, which synthetic NG, and what a recipe becomes for each.

Notable here:
- Arms of one seed share their draw: a half is the same half, and 1 % of the NG is part of 2 %.
- Every arm trains for the same number of updates, to within half an epoch, so that less data does not mean less
  training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from kizu.errors import UserError
from kizu.training.data.manifest import NG, OK, Row
from kizu.training.recipe import AugmentSection, GeneratorSection, Recipe

GAN = "stylegan2-ada"
ALL, HALF = "all", "half"
STRONG = {"shift": 0.1, "scale": 0.1, "brightness": 0.1, "contrast": 0.3, "noise": 0.02}
"""Classic augmentation at amounts that few recipes would dare."""


@dataclass(frozen=True)
class Arm:
    """One way to spend scarce data."""

    name: str
    share: float = 1.0
    """Of the train split's OK and of its NG that it may see."""
    ng_share: float = 1.0
    """Of these NG that it may see."""
    generator: Mapping[str, Any] | None = None
    """Changes to the recipe's `[generator]`; None: no synthetic NG."""
    detector: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the options of `[detector]`; `kind` changes its kind."""
    strong: bool = False
    """Classic augmentation of at least `STRONG` amounts."""

    @property
    def subset(self) -> str:
        """What it sees, the same for arms that see the same."""
        return f"{self.share:g}-{self.ng_share:g}"

    @property
    def trains_gan(self) -> bool:
        """Whether its NG come from the recipe's generator."""
        return self.generator is not None and self.generator.get("kind", GAN) == GAN

    @property
    def places_defects(self) -> bool:
        """Whether its NG are defects put elsewhere, so that the real ones must have boxes or masks."""
        changes = self.generator or {}
        return bool(changes.get("placed")) or changes.get("options", {}).get("patches") == "ng"

    @property
    def is_on_curve(self) -> bool:
        """Whether it is of the curve over the number of NG: what is real alone, and with the GAN's defects."""
        return self.ng_share < 1 and (self.generator is None or self.trains_gan)

    @property
    def against(self) -> str | None:
        """The arm without synthetic NG on the same data; None for that arm itself."""
        plain = plain_name(self.share, self.ng_share)
        return None if plain == self.name else plain


def plain_name(share: float, ng_share: float) -> str:
    """The arm that sees so much and nothing synthetic."""
    if ng_share == 1.0:
        return {1.0: ALL, 0.5: HALF}[share]
    return f"{100 * ng_share:g} % of the NG"


def placed_name(plain: str) -> str:
    """The arm that adds the GAN's placed defects to what `plain` sees."""
    return f"{plain} + GAN placed"


def is_rival(name: str, against: str | None) -> bool:
    """Whether an arm adds what draws defects without training to what `against` sees."""
    return name in [f"{against} + {kind}" for kind in UNTRAINED]


def known_arms(shares: Sequence[float]) -> list[Arm]:
    """All arms: of the table first, remedies after them, then `shares` of the NG: the curve, and untrained generators.

    Raises:
        UserError: a share that is none.
    """
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise UserError(f"{wrong[0]:g} is no share of the NG for the curve.", "Give shares between 0 and 1.")
    half = Arm(HALF, share=0.5)
    placed = {"placed": True, "crop": CROP}
    arms = [
        Arm(ALL),
        half,
        replace(half, name="half + classic", strong=True),
        replace(half, name="half + altered copies", generator={"kind": "classic"}),
        *(replace(half, name=f"half + {name}", generator=changes) for name, changes in UNTRAINED.items()),
        replace(half, name="half + GAN whole", generator={"placed": False}),
        replace(half, name=placed_name(HALF), generator=placed),
        replace(half, name="half + GAN placed + classic", generator=placed, strong=True),
        replace(
            half,
            name="half + GAN placed, filtered by D",
            generator={**placed, "filter": "discriminator", "keep": 0.5},
        ),
        replace(
            half,
            name="half + GAN placed, filtered by a classifier",
            generator={**placed, "filter": "classifier", "keep": 0.5},
        ),
        replace(half, name="half + GAN placed, ratio ¼", generator=placed, detector={"synthetic_ratio": 0.25}),
        replace(
            half, name="half + GAN placed, falling weight", generator=placed, detector={"synthetic_schedule": "falling"}
        ),
        replace(half, name="half + GAN placed, classes mixed", generator={**placed, "conditional": False}),
        replace(half, name="half + GAN placed, trained 3 times as long", generator={**placed, "kimg": 3.0}),
        replace(
            half,
            name="half + GAN whole as a class of its own",
            generator={"placed": False},
            detector={"kind": "semi-supervised"},
        ),
    ]
    for share in sorted(set(shares)):
        plain = Arm(plain_name(1.0, share), ng_share=share)
        arms += [plain, replace(plain, name=placed_name(plain.name), generator=placed)]
        arms += [replace(plain, name=f"{plain.name} + {name}", generator=UNTRAINED[name]) for name in UNTRAINED]
    return arms


UNTRAINED: dict[str, dict[str, Any]] = {
    "cutpaste": {"kind": "cutpaste"},
    "poisson": {"kind": "poisson"},
    "perlin": {"kind": "perlin"},
    "real defects placed": {"kind": "poisson", "options": {"patches": "ng"}},
}
"""What draws defects without training, and a GAN must beat."""
SHAPE = ("backbone", "features", "stem_stride", "halvings", "blocks", "dense_weight")
"""Options that the detectors which learn from NG share."""
CROP = 0.7
"""Of the recipe's window, the share that the crops of placed defects have: one as large finds few places that fit."""
MAIN = 11
"""Arms of the table; those behind are remedies."""
QUICK = (ALL, HALF, "half + classic", "half + poisson", "half + GAN whole", placed_name(HALF))
"""Arms of the table that `--quick` runs."""
QUICK_SHARES = (0.05,)
QUICK_KIMG, QUICK_IMAGES, QUICK_UPDATES = 4.0, 400, 600


def is_remedy(name: str) -> bool:
    """Whether an arm stands behind those of the table."""
    return name in [arm.name for arm in known_arms(())[MAIN:]]


def quickened(recipe: Recipe, train_images: int) -> Recipe:
    """The recipe with caps on what takes long: it shows that everything runs, and little about what it is worth.

    Args:
        train_images: that `all` trains on, for the detector's epochs.
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


def chosen_arms(names: Sequence[str], shares: Sequence[float], recipe: Recipe, *, located: bool) -> list[Arm]:
    """The arms to run, in order; without names, those of the table and of the curve.

    Args:
        names: of arms; those that they are held against come with them. "table" and "curve" stand for all of theirs.
        shares: of the NG, for the curve.
        located: the NG have boxes or masks, so that defects can be placed.

    Raises:
        UserError: an unknown arm, or one that the recipe cannot run.
    """
    known, by_name = known_arms(shares), bool(names)
    groups = {
        "table": [arm.name for arm in known[:MAIN]],
        "curve": [arm.name for arm in known if arm.is_on_curve],
    }
    names = [name for choice in names or groups for name in groups.get(choice, [choice])]
    if unknown := [name for name in names if name not in {arm.name for arm in known}]:
        raise UserError(f"Unknown arm '{unknown[0]}'.", "Known: " + "; ".join(arm.name for arm in known) + ".")
    arms = [arm for arm in known if arm.name in names]
    if not located and (unplaced := [arm for arm in arms if arm.places_defects]):
        if by_name:
            raise UserError(
                f"'{unplaced[0].name}': the NG have neither boxes nor masks, so there is nothing to place.",
                'Add them to the manifest, or choose "half + GAN whole".',
            )
        arms = [arm for arm in arms if arm not in unplaced]
    if any(arm.generator is not None for arm in arms) and recipe.generator is None:
        raise UserError("The recipe has no [generator].", f'Add one of kind "{GAN}", or choose arms without.')
    if recipe.generator is not None and recipe.generator.kind != GAN and any(arm.trains_gan for arm in arms):
        raise UserError(f"generator.kind is '{recipe.generator.kind}', no GAN.", f'Give it the kind "{GAN}".')
    needed = {arm.against for arm in arms if arm.against} | {HALF}
    missing = [arm for arm in known if arm.name in needed and arm not in arms]
    return sorted([*arms, *missing], key=known.index)


def drawn(rows: Sequence[Row], share: float, ng_share: float, seed: int) -> list[Row]:
    """`share` of the OK and `share · ng_share` of the NG, at least one of each; unlabelled rows as they are.

    A larger share holds all of a smaller one with the same seed.
    """
    kept = []
    for label, part in ((OK, share), (NG, share * ng_share)):
        of_label = sorted((row for row in rows if row.label == label), key=lambda row: lot(row.path, seed))
        kept += of_label[: max(1, round(part * len(of_label)))]
    chosen = {row.path for row in kept}
    return [row for row in rows if row.path in chosen or row.label not in (OK, NG)]


def lot(path: str, seed: int) -> bytes:
    return hashlib.sha256(f"scarce\0{seed}\0{path}".encode()).digest()


def recipe_of(arm: Arm, recipe: Recipe, seed: int, train: Sequence[Row], taken: Sequence[Row]) -> Recipe:
    """The recipe as an arm runs it: its generator, its detector's options, and epochs for as many updates as `all`.

    Args:
        train: the whole train split.
        taken: what the arm sees of it.

    Raises:
        UserError: a change that the recipe's sections do not know.
    """
    sizes = [sum(row.label in (OK, NG) and not row.synthetic for row in rows) for rows in (train, taken)]
    detectors = []
    for section in recipe.detector:
        options = {**section.options, **{k: v for k, v in arm.detector.items() if k != "kind"}}
        kind = arm.detector.get("kind", section.kind)
        if kind != section.kind:
            options = {k: v for k, v in options.items() if k in SHAPE}
        epochs = max(1, round(section.epochs * sizes[0] / sizes[1]))
        detectors.append(section.model_copy(update={"kind": kind, "options": options, "epochs": epochs}))
    return recipe.model_copy(
        update={
            "seed": seed,
            "detector": tuple(detectors),
            "generator": _generator_of(arm, recipe),
            "augment": _stronger(recipe.augment or AugmentSection()) if arm.strong else recipe.augment,
        }
    )


def _stronger(augment: AugmentSection) -> AugmentSection:
    return augment.model_copy(update={name: max(getattr(augment, name), least) for name, least in STRONG.items()})


def _generator_of(arm: Arm, recipe: Recipe) -> GeneratorSection | None:
    section, changes = recipe.generator, dict(arm.generator or {})
    if arm.generator is None or section is None:
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
            f"'{arm.name}' asks for what [generator] does not offer: {error.errors()[0]['loc'][0]}."
        ) from error
