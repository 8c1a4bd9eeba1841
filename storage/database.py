"""The connection under catalog and ledger: the only module that knows one SQL dialect from another."""

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError, ProgrammingError

from storage.errors import CatalogError
from storage.tables import Base

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every schema revision this code knows, oldest first; a test compares them with ``storage/migrations/versions``."""

BUSY_TIMEOUT_MS = 60_000
"""How long a writer waits for another one. Our transactions last milliseconds; a minute covers a stalled network disk."""

_WRITE = "samdistill_write"


class Database:
    """An engine with the pragmas, transactions and migrations that catalog and ledger rely on."""

    def __init__(self, url: str) -> None:
        """Connect and bring the schema up to date.

        Raises:
            CatalogError: if the URL cannot be used, the database cannot be reached, or its schema is newer than this code.
        """
        self.url = url
        self._engine = _engine(url)
        self._pid = os.getpid()
        try:
            self._migrate()
        except OperationalError as error:
            message = f"the catalog {self.shown_url} cannot be opened: {error.orig}. Check that its folder exists and is writable."
            raise CatalogError(message) from error
        except DatabaseError as error:
            message = f"the catalog {self.shown_url} cannot be read: {error.orig}. Name another one, or restore it from a backup."
            raise CatalogError(message) from error

    @staticmethod
    def is_missing(url: str) -> bool:
        """Tell whether ``url`` names a SQLite file that does not exist; a server is asked when it is connected to."""
        parts = parse_url(url)
        return (
            parts.get_backend_name() == "sqlite" and parts.database not in {None, "", ":memory:"} and not Path(str(parts.database)).exists()
        )

    @property
    def shown_url(self) -> str:
        """The URL without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def engine(self) -> Engine:
        """The engine, with a fresh pool after a fork: two processes must never share one connection."""
        if self._pid != os.getpid():
            self._engine.dispose(close=False)
            self._pid = os.getpid()
        return self._engine

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads and never waits for writers."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that takes the write lock at once, so that what it read is still true when it writes."""
        with self.engine.connect().execution_options(**{_WRITE: True}) as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()

    def _migrate(self) -> None:
        with self.reading() as connection:
            found = _revision(connection)
        if found == REVISIONS[-1]:
            return
        if found is not None and found not in REVISIONS:
            message = (
                f"the catalog {self.shown_url} has schema {found}, but this version of samdistill knows only up to {REVISIONS[-1]}. "
                "It was opened by a newer samdistill before: upgrade this one, or give another catalog."
            )
            raise CatalogError(message)
        # Imported before the lock is taken: others may be waiting for it, and Alembic takes a quarter of a second.
        import alembic.command  # noqa: F401

        with self.writing() as connection:
            upgrade(connection)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to ``revision`` inside the caller's transaction."""
    # Needed once in an archive's life, so it does not slow down every import of this module.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    command.upgrade(config, revision)


def upsert(connection: Connection, table: type[Base], rows: Sequence[Mapping[str, Any]], *, update: Sequence[str] = ()) -> None:
    """Insert rows; where the primary key exists already, overwrite the columns in ``update``, or do nothing when there are none."""
    # One form for both dialects: SQLite took ON CONFLICT from PostgreSQL.
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table)
    keys = [column.name for column in sa.inspect(table).primary_key]
    if update:
        statement = statement.on_conflict_do_update(index_elements=keys, set_={name: statement.excluded[name] for name in update})
    else:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    if rows:
        connection.execute(statement, list(rows))


def parse_url(url: str) -> sa.URL:
    """Take a catalog's URL apart.

    Raises:
        CatalogError: if it is none.
    """
    try:
        return sa.make_url(url)
    except (ArgumentError, ValueError) as error:
        # Whatever stands before an @ may be a password.
        shown = re.sub(r"(?<=//).*@", "***@", url)
        message = f"the catalog {shown!r} is no database URL. Write sqlite:///FILE, sqlite:////FOLDER/FILE or postgresql://USER@HOST/NAME."
        raise CatalogError(message) from error


def storable(text: str) -> str:
    r"""Return text as every database and terminal takes it: bytes of a file name that are no UTF-8 become ``\udcNN``, zeros ``\x00``."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _engine(url: str) -> Engine:
    parts = parse_url(url)
    try:
        engine = sa.create_engine(parts)
    except NoSuchModuleError as error:
        known = "sqlite:///FILE and postgresql://USER@HOST/NAME"
        message = f"the catalog {parts.render_as_string()} is of a kind of database that is not known here. Known: {known}."
        raise CatalogError(message) from error
    except ImportError as error:
        message = f"the catalog {parts.render_as_string()} needs the Python package {error.name}, which is not installed."
        raise CatalogError(message) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # The driver would otherwise begin transactions by its own rules, and late: two readers that both turn writers would fail.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    keep_a_log_ahead(connection)
    # WAL with NORMAL survives a killed process without loss; only a power cut may take back the last commits, and then the work is redone.
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def keep_a_log_ahead(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging, unless another process is about to: the file remembers it, and the change does not wait for locks."""
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _revision(connection: Connection) -> str | None:
    try:
        found = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    except (OperationalError, ProgrammingError) as error:
        if "alembic_version" in str(error.orig):
            return None
        raise
    return None if found is None else str(found)
