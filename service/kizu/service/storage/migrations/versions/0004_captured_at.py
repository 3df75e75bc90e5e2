"""Times of capture that the API does not take: cameras whose clock was not set."""

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

captured_at = sa.column("captured_at", sa.DateTime(timezone=True))
inspections = sa.table("inspections", captured_at)


def upgrade() -> None:
    """Forget the times: earlier versions checked the year before its conversion to UTC, and let a few pass."""
    low, high = datetime(1970, 1, 1, tzinfo=UTC), datetime(9001, 1, 1, tzinfo=UTC)
    op.execute(inspections.update().where(sa.or_(captured_at < low, captured_at >= high)).values(captured_at=None))


def downgrade() -> None:
    """Leave the rows as they are: an unknown time is valid in the older schema too."""
