"""Alembic's entry point: run the revisions on the connection and in the transaction that the caller holds."""

from alembic import context

from storage.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite can undo DDL as long as nobody commits in between, and a killed upgrade must leave the old schema.
    transactional_ddl=True,
)
context.run_migrations()
