"""The stored images of inspections."""

from __future__ import annotations

import logging

from kizu.service.inspections.tables import Inspection
from kizu.service.problems import Problem
from kizu.service.storage.blobs import BlobStore

logger = logging.getLogger(__name__)


class StoredImages:
    """Access to the images as they were sent."""

    def __init__(self, blobs: BlobStore):
        self._blobs = blobs

    def read(self, inspection: Inspection) -> bytes:
        """Return the image file; raises a Problem: 410 it was removed, 503 the store cannot be read."""
        try:
            return self._blobs.get(inspection.image_sha256)
        except FileNotFoundError as error:
            detail = f"The image of {inspection.id} is not in the store any more; its verdict and reviews are kept."
            raise Problem(410, "image-lost", detail) from error
        except OSError as error:
            logger.error("the image of %s cannot be read: %s", inspection.id, error)
            detail = "The image cannot be read at the moment."
            raise Problem(503, "storage-unavailable", detail, "Try again.", headers={"Retry-After": "2"}) from error
