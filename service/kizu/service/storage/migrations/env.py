"""Alembic's environment: migrates the connection that `kizu.service.storage.schema` passes."""

from alembic import context

from kizu.service.storage.database import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
