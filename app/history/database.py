"""The database: opening it, its transactions, its migrations.

SQLite is run so that an accepted message survives a power cut (WAL, synchronous FULL) and so that writers queue instead
of failing (BEGIN IMMEDIATE, one writer in this process).
"""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from app.errors import BadRequest, StorageFailed

_MIGRATIONS = Path(__file__).parents[2] / "migrations"
_PRAGMAS = {
    "journal_mode": "wal",
    "synchronous": 2,
    "busy_timeout": 5000,
    "foreign_keys": 1,
    "cell_size_check": 1,
    "journal_size_limit": 64 * 1024 * 1024,
}
_log = logging.getLogger(__name__)


class Database:
    """One database; `reading` and `writing` give sessions that live as long as their `with`."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        try:
            if self.is_sqlite and self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageFailed(
                f"The folder of the database {self.url.database} cannot be made: {error.strerror}. "
                "Set PONDER_DATA_DIR to a folder that can be written."
            ) from error
        # Neither logs nor tracebacks shall hold what people wrote
        self.is_in_memory = self.is_sqlite and not self.url.database
        # One connection is the whole database there, so its threads take turns
        one_connection = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
        self.engine: Engine = create_engine(
            self.url, hide_parameters=True, **(one_connection if self.is_in_memory else {})
        )
        if self.is_sqlite:
            event.listen(self.engine, "connect", _prepare_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        self._readers = sessionmaker(self.engine, expire_on_commit=False)
        self._writers = sessionmaker(self.engine.execution_options(is_writer=True), expire_on_commit=False)
        self._one_writer = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading; readers never wait for the writer.

        Raises:
            StorageFailed: the database gave an error.
        """
        turn = self._one_writer if self.is_in_memory else nullcontext()
        with _storage_errors(), turn, self._readers() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction: committed when its `with` ends well, rolled back otherwise.

        Raises:
            StorageFailed: the database gave an error.
        """
        with _storage_errors(), self._one_writer, self._writers.begin() as db:
            yield db

    def migrate(self) -> None:
        """Bring the tables to the newest revision; two processes starting at once migrate once.

        Raises:
            StorageFailed: the database gave an error.
        """
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        with _storage_errors():
            if self.is_sqlite and self.url.database:
                with FileLock(f"{self.url.database}.lock"):
                    self._upgrade(config)
            else:
                self._upgrade(config)

    def _upgrade(self, config: Config) -> None:
        with self.engine.execution_options(is_writer=True).begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_answering(self) -> bool:
        """Whether a query works now."""
        try:
            with self.engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except DBAPIError:
            _log.exception("the database does not answer")
            return False
        return True

    def size_bytes(self) -> int | None:
        """What the database takes on the disk, what is not yet written back included; None if it is elsewhere."""
        if not self.is_sqlite or not self.url.database:
            return None
        files = (Path(f"{self.url.database}{ending}") for ending in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()


def _prepare_sqlite(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    assert isinstance(connection, sqlite3.Connection)
    # The driver's own transactions begin too late and deferred; ours begin in _begin_sqlite
    connection.isolation_level = None
    for name, value in _PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {value}")
        if name != "cell_size_check":
            (set_value,) = connection.execute(f"PRAGMA {name}").fetchone()
            if set_value != value and connection.execute("PRAGMA database_list").fetchone()[2]:
                raise sqlite3.OperationalError(f"PRAGMA {name} is {set_value!r} and not {value!r}")


def _begin_sqlite(connection: Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise BadRequest("The request has characters that cannot be kept.") from error
    except DBAPIError as error:
        # PostgreSQL puts values into the lines behind the first
        cause = str(error.orig).partition("\n")[0]
        _log.error("the database failed: %s", cause)
        raise StorageFailed(_sentence(cause)) from error


def _sentence(cause: str) -> str:
    if "full" in cause:
        return "The server's disk is full, so nothing new can be saved. Your text is still here; try again later."
    if "locked" in cause:
        return "The database is busy. Your text is still here; try again in a few seconds."
    if "readonly" in cause or "read-only" in cause:
        return "The server may not write to its database. Whoever runs it must make its data folder writable."
    return "The database could not do this. Your text is still here; try again in a moment."
