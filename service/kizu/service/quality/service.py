"""Quality reports of a recipe."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict

from kizu.service.inspections.span import Span
from kizu.service.problems import Problem
from kizu.service.quality import caveats, repository
from kizu.service.quality.counts import Counts
from kizu.service.quality.repository import Cell, GroupBy
from kizu.service.quality.schemas import QualityGroup, QualityReport
from kizu.service.registry import repository as registry
from kizu.service.registry.errors import UnknownRecipeError
from kizu.service.storage.database import Database

MAX_GROUPS = 1000


def report(
    database: Database,
    recipe: str,
    span: Span,
    group_by: GroupBy | None,
    confidence: float,
    simultaneous: bool = False,
    time_zone: str = "UTC",
) -> QualityReport:
    """Return the figures for a span of time, as a whole and by group.

    Raises:
        UnknownRecipeError: no model was ever added for the recipe.
        Problem: 422 an empty span, or too many groups.
    """
    if span.empty:
        raise Problem(422, "invalid-request", "since must lie before until, and captured_since before captured_until.")
    with database.reading() as session:
        if not registry.recipe_exists(session, recipe):
            raise UnknownRecipeError(recipe)

        def cells(by: GroupBy | None) -> list[Cell]:
            return repository.cells(session, recipe, span, by, time_zone)

        total = Counts.of(cells(None))
        by_version = _grouped(cells("model_version"))
        grouped = by_version
        if group_by != "model_version":
            grouped = _grouped(cells(group_by) if group_by else [])
    if len(grouped) > MAX_GROUPS:
        raise Problem(
            422, "too-many-groups", f"That makes {len(grouped)} groups.", "Narrow the span with since and until."
        )
    whole = QualityReport.fields_of(recipe, total, confidence)
    versions = _groups(recipe, by_version, confidence) if len(by_version) > 1 else []
    return QualityReport.model_validate(
        {
            **whole,
            "recipe": recipe,
            **asdict(span),
            "group_by": group_by,
            "time_zone": time_zone,
            "groups": _groups(recipe, grouped, _confidence(confidence, len(grouped), simultaneous)),
            "model_versions": versions,
            "caveats": [
                *caveats.caveats(total),
                *([caveats.of_versions([str(version.key) for version in versions])] if versions else []),
                *([caveats.of_groups(len(grouped), confidence, simultaneous)] if len(grouped) > 1 else []),
            ],
        }
    )


def _confidence(confidence: float, intervals: int, simultaneous: bool) -> float:
    """Return the confidence of each of several intervals; Bonferroni where all are to hold at once."""
    return 1 - (1 - confidence) / max(intervals, 1) if simultaneous else confidence


def _grouped(cells: list[Cell]) -> dict[str | None, Counts]:
    grouped: dict[str | None, list[Cell]] = defaultdict(list)
    for cell in cells:
        grouped[cell.key].append(cell)
    return {key: Counts.of(group) for key, group in grouped.items()}


def _groups(recipe: str, grouped: dict[str | None, Counts], confidence: float) -> list[QualityGroup]:
    return [
        QualityGroup.model_validate({"key": key, **QualityGroup.fields_of(recipe, grouped[key], confidence)})
        for key in sorted(grouped, key=_natural_order)
    ]


def _natural_order(key: str | None) -> tuple[bool, int, str]:
    # "v10" after "v9"; what has no key comes last.
    return (key is None, len(key or "") if (key or "").rpartition(" v")[2].isdigit() else 0, key or "")
