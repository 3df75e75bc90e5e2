"""The detectors that `detector.kind = "auto"` stands for, by what the data has to teach.

Notable here:
- NG that were labelled decide. Without any, three views of what OK parts look like are combined, nearest neighbours,
  Gaussians and a flow, since no synthetic anomaly can tell which of them suits a product.
- With NG, SuperSimpleNet learns from them, and memory and Gaussians stay beside it: kinds of defect that nobody has
  labelled are far from OK parts, whatever a network has learned of others. Ten NG can mislead, too: on one split of
  solar cells they taught less than the Gaussians know without any. So these two have their say by what they see of the
  NG (`kizu.training.combination`).
- From `HUNDREDS` of NG on, a classifier whose backbone trains as well joins them.
- A function of recipe and train split alone, so a resumed run means the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass

from kizu.errors import UserError
from kizu.models.backbones import DEFAULT
from kizu.models.config import STRICT
from kizu.training.data.manifest import NG, Row
from kizu.training.options import Options
from kizu.training.pretrained import PretrainedOptions
from kizu.training.recipe import AUTO, DetectorSection, Recipe

HUNDREDS = 100
"""Real NG in the train split from which a backbone can be trained on them."""
WITHOUT_NG = ("memory", "padim", "flow")
WITH_NG = ("supersimplenet", "memory", "padim")
WITH_HUNDREDS = (*WITH_NG, "classifier")


@dataclass(frozen=True, config=STRICT)
class AutoOptions(PretrainedOptions):
    """Options of `auto`; all of its detectors get them."""

    backbone: str = DEFAULT
    """Name of a timm network with maps of stride 8 and 16. Another than the default needs `weights`."""
    least_side: int = Field(default=128, ge=32, le=1024)
    """Images whose shorter side has fewer pixels are enlarged to so many inside the graph."""


def resolve(recipe: Recipe, train: Sequence[Row]) -> tuple[Recipe, str | None]:
    """Put detectors in the place of `auto`; say which and why. A recipe without `auto` stays as it is, without a word.

    Args:
        train: the train split.

    Raises:
        UserError: `auto` beside other detectors, an unknown option, or a preset.
    """
    kinds = [section.kind for section in recipe.detector]
    if AUTO not in kinds:
        return recipe, None
    if len(kinds) > 1:
        raise UserError(
            "detector.kind = 'auto' chooses the detectors, so it stands alone.",
            "Leave the other [[detector]] sections out, or name every detector.",
        )
    (section,) = recipe.detector
    options = Options("detector.options", section.options)
    options.check(AutoOptions)
    options.make(AutoOptions)
    chosen, reason = _kinds(recipe, train)
    sections = tuple(section.model_copy(update=_changes(kind, section)) for kind in chosen)
    changes: dict[str, Any] = {"detector": sections}
    if chosen == WITHOUT_NG and recipe.augment is not None:
        changes["augment"] = None
        reason += "; they take images as they are, so [augment] alters nothing"
    return recipe.model_copy(update=changes), f"auto: {' + '.join(chosen)}, since {reason}"


def _kinds(recipe: Recipe, train: Sequence[Row]) -> tuple[tuple[str, ...], str]:
    ng = sum(row.label == NG and not row.synthetic for row in train)
    if ng and recipe.image.tile is not None and not any(row.label == NG and (row.boxes or row.mask) for row in train):
        return (
            WITHOUT_NG,
            "no NG has boxes or a mask, so which tiles show its defect cannot be known: OK parts alone teach",
        )
    if ng >= HUNDREDS:
        return WITH_HUNDREDS, f"{ng} NG can train a backbone as well (from {HUNDREDS} on)"
    if ng:
        return WITH_NG, f"{ng} NG can teach heads on pretrained features (a backbone takes {HUNDREDS})"
    if recipe.generator is not None or any(row.label == NG for row in train):
        return WITH_NG, "there are synthetic NG to learn from"
    return WITHOUT_NG, "the train split has no NG: three views of what OK parts look like, combined by ranks"


def _changes(kind: str, section: DetectorSection) -> dict[str, Any]:
    changes: dict[str, Any] = {"kind": kind}
    if kind == "classifier":
        options = {name: value for name, value in section.options.items() if name != "least_side"}
        changes["options"] = {"backbone": DEFAULT} | options
    return changes
