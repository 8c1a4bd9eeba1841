"""The history of the catalog's schema, run by Alembic when an archive is opened."""
