"""Arms of the scarce study: how much real data, which synthetic NG, and what is changed besides.

Notable here:
- An arm is its typed fields. Nothing is decided by a label; labels are made from the fields, for people and `--arm`.
- `recipes.py` says what a recipe becomes for an arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from kizu.errors import UserError
from kizu.training.recipe import Recipe

GAN = "stylegan2-ada"


class Named(StrEnum):
    """Enumeration whose values are labels for people."""

    @property
    def key(self) -> str:
        """Name in files, which does not change with the label."""
        return self.name.lower().replace("_", "-")


class Source(Named):
    """Source of an arm's synthetic NG; the value is its label."""

    CLASSIC = "altered copies"
    CUTPASTE = "cutpaste"
    POISSON = "poisson"
    PERLIN = "perlin"
    REAL_PLACED = "real defects placed"
    GAN_WHOLE = "GAN whole"
    GAN_PLACED = "GAN placed"

    @property
    def is_gan(self) -> bool:
        """NG come from a trained generator."""
        return self in (Source.GAN_WHOLE, Source.GAN_PLACED)

    @property
    def places_defects(self) -> bool:
        """Defects are put into OK images, so that the real NG must have boxes or masks."""
        return self in (Source.GAN_PLACED, Source.REAL_PLACED)


class Remedy(Named):
    """Change to try where synthetic NG do not help; the value is its label."""

    FILTERED_BY_D = "filtered by D"
    FILTERED_BY_CLASSIFIER = "filtered by a classifier"
    CLASSES_MIXED = "classes mixed"
    TRAINED_LONGER = "trained 3 times as long"
    QUARTER_RATIO = "ratio ¼"
    FALLING_WEIGHT = "falling weight"
    OWN_CLASS = "as a class of its own"


class OneClassKind(Named):
    """Kind of a detector that learns from OK parts alone."""

    GANOMALY = "ganomaly"
    FANOGAN = "fanogan"
    DRAEM = "draem"
    MEMORY = "memory"


@dataclass(frozen=True)
class RealData:
    """Real data of an arm."""

    share: float = 1.0
    """Of the train split's OK and of its NG."""
    ng_share: float = 1.0
    """Of these NG."""

    @property
    def label(self) -> str:
        """Name for people."""
        if self.ng_share < 1.0:
            return f"{100 * self.ng_share:g} % of the NG"
        return {1.0: "all", 0.5: "half"}.get(self.share, f"{100 * self.share:g} %")

    @property
    def key(self) -> str:
        """Name of files, one for each base."""
        return f"ok{self.share!r}-ng{self.ng_share!r}"


ALL, HALF = RealData(), RealData(share=0.5)


@dataclass(frozen=True)
class Arm:
    """Real data, and what is added to or changed about its training."""

    base: RealData = ALL
    source: Source | None = None
    """None: no synthetic NG."""
    strong_augment: bool = False
    """Classic augmentation, stronger than the recipe's."""
    remedy: Remedy | None = None
    one_class: OneClassKind | None = None
    """A detector on OK alone instead of the recipe's."""

    @property
    def label(self) -> str:
        """Name for people, and for `--arm`."""
        if self.one_class is not None:
            return f"{self.one_class} on OK alone"
        parts = [
            self.base.label,
            *([self.source] if self.source else []),
            *(["classic"] if self.strong_augment else []),
        ]
        label = " + ".join(parts)
        if self.remedy is None:
            return label
        return f"{label}{' ' if self.remedy is Remedy.OWN_CLASS else ', '}{self.remedy}"

    @property
    def key(self) -> str:
        """Name of its folder, one for each arm."""
        names = [part.key for part in (self.source, self.remedy, self.one_class) if part is not None]
        return "-".join([self.base.key, *names, *(["strong-augment"] if self.strong_augment else [])])

    @property
    def is_real(self) -> bool:
        """Nothing is added or changed: the recipe on real data."""
        return self == Arm(self.base)

    @property
    def reference(self) -> Arm | None:
        """The arm with the same real data and nothing else; None for that arm itself."""
        return None if self.is_real else Arm(self.base)

    @property
    def trains_gan(self) -> bool:
        """NG come from the recipe's generator."""
        return self.source is not None and self.source.is_gan

    @property
    def adds_alone(self) -> bool:
        """Synthetic NG are added, and nothing else is changed."""
        return self.source is not None and self == Arm(self.base, self.source)

    @property
    def gan_rival(self) -> Arm | None:
        """The arm with the GAN's placed defects instead; None unless a source without training is added alone."""
        return replace(self, source=Source.GAN_PLACED) if self.adds_alone and not self.trains_gan else None

    @property
    def is_in_table(self) -> bool:
        """It is one of the table: all, half, and half with each addition."""
        return self == Arm(ALL) or (self.base == HALF and self.remedy is None)

    @property
    def is_on_curve(self) -> bool:
        """It is one of the curve over the number of NG: real data alone, and with the GAN's placed defects."""
        return self.base.ng_share < 1.0 and self in (Arm(self.base), Arm(self.base, Source.GAN_PLACED))


class Group(StrEnum):
    """Arms chosen by one word."""

    TABLE = "table"
    CURVE = "curve"

    def holds(self, arm: Arm) -> bool:
        """Return True for an arm of the group."""
        return arm.is_in_table if self is Group.TABLE else arm.is_on_curve


Choice = Arm | Group
REMEDIES = (
    *(Arm(HALF, Source.GAN_PLACED, remedy=remedy) for remedy in Remedy if remedy is not Remedy.OWN_CLASS),
    Arm(HALF, Source.GAN_WHOLE, remedy=Remedy.OWN_CLASS),
)
QUICK: tuple[Choice, ...] = (
    Arm(ALL),
    Arm(HALF),
    Arm(HALF, strong_augment=True),
    Arm(HALF, Source.POISSON),
    Arm(HALF, Source.GAN_WHOLE),
    Arm(HALF, Source.GAN_PLACED),
    Group.CURVE,
)
"""Arms that `--quick` runs."""
QUICK_SHARES = (0.05,)


def known_arms(shares: Sequence[float]) -> list[Arm]:
    """All arms: of the table first, remedies after them, then `shares` of the NG, all of it, and OK alone.

    Raises:
        UserError: a share that is none.
    """
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise UserError(f"{wrong[0]:g} is no share of the NG for the curve.", "Give shares between 0 and 1.")
    arms = [
        Arm(ALL),
        Arm(HALF),
        Arm(HALF, strong_augment=True),
        *(Arm(HALF, source) for source in Source),
        Arm(HALF, Source.GAN_PLACED, strong_augment=True),
        *REMEDIES,
    ]
    for share in sorted(set(shares)):
        base = RealData(ng_share=share)
        arms += [Arm(base), *(Arm(base, source) for source in Source)]
    arms += [Arm(ALL, source) for source in Source]
    return arms + [Arm(one_class=kind) for kind in OneClassKind]


def parse_choices(names: Sequence[str], shares: Sequence[float]) -> tuple[Choice, ...]:
    """Arms and groups by their labels.

    Args:
        shares: of the NG, for the curve.

    Raises:
        UserError: an unknown label, or a share that is none.
    """
    known: dict[str, Choice] = {arm.label: arm for arm in known_arms(shares)}
    choices = known | {group.value: group for group in Group}
    if unknown := [name for name in names if name not in choices]:
        raise UserError(f"Unknown arm '{unknown[0]}'.", "Known: " + "; ".join(known) + ".")
    return tuple(choices[name] for name in names)


def label_of(choice: Choice) -> str:
    """Name of an arm or group, as `--arm` takes it."""
    return choice.label if isinstance(choice, Arm) else choice.value


def chosen_arms(choices: Sequence[Choice], shares: Sequence[float], recipe: Recipe, *, located: bool) -> list[Arm]:
    """The arms to run, in order; without choices, those of the table and of the curve.

    Args:
        choices: arms and groups; the references of the arms come with them.
        shares: of the NG, for the curve.
        located: the NG have boxes or masks, so that defects can be placed.

    Raises:
        UserError: an arm that the recipe or the data cannot run, or a share that is none.
    """
    known, wanted = known_arms(shares), choices or tuple(Group)
    groups = [choice for choice in wanted if isinstance(choice, Group)]
    arms = [arm for arm in known if arm in wanted or any(group.holds(arm) for group in groups)]
    if not located and (unplaced := [arm for arm in arms if arm.source and arm.source.places_defects]):
        if choices:
            raise UserError(
                f"'{unplaced[0].label}': the NG have neither boxes nor masks, so there is nothing to place.",
                'Add them to the manifest, or choose "half + GAN whole".',
            )
        arms = [arm for arm in arms if arm not in unplaced]
    if any(arm.source is not None for arm in arms) and recipe.generator is None:
        raise UserError("The recipe has no [generator].", f'Add one of kind "{GAN}", or choose arms without.')
    if recipe.generator is not None and recipe.generator.kind != GAN and any(arm.trains_gan for arm in arms):
        raise UserError(f"generator.kind is '{recipe.generator.kind}', no GAN.", f'Give it the kind "{GAN}".')
    needed = {arm.reference for arm in arms}
    return [arm for arm in known if arm in arms or arm in needed]
