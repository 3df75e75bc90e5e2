"""API schemas of models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from kizu.models.bundle import InputGeometry
from kizu.service.fields import StoredMoment
from kizu.service.registry.service import status_of
from kizu.service.registry.tables import Model


class Certificate(BaseModel):
    """The certificate of a model's threshold."""

    statement: str = Field(description="The certificate in plain words.")
    basis: str
    target_fnr: float
    certified_fnr: float | None = Field(description="With `confidence`, the FNR is at most this; null: unknown.")
    confidence: float
    chosen: Literal["target", "curve"] = Field(
        description="`target`: by the recipe's target FNR. `curve`: later; its bounds hold for all thresholds."
    )
    independence: Literal["parts", "groups"] | None = Field(
        description="What counts as one NG: a part, or a group. Null: parts, in a bundle from before groups counted."
    )
    independent_ng: int = Field(description="Real NG that the certificate rests on, one of each group.")
    for_new_parts: bool = Field(description="The target is certified for parts of any group, not only of those seen.")
    groups_only_fnr: float | None = Field(
        description="What all NG, each counted, certify for parts of the groups that were seen; null: the same."
    )
    certified_on: Literal["calibration", "certification"] | None = Field(
        description="Split that the NG are of. Only those of `certification` were read by nothing else."
    )

    @classmethod
    def of(cls, model: Model) -> Certificate:
        """Return the certificate of a model."""
        point = model.operating_point
        return cls(
            statement=model.statement,
            basis=point.basis,
            target_fnr=point.target_fnr,
            certified_fnr=point.certified_fnr,
            confidence=point.confidence,
            chosen=point.chosen,
            independence=point.independence,
            independent_ng=point.n_ng if point.n_independent is None else point.n_independent,
            for_new_parts=point.for_new_parts,
            groups_only_fnr=point.groups_only_fnr,
            certified_on=point.certified_on,
        )


class ModelVersion(BaseModel):
    """The model version that decided."""

    id: str
    name: str = Field(examples=["deeppcb v3"])


class ModelView(BaseModel):
    """A registered model."""

    id: str
    name: str = Field(examples=["deeppcb v3"])
    recipe: str
    number: int = Field(description="Counts the recipe's versions from 1.")
    status: Literal["champion", "challenger", "retired"]
    fingerprint: str = Field(description="SHA-256 of `bundle.json`, and through it of the whole bundle.")
    geometry: InputGeometry
    threshold: float
    review_threshold: float
    certificate: Certificate
    metrics: dict[str, Any]
    created_at: StoredMoment
    retired_at: StoredMoment | None

    @classmethod
    def of(cls, model: Model, champion_id: str | None) -> ModelView:
        """Return the view of a row."""
        point = model.operating_point
        return cls(
            id=model.id,
            name=model.name,
            recipe=model.recipe,
            number=model.number,
            status=status_of(model, champion_id),  # type: ignore[arg-type]
            fingerprint=model.fingerprint,
            geometry=InputGeometry.model_validate(model.manifest["geometry"]),
            threshold=point.threshold,
            review_threshold=point.review_threshold,
            certificate=Certificate.of(model),
            metrics=model.manifest["metrics"],
            created_at=model.created_at,
            retired_at=model.retired_at,
        )


class ModelList(BaseModel):
    """Registered models."""

    items: list[ModelView]
