"""Gap in KID between no augmentation and an augmentation, and its growth on fewer images.

Notable here:
- The interval of a gap is approximate: the root of the sum of squares of the half-widths of its KIDs, which counts them
  as independent although they share the real images. It speaks of the images measured, not of other trainings.
- Only seeds that trained both arms count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ArmRecord = dict[str, Any]
"""Result of one training, as `limited_arms.run_arm` writes it."""
PLAIN = "none"


@dataclass(frozen=True)
class Gap:
    """A difference of KID with an approximate interval, `half` to either side."""

    value: float
    half: float
    seeds: tuple[float, ...]
    """Of each seed alone; empty for a difference of gaps."""

    def __sub__(self, other: Gap) -> Gap:
        """Differences of two gaps, as if they were independent."""
        return Gap(self.value - other.value, math.hypot(self.half, other.half), ())

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.value - self.half:+.4f}, {self.value + self.half:+.4f}]"


def gaps_of(arms: Sequence[ArmRecord], augment: str) -> list[tuple[int, Gap]]:
    """Images and the gap of no augmentation behind `augment`, most images first; only seeds that ran both."""
    found = []
    for images, group in by_images(arms):
        plain, other = by_seed(group, PLAIN), by_seed(group, augment)
        seeds = [seed for seed in plain if seed in other]
        if not seeds:
            continue
        kids = [(last_line(plain[seed])["kid"], last_line(other[seed])["kid"]) for seed in seeds]
        differences = tuple(a["value"] - b["value"] for a, b in kids)
        half = math.hypot(*(_half(kid) for pair in kids for kid in pair)) / len(seeds)
        found.append((images, Gap(sum(differences) / len(seeds), half, differences)))
    return found


def growth(augment: str, gaps: Sequence[tuple[int, Gap]]) -> str:
    """Sentence on the growth of the gap as images get fewer."""
    if len(gaps) < 2:
        return f"Whether the gap to {augment} grows as images get fewer cannot be judged from one number of images."
    steps = [(more, fewer, few - many) for (more, many), (fewer, few) in itertools.pairwise(gaps)]
    (most, many), (fewest, few) = gaps[0], gaps[-1]
    whole = f"; in all, {most} → {fewest}: {few - many}" if len(gaps) > 2 else ""
    listed = "; ".join(f"{more} → {fewer}: {step}" for more, fewer, step in steps) + whole
    if all(step.value > 0 for _, _, step in steps):
        sure = all(step.value > step.half for _, _, step in steps)
        verdict = "grows at every step" if sure else "grows at every step, but not beyond the intervals"
    elif all(step.value <= 0 for _, _, step in steps):
        verdict = "does NOT grow"
    else:
        verdict = "does NOT grow at every step"
    none = "" if few.value > few.half else f" On {fewest} images it does not differ significantly from zero."
    if few.value <= 0:
        none = f" On {fewest} images there is NO gap: {augment} is not better than {PLAIN}."
    return f"As images get fewer, the gap to {augment} {verdict} ({listed}).{none}"


def by_images(arms: Sequence[ArmRecord]) -> list[tuple[int, list[ArmRecord]]]:
    """The arms on each number of images, most images first."""
    counts = sorted({arm["images"] for arm in arms}, reverse=True)
    return [(count, [arm for arm in arms if arm["images"] == count]) for count in counts]


def by_seed(arms: Iterable[ArmRecord], augment: str) -> dict[int, ArmRecord]:
    """Arms with an augmentation, by seed."""
    return {arm["seed"]: arm for arm in arms if arm["augment"] == augment}


def augments_of(arms: Iterable[ArmRecord]) -> list[str]:
    """Augmentations in the order of the arms, no augmentation last."""
    found = list(dict.fromkeys(arm["augment"] for arm in arms))
    return sorted(found, key=lambda augment: augment == PLAIN)


def augmented(arms: Iterable[ArmRecord]) -> list[str]:
    """Augmentations without `none`."""
    return [augment for augment in augments_of(arms) if augment != PLAIN]


def last_line(arm: ArmRecord) -> dict[str, Any]:
    """Last measurement of an arm."""
    line: dict[str, Any] = arm["curve"][-1]
    return line


def _half(kid: dict[str, float]) -> float:
    return (kid["upper"] - kid["lower"]) / 2
