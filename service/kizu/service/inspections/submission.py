"""One request to inspect an image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from kizu.service.inspections.schemas import Metadata


@dataclass(frozen=True)
class Submission:
    """An image with its metadata and idempotency key."""

    data: bytes
    media_type: str
    """As declared; "" where nothing was."""
    metadata: Metadata
    key: str | None

    @property
    def station(self) -> str:
        """The station whose idempotency keys count; "" where the request names none."""
        return self.metadata.station or ""

    def fingerprint(self, image_sha256: str) -> str:
        """Return the SHA-256 over image and metadata: what a retry must have in common with the first request."""
        return hashlib.sha256(f"{image_sha256}\n{self.metadata.model_dump_json()}".encode()).hexdigest()
