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
GAN_PLACED = "GAN placed"
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
    ok_alone: bool = False
    """Its detector learns from OK parts alone."""
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
        return self.ng_share < 1 and (
            self.generator is None or self.name == placed_name(plain_name(self.share, self.ng_share))
        )

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
    return f"{plain} + {GAN_PLACED}"


def is_rival(name: str, against: str | None) -> bool:
    """Whether an arm adds what draws defects without training to what `against` sees."""
    return name in [f"{against} + {kind}" for kind in UNTRAINED]


def known_arms(shares: Sequence[float]) -> list[Arm]:
    """All arms: of the table first, remedies after them, then `shares` of the NG, all of it, and OK alone.

    Raises:
        UserError: a share that is none.
    """
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise UserError(f"{wrong[0]:g} is no share of the NG for the curve.", "Give shares between 0 and 1.")
    whole, half = Arm(ALL), Arm(HALF, share=0.5)
    placed = ADDITIONS[GAN_PLACED]
    arms = [
        whole,
        half,
        replace(half, name="half + classic", strong=True),
        *(_with(half, addition) for addition in ADDITIONS),
        replace(half, name="half + GAN placed + classic", generator=placed, strong=True),
        *_remedies(half),
    ]
    for share in sorted(set(shares)):
        plain = Arm(plain_name(1.0, share), ng_share=share)
        arms += [plain, *(_with(plain, addition) for addition in ADDITIONS)]
    arms += [_with(whole, addition) for addition in ADDITIONS]
    return arms + [Arm(f"{kind} on OK alone", detector={"kind": kind}, ok_alone=True) for kind in OK_ALONE]


def _with(plain: Arm, addition: str) -> Arm:
    return replace(plain, name=f"{plain.name} + {addition}", generator=ADDITIONS[addition])


def _remedies(half: Arm) -> list[Arm]:
    """What to try where placed defects do not help."""
    placed = _with(half, GAN_PLACED)
    assert placed.generator is not None
    changed: dict[str, dict[str, Any]] = {
        "filtered by D": {"filter": "discriminator", "keep": 0.5},
        "filtered by a classifier": {"filter": "classifier", "keep": 0.5},
        "classes mixed": {"conditional": False},
        "trained 3 times as long": {"kimg": 3.0},
    }
    weighed: dict[str, dict[str, Any]] = {
        "ratio ¼": {"synthetic_ratio": 0.25},
        "falling weight": {"synthetic_schedule": "falling"},
    }
    return [
        *(replace(placed, name=f"{placed.name}, {k}", generator={**placed.generator, **v}) for k, v in changed.items()),
        *(replace(placed, name=f"{placed.name}, {k}", detector=v) for k, v in weighed.items()),
        replace(
            _with(half, "GAN whole"),
            name="half + GAN whole as a class of its own",
            detector={"kind": "semi-supervised"},
        ),
    ]


CROP = 0.7
"""Of the recipe's window, the share that the crops of placed defects have: one as large finds few places that fit."""
UNTRAINED: dict[str, dict[str, Any]] = {
    "altered copies": {"kind": "classic"},
    "cutpaste": {"kind": "cutpaste"},
    "poisson": {"kind": "poisson"},
    "perlin": {"kind": "perlin"},
    "real defects placed": {"kind": "poisson", "options": {"patches": "ng"}},
}
"""What draws NG without training, and a GAN must beat; changes to the recipe's `[generator]`."""
ADDITIONS: dict[str, dict[str, Any]] = {
    **UNTRAINED,
    "GAN whole": {"placed": False},
    GAN_PLACED: {"placed": True, "crop": CROP},
}
OK_ALONE = {"ganomaly": False, "fanogan": False, "draem": True, "memory": False}
"""Detectors that learn from OK parts alone, which the others must beat, and whether `[augment]` is for them."""
SHAPE = ("backbone", "features", "stem_stride", "halvings", "blocks", "views", "dense_weight")
"""Options that the detectors which learn from NG share."""
MAIN = 11
"""Arms of the table; those behind are remedies."""
QUICK = (ALL, HALF, "half + classic", "half + poisson", "half + GAN whole", placed_name(HALF))
"""Arms of the table that `--quick` runs."""
QUICK_SHARES = (0.05,)
QUICK_KIMG, QUICK_IMAGES, QUICK_UPDATES = 4.0, 400, 600


def is_remedy(name: str) -> bool:
    """Whether an arm is one of what to try where placed defects do not help."""
    return name in [arm.name for arm in _remedies(Arm(HALF, share=0.5))]


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
    needed = {arm.against for arm in arms if arm.against}
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


def recipe_of(
    arm: Arm, recipe: Recipe, seed: int, train: Sequence[Row], taken: Sequence[Row], ok_alone_epochs: int | None = None
) -> Recipe:
    """The recipe as an arm runs it: its generator, its detector's options, and epochs for as many updates as `all`.

    Args:
        train: the whole train split.
        taken: what the arm sees of it.
        ok_alone_epochs: of detectors on OK alone; left out, for as many updates as `all` too.

    Raises:
        UserError: a change that the recipe's sections do not know.
    """
    whole = sum(row.label in (OK, NG) and not row.synthetic for row in train)
    seen = sum(row.label in ((OK,) if arm.ok_alone else (OK, NG)) and not row.synthetic for row in taken)
    detectors = []
    for section in recipe.detector[:1] if arm.ok_alone else recipe.detector:
        options = {**section.options, **{k: v for k, v in arm.detector.items() if k != "kind"}}
        kind = arm.detector.get("kind", section.kind)
        if kind != section.kind:
            options = {} if arm.ok_alone else {k: v for k, v in options.items() if k in SHAPE}
        updates = {"kind": kind, "options": options, "epochs": max(1, round(section.epochs * whole / seen))}
        if arm.ok_alone:
            updates |= {"preset": "small", "epochs": ok_alone_epochs or updates["epochs"], "learning_rate": None}
        detectors.append(section.model_copy(update=updates))
    return recipe.model_copy(
        update={
            "seed": seed,
            "detector": tuple(detectors),
            "generator": _generator_of(arm, recipe),
            "augment": _augment_of(arm, recipe),
        }
    )


def _augment_of(arm: Arm, recipe: Recipe) -> AugmentSection | None:
    if arm.ok_alone and not OK_ALONE[arm.detector["kind"]]:
        return None
    return _stronger(recipe.augment or AugmentSection()) if arm.strong else recipe.augment


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
