"""Every table, so that migrations and relationships see all of them."""

from kizu.service.inspections import tables as inspections
from kizu.service.registry import tables as registry
from kizu.service.reviews import tables as reviews
from kizu.service.storage import secrets
from kizu.service.storage.database import Base

__all__ = ["Base", "inspections", "registry", "reviews", "secrets"]
