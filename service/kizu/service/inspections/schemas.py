"""API schemas of inspections."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from kizu.models.operating_point import Verdict
from kizu.service.fields import Moment, Name, OptionalName, StoredMoment
from kizu.service.inspections.span import Span
from kizu.service.inspections.tables import Inspection
from kizu.service.registry.schemas import Certificate, ModelVersion
from kizu.service.registry.tables import Model


class Metadata(BaseModel):
    """Metadata of an image, in the query or as form fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Name = Field(description="What is inspected, and how.")
    serial: OptionalName = Field(default=None, description="The part.")
    lot: OptionalName = Field(default=None, description="The lot that the part belongs to.")
    station: OptionalName = Field(default=None, description="The camera or station; idempotency keys are its own.")
    captured_at: Moment | None = Field(default=None, description="When the image was taken, ISO 8601 with an offset.")


class Filters(BaseModel):
    """Filters of a list of inspections; all given ones must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: OptionalName = None
    lot: OptionalName = None
    station: OptionalName = None
    serial: OptionalName = None
    verdict: Verdict | None = None
    reviewed: bool | None = Field(default=None, description="True: reviewed ones only; false: the others only.")
    since: Moment | None = Field(default=None, description="Received at or after.")
    until: Moment | None = Field(default=None, description="Received before.")
    captured_since: Moment | None = Field(default=None, description="Captured at or after, as `captured_at` says.")
    captured_until: Moment | None = Field(default=None, description="Captured before.")

    @property
    def span(self) -> Span:
        """The span of time that the filters leave."""
        return Span(self.since, self.until, self.captured_since, self.captured_until)


class ImageView(BaseModel):
    """Facts about a stored image."""

    sha256: str
    bytes: int
    width: int
    height: int
    media_type: str

    @classmethod
    def of(cls, inspection: Inspection) -> ImageView:
        """Return the view of a row's image."""
        return cls(
            sha256=inspection.image_sha256,
            bytes=inspection.image_bytes,
            width=inspection.width,
            height=inspection.height,
            media_type=inspection.media_type,
        )


class Links(BaseModel):
    """Paths of an inspection and of what belongs to it."""

    self: str
    image: str
    heatmap: str
    reviews: str

    @classmethod
    def of(cls, inspection: Inspection) -> Links:
        """Return the links of a row."""
        base = f"/v1/inspections/{inspection.id}"
        return cls(self=base, image=f"{base}/image", heatmap=f"{base}/heatmap", reviews=f"{base}/reviews")


class InspectionView(BaseModel):
    """One inspection: its verdict, the model version that decided, and the image."""

    id: UUID = Field(description="UUIDv7: sorts by time.")
    recipe: str
    verdict: Verdict
    score: float | None = Field(description="Higher is more NG; null: the model gave no finite number, hence NG.")
    threshold: float = Field(description="NG from this score on.")
    certificate: Certificate
    model_version: ModelVersion
    serial: str | None
    lot: str | None
    station: str | None
    captured_at: StoredMoment | None
    received_at: StoredMoment
    image: ImageView
    links: Links

    @classmethod
    def of(cls, inspection: Inspection, model: Model) -> InspectionView:
        """Return the view of a row; the same every time, since neither row changes in what is shown."""
        return cls(
            id=inspection.id,
            recipe=inspection.recipe,
            verdict=inspection.verdict,  # type: ignore[arg-type]
            score=inspection.score,
            threshold=inspection.threshold,
            certificate=Certificate.of(model),
            model_version=ModelVersion(id=model.id, name=model.name),
            serial=inspection.serial,
            lot=inspection.lot,
            station=inspection.station,
            captured_at=inspection.captured_at,
            received_at=inspection.received_at,
            image=ImageView.of(inspection),
            links=Links.of(inspection),
        )


class InspectionSummary(BaseModel):
    """An inspection in a list."""

    id: UUID
    recipe: str
    verdict: Verdict
    score: float | None
    threshold: float
    model_version: ModelVersion
    serial: str | None
    lot: str | None
    station: str | None
    captured_at: StoredMoment | None
    received_at: StoredMoment
    label: Literal["OK", "NG"] | None = Field(description="The latest review's; null: not reviewed.")
    links: Links

    @classmethod
    def of(cls, inspection: Inspection, model: ModelVersion) -> InspectionSummary:
        """Return the summary of a row."""
        return cls(
            id=inspection.id,
            recipe=inspection.recipe,
            verdict=inspection.verdict,  # type: ignore[arg-type]
            score=inspection.score,
            threshold=inspection.threshold,
            model_version=model,
            serial=inspection.serial,
            lot=inspection.lot,
            station=inspection.station,
            captured_at=inspection.captured_at,
            received_at=inspection.received_at,
            label=inspection.label,  # type: ignore[arg-type]
            links=Links.of(inspection),
        )
