"""API schemas of reviews and of the review queue."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kizu.models.operating_point import Verdict
from kizu.service.fields import Note, OptionalName, StoredMoment
from kizu.service.inspections.schemas import ImageView, InspectionView

Label = Literal["OK", "NG"]


class NewReview(BaseModel):
    """A person's label of an inspection."""

    model_config = ConfigDict(extra="forbid")

    label: Label
    defect: OptionalName = Field(default=None, description="The class of the defect, where the part is NG.")
    note: Note | None = None
    reviewer: OptionalName = Field(default=None, description="Who looked.")

    @model_validator(mode="after")
    def _only_ng_has_a_defect(self) -> NewReview:
        if self.label == "OK" and self.defect is not None:
            raise ValueError("an OK part has no defect")
        return self


class ReviewView(BaseModel):
    """One review."""

    model_config = ConfigDict(from_attributes=True)

    id: UUID
    inspection_id: UUID
    label: Label
    defect: str | None
    note: str | None
    reviewer: str | None
    created_at: StoredMoment


class InspectionDetail(InspectionView):
    """An inspection with its reviews."""

    label: Label | None = Field(description="The latest review's; null: not reviewed.")
    reviews: list[ReviewView] = Field(description="Oldest first; the last one counts.")


class QueueLinks(BaseModel):
    """Paths of what a reviewer needs."""

    image: str
    reviews: str


class QueueItem(BaseModel):
    """An inspection that waits for a review. Verdict and score are left out unless asked for."""

    id: UUID
    recipe: str
    serial: str | None
    lot: str | None
    station: str | None
    captured_at: StoredMoment | None
    received_at: StoredMoment
    image: ImageView
    links: QueueLinks
    verdict: Verdict | None = None
    score: float | None = None
    threshold: float | None = None


class Queue(BaseModel):
    """A page of the review queue."""

    items: list[QueueItem]
    next: str | None
    pending: int = Field(description="All that wait, on this page or not.")
