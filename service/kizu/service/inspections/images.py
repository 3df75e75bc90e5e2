"""The stored images of inspections."""

from __future__ import annotations

from kizu.service.inspections.tables import Inspection
from kizu.service.problems import Problem
from kizu.service.storage.blobs import BlobStore


class StoredImages:
    """Access to the images as they were sent."""

    def __init__(self, blobs: BlobStore):
        self._blobs = blobs

    def read(self, inspection: Inspection) -> bytes:
        """Return the image file; raises a 500 Problem if it is missing from the blob store."""
        try:
            return self._blobs.get(inspection.image_sha256)
        except FileNotFoundError as error:
            raise Problem(500, "image-lost", f"The image of {inspection.id} is gone from the blob store.") from error
