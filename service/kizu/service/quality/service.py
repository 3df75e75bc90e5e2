"""Quality reports of a recipe."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime

from kizu.service.problems import Problem
from kizu.service.quality import repository
from kizu.service.quality.estimates import Counts
from kizu.service.quality.repository import Cell, GroupBy
from kizu.service.quality.schemas import QualityGroup, QualityReport
from kizu.service.registry import repository as registry
from kizu.service.registry.errors import UnknownRecipeError
from kizu.service.storage.database import Database

MAX_GROUPS = 1000


def report(
    database: Database,
    recipe: str,
    since: datetime | None,
    until: datetime | None,
    group_by: GroupBy | None,
    confidence: float,
) -> QualityReport:
    """Return the figures for a span of time, as a whole and by group.

    Raises:
        UnknownRecipeError: no model was ever added for the recipe.
        Problem: 422 an empty span, or too many groups.
    """
    if since is not None and until is not None and since >= until:
        raise Problem(422, "invalid-request", "since must lie before until.")
    with database.reading() as session:
        if not registry.recipe_exists(session, recipe):
            raise UnknownRecipeError(recipe)
        cells = repository.cells(session, recipe, since, until, group_by)
    grouped: dict[str | None, list[Cell]] = defaultdict(list)
    if group_by is not None:
        for cell in cells:
            grouped[cell.key].append(cell)
    if len(grouped) > MAX_GROUPS:
        raise Problem(
            422, "too-many-groups", f"That makes {len(grouped)} groups.", "Narrow the span with since and until."
        )
    groups = [
        QualityGroup.model_validate({"key": key, **QualityGroup.fields_of(Counts.of(grouped[key]), confidence)})
        for key in sorted(grouped, key=_natural_order)
    ]
    return QualityReport.model_validate(
        {
            "recipe": recipe,
            "since": since,
            "until": until,
            "group_by": group_by,
            "groups": groups,
            **QualityReport.fields_of(Counts.of(cells), confidence),
        }
    )


def _natural_order(key: str | None) -> tuple[bool, int, str]:
    # "v10" after "v9"; what has no key comes last.
    return (key is None, len(key or "") if (key or "").rpartition(" v")[2].isdigit() else 0, key or "")
