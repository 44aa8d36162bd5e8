"""Runs the migrations over the connection that `service.database.migrate` hands in."""

from alembic import context

from service.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
