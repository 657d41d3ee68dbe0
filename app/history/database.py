"""The database: opening it, its transactions, its start and its end.

SQLite is run so that an accepted message survives a power cut (WAL, synchronous FULL) and so that writers queue instead
of failing (BEGIN IMMEDIATE, one writer in this process). On PostgreSQL several writers are at work at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from sqlalchemy import Engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.orm import Session, sessionmaker
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from app.errors import BadRequest, BadSetting, StorageFailed
from app.history import migrating, snapshots
from app.history.postgresql import (
    is_passing,
    is_stuck_server,
    is_unreachable,
    lock_migrations,
    server_engine,
    with_driver,
)
from app.history.sqlite import (
    Identity,
    damage_in,
    file_engine,
    file_of,
    identity_of,
    is_damage,
    is_empty,
    is_stuck_file,
    is_writable,
    make_empty,
    memory_engine,
    refuse_lost,
    refuse_network_file_system,
)

T = TypeVar("T")
# What takes people's words along: from these tables they are in the search's pages, too
_DELETING = ("DELETE FROM people", "DELETE FROM conversations", "DELETE FROM messages", "DELETE FROM search_entries")
# What is checked before the port is open; more of it would keep people waiting
_QUICKLY_CHECKED_BYTES = 200 * 1024 * 1024
_CLAIM_S = 3.0
# As long as SQLite waits for another process
_TURN_S = 5.0
_SHORTEST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 10.0
# PostgreSQL looks for deadlocks after a second: with four tries nobody waits much longer than that three times
_TRIES = 4
_FIRST_WAIT_S = 0.05
_log = logging.getLogger(__name__)


class Database:
    """One database; `reading` and `writing` give sessions that live as long as their `with`.

    Raises:
        StorageFailed: its folder cannot be made, or lies on a network file system.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = with_driver(make_url(url))
        except ArgumentError as error:
            raise BadSetting("PONDER_DATABASE_URL cannot be used: it is no address of a database.") from error
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.file = file_of(self.url)
        self.is_in_memory = self.is_sqlite and self.file is None
        self.damage = ""
        # How often people's words were deleted from the file, by whomever: what has to be forgotten is seen by it
        self.deletions = 0
        # A write failed for a reason that lasts, like a full disk, and none was tried by `is_answering` since
        self._is_stuck = False
        self._identity: Identity | None = None
        self._claim: FileLock | None = None
        self._unreachable_until = 0.0
        self.engine = self._engine()
        # On PostgreSQL each statement sees what is committed by then, in a transaction or not: beginning and ending one
        # would cost two more ways to the server
        reading = {} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"}
        self._readers = sessionmaker(self.engine.execution_options(**reading), expire_on_commit=False)
        self._writers = sessionmaker(self.engine.execution_options(is_writer=True), expire_on_commit=False)
        self._one_writer = threading.Lock()

    # Transactions

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading; readers never wait for the writer, but in memory, where they take turns.

        Raises:
            StorageFailed: the database gave an error.
        """
        turn = self._turn() if self.is_in_memory else nullcontext()
        with self._storage_errors(), turn, self._readers() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction: committed when its `with` ends well, rolled back otherwise.

        Raises:
            StorageFailed: the database gave an error, or is damaged, or its file is gone.
        """
        self._refuse_to_write()
        turn = self._turn() if self.is_sqlite else nullcontext()
        with self._storage_errors(), turn, self._writers.begin() as db:
            yield db

    def transact(self, work: Callable[[Session], T]) -> T:
        """What `work` gives, done in a transaction; on PostgreSQL again where it failed by no fault of its own.

        It waits between two tries, for longer each time. A try may have been committed when its connection broke:
        `work` must be able to see that.

        Raises:
            StorageFailed: the database gave an error, for PostgreSQL's passing ones `_TRIES` times.
        """

        def once() -> T:
            with self.writing() as db:
                return work(db)

        return Retrying(
            retry=retry_if_exception(self._may_pass),
            stop=stop_after_attempt(_TRIES),
            # Whoever a deadlock was decided for must come to its lock before this transaction does once more
            wait=wait_exponential_jitter(multiplier=_FIRST_WAIT_S, jitter=_FIRST_WAIT_S),
            before_sleep=lambda _: _log.info("a transaction is tried once more"),
            reraise=True,
        )(once)

    # Start and end

    def claim(self) -> None:
        """This process alone serves the SQLite file until `close`; commands may work beside it. PostgreSQL is shared.

        Raises:
            StorageFailed: another process serves it.
        """
        if self.file is None or self._claim is not None:
            return
        self._claim = self._running_lock(
            _CLAIM_S,
            f"Another Ponder is running with the database {self.file}. Stop it first, or give this one a "
            "PONDER_DATA_DIR of its own. Several can only share a PostgreSQL (PONDER_DATABASE_URL).",
        )

    def migrate(self) -> None:
        """Bring the tables to the newest revision; two processes starting at once migrate once.

        A SQLite file that has tables is copied to its snapshots before.

        Raises:
            StorageFailed: the database gave an error, is damaged, or is a newer Ponder's; nothing was changed.
        """
        with self._storage_errors():
            if self.file is None:
                with self.engine.execution_options(is_writer=True).begin() as connection:
                    if not self.is_sqlite:
                        lock_migrations(connection)
                    migrating.refuse_unknown(migrating.revision_of(connection), self._name())
                    migrating.upgrade(connection)
            else:
                try:
                    refuse_lost(self.file, _mark_of(self.file), self._command())
                    make_empty(self.file)
                    with FileLock(_mark_of(self.file)):
                        self._migrate_file(self.file)
                except OSError as error:
                    raise StorageFailed(
                        f"The folder of the database {self.file} cannot be used: {error.strerror}. "
                        "Set PONDER_DATA_DIR to a folder that can be written."
                    ) from error

    def check(self) -> bool:
        """Read a whole SQLite file; with damage found, nothing is written to it any more. Whether it is sound."""
        if self.file is None or not self.file.exists():
            return True
        self.damage = damage_in(self.file)
        if self.damage:
            _log.error("the database %s is damaged (%s). %s", self.file, self.damage, self._remedy())
        return not self.damage

    @property
    def is_quickly_checked(self) -> bool:
        """Whether `check` takes no longer than a start may."""
        return (self.size_bytes() or 0) <= _QUICKLY_CHECKED_BYTES

    def is_answering(self) -> bool:
        """Whether a query works now, and writing is not known to be impossible; tried again where it last was."""
        try:
            self._refuse_to_write()
            if self._is_stuck:
                with self.writing() as db:
                    db.connection().exec_driver_sql("UPDATE alembic_version SET version_num = version_num")
                self._is_stuck = False
            with self.reading() as db:
                db.connection().exec_driver_sql("SELECT 1")
        except StorageFailed as error:
            _log.warning("the database does not answer: %s", error.message)
            return False
        return True

    def size_bytes(self) -> int | None:
        """What the database takes on the disk, what is not yet written back included; None if it is elsewhere."""
        if self.file is None:
            return None
        files = (Path(f"{self.file}{ending}") for ending in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Give back every connection, and the claim."""
        self.engine.dispose()
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    # Inside

    def _engine(self) -> Engine:
        if not self.is_sqlite:
            return server_engine(self.url)
        if self.file is None:
            return memory_engine(self.url)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StorageFailed(
                f"The folder of the database {self.file} cannot be made: {error.strerror}. "
                "Set PONDER_DATA_DIR to a folder that can be written."
            ) from error
        refuse_network_file_system(self.file.parent)
        engine = file_engine(self.url, self.file, self._refuse_another_file)
        event.listen(engine, "after_cursor_execute", self._count_deletion)
        return engine

    def _count_deletion(self, _connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(_DELETING) and cursor.rowcount:
            self.deletions += 1

    def _migrate_file(self, file: Path) -> None:
        try:
            with self.engine.connect() as connection:
                revision = migrating.revision_of(connection)
        except DBAPIError as error:
            if not self.damage:
                raise
            raise StorageFailed(f"The database {file} is damaged ({self.damage}). {self._remedy()}") from error
        migrating.refuse_unknown(revision, self._name())
        if revision == migrating.head():
            return
        if self.damage:
            raise StorageFailed(
                f"The database {file} is damaged ({self.damage}), so it is not migrated. {self._remedy()}"
            )
        lock = None
        if self._claim is None:
            lock = self._running_lock(
                0, f"{file} has to be migrated, and an older Ponder is running with it. Stop that one first."
            )
        try:
            if not is_empty(file):
                _log.info("the database was copied to %s before its migration", snapshots.take(file))
            with self.engine.execution_options(is_writer=True).begin() as connection:
                migrating.upgrade(connection)
        finally:
            if lock is not None:
                lock.release()

    def _running_lock(self, timeout_s: float, otherwise: str) -> FileLock:
        lock = FileLock(f"{self.file}.running")
        try:
            lock.acquire(timeout=timeout_s)
        except Timeout as error:
            raise StorageFailed(otherwise) from error
        except OSError as error:
            raise StorageFailed(
                f"The folder of the database {self.file} cannot be used: {error.strerror}. "
                "Set PONDER_DATA_DIR to a folder that can be written."
            ) from error
        return lock

    def _refuse_to_write(self) -> None:
        if self.damage:
            raise StorageFailed(
                "The server's database is damaged, so nothing new can be saved. What is there can still be read. "
                f"Whoever runs the server: {self._remedy()}"
            )
        self._refuse_another_file()
        if self.file is not None and not is_writable(self.file):
            raise StorageFailed(_READ_ONLY)

    def _refuse_another_file(self) -> None:
        """Connections that are open would go on writing into a file that has lost its name."""
        if self.file is None:
            return
        identity = identity_of(self.file)
        if self._identity is None:
            self._identity = identity
        elif identity != self._identity:
            raise StorageFailed(
                "The server's database file was moved, deleted or replaced while it was in use, so nothing can be "
                "saved. Whoever runs the server: put the file back, or start Ponder again."
            )

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """This process's only turn at writing; whoever waits too long for it is sent away."""
        if not self._one_writer.acquire(timeout=_TURN_S):
            raise StorageFailed(_BUSY)
        try:
            yield
        finally:
            self._one_writer.release()

    def _may_pass(self, error: BaseException) -> bool:
        cause = error.__cause__ if isinstance(error, StorageFailed) and not self.is_sqlite else None
        return isinstance(cause, DBAPIError) and is_passing(cause)

    def _remedy(self) -> str:
        return f"Stop Ponder, then put a copy back: {self._command()}"

    def _command(self) -> str:
        assert self.file is not None
        return f"python -m app restore {snapshots.newest(self.file) or 'FILE'}"

    def _name(self) -> str:
        return str(self.file or self.url.render_as_string(hide_password=True))

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        began = time.monotonic()
        if began < self._unreachable_until:
            raise StorageFailed(_UNREACHABLE)
        try:
            yield
        except DataError as error:
            raise BadRequest("The request has characters that cannot be kept.") from error
        except PoolExhausted as error:
            _log.error("every connection of the database is in use")
            raise StorageFailed(_BUSY) from error
        except DBAPIError as error:
            # PostgreSQL puts values into the lines behind the first
            cause = str(error.orig).partition("\n")[0]
            _log.error("the database failed: %s", cause)
            self._note(error, cause)
            if self.is_sqlite or not is_unreachable(error):
                raise StorageFailed(_sentence(cause)) from error
            if not error.connection_invalidated:
                # Reads are done on the event loop: it must not wait for a machine that is gone again and again
                pause_s = min(max(3 * (time.monotonic() - began), _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)
                self._unreachable_until = time.monotonic() + pause_s
            raise StorageFailed(_UNREACHABLE) from error

    def _note(self, error: DBAPIError, cause: str) -> None:
        """What an error says of those to come."""
        self._is_stuck = self._is_stuck or (is_stuck_file(error) if self.is_sqlite else is_stuck_server(error))
        if self.file is not None and not self.damage and is_damage(error):
            # Every further write could make it worse
            self.damage = cause
            _log.error("the database %s is damaged. %s", self.file, self._remedy())


_BUSY = "The database is busy. Your text is still here; try again in a few seconds."
_UNREACHABLE = "The server cannot reach its database just now. Your text is still here; try again in a few seconds."

_READ_ONLY = "The server may not write to its database. Whoever runs it must make its data folder writable."


def _mark_of(file: Path) -> Path:
    """What lies beside a file as soon as it was made: the lock of those who migrate it."""
    return Path(f"{file}.lock")


def _sentence(cause: str) -> str:
    if "full" in cause or "No space left" in cause:
        return "The server's disk is full, so nothing new can be saved. Your text is still here; try again later."
    if "locked" in cause or "timeout" in cause or "deadlock" in cause:
        return _BUSY
    if "readonly" in cause or "read-only" in cause:
        return _READ_ONLY
    if "not there" in cause:
        return "The server's database file is gone. Whoever runs it must put it back, or start Ponder again."
    return "The database could not do this. Your text is still here; try again in a moment."
