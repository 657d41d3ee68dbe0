"""SQLite: how its connections are opened, on which file systems, and whether a file is sound."""

import os
import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from app.errors import StorageFailed
from app.history.damage import loads

PRAGMAS: dict[str, int | str] = {
    "journal_mode": "wal",
    "synchronous": 2,
    "busy_timeout": 5000,
    "foreign_keys": 1,
    "secure_delete": 1,
    "temp_store": 2,
    "cell_size_check": 1,
    "journal_size_limit": 64 * 1024 * 1024,
}
# Cannot be read back, or is another in memory
_UNPROVED = frozenset({"cell_size_check"})
_UNPROVED_IN_MEMORY = frozenset({"journal_mode"})
_MOUNTS = Path("/proc/self/mountinfo")
# They lose locks or writes that SQLite believes in; a Hugging Face bucket is one of the fuse kind
_NETWORK_TYPES = ("fuse", "nfs", "9p", "cifs", "smb", "ceph", "afs", "lustre")
_LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs", "fuse-overlayfs", "fusectl"})
# Of the disk or the file, not of what was asked; the low byte is the kind of the error
_STUCK = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN})
# The whole code: a damaged index of the search has one of its own
_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_TABLES = "SELECT NOT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table')"

Identity = tuple[int, int]


def file_of(url: URL) -> Path | None:
    """The file of a SQLite address; None if it lives in memory, or is no SQLite."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def file_engine(url: URL, file: Path, check: Callable[[], None]) -> Engine:
    """An engine on a file that must be there: one that is gone is never made anew. `check` runs before each opening."""

    def connect() -> sqlite3.Connection:
        check()
        return open_file(file)

    engine = create_engine(url, creator=connect, pool_timeout=2, hide_parameters=True, json_deserializer=loads)
    event.listen(engine, "begin", _begin)
    return engine


def memory_engine(url: URL) -> Engine:
    """An engine on one database in memory, which is one connection for all threads: they must take turns."""
    engine = create_engine(
        url, creator=lambda: _prepared(_connect(":memory:")), poolclass=StaticPool, hide_parameters=True
    )
    event.listen(engine, "begin", _begin)
    return engine


def open_file(file: Path, *, mode: str = "rw") -> sqlite3.Connection:
    """A connection on a file that is there; `ro` for one that shall not be touched."""
    try:
        connection = _connect(f"file:{quote(str(file.absolute()))}?mode={mode}")
    except sqlite3.OperationalError as error:
        if file.exists():
            raise
        raise sqlite3.OperationalError("unable to open database file: it is not there") from error
    if mode == "ro":
        return connection
    try:
        return _prepared(connection)
    except sqlite3.Error:
        connection.close()
        raise


def make_empty(file: Path) -> None:
    """Make the file, for its owner alone, if there is none."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StorageFailed(
            f"The database {file} cannot be made: {error.strerror}. "
            "Set PONDER_DATA_DIR to a folder that can be written."
        ) from error


def refuse_lost(file: Path, mark: Path, command: str) -> None:
    """A file that was here before is not made anew: nobody would notice that all is gone. `mark` is as old as the file.

    Raises:
        StorageFailed: the mark is there and the file is not.
    """
    # In this order, as another process may be making the two
    if mark.exists() and not file.exists():
        raise StorageFailed(
            f"The database {file} is gone, and it was here before. Put it back, or a copy: {command}. "
            f"To begin with an empty one, delete {mark}."
        )


def is_writable(file: Path) -> bool:
    """Whether we may write to it; a file that is not there counts as one, as others see to that."""
    return not file.exists() or os.access(file, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def is_stuck_file(error: DBAPIError) -> bool:
    """Whether writing failed for a reason that lasts until somebody does something about it."""
    return _code_of(error) & 0xFF in _STUCK


def is_damage(error: DBAPIError) -> bool:
    """Whether SQLite found what no program would have written."""
    return _code_of(error) in _DAMAGE


def identity_of(file: Path) -> Identity | None:
    """Which file this name stands for now; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_empty(file: Path) -> bool:
    """Whether there is no table in it yet."""
    if not file.exists() or file.stat().st_size == 0:
        return True
    connection = open_file(file, mode="ro")
    try:
        return bool(connection.execute(_NO_TABLES).fetchone()[0])
    finally:
        connection.close()


def damage_in(file: Path, *, is_thorough: bool = False) -> str:
    """What SQLite finds wrong in a file, in its own words; "" if it is sound. Reads all of it."""
    try:
        connection = open_file(file, mode="ro")
        try:
            check = "integrity_check" if is_thorough else "quick_check"
            found = [str(row[0]) for row in connection.execute(f"PRAGMA {check}(3)")]
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            return ""
        return str(error)
    return "" if found == ["ok"] else "; ".join(line.partition("\n")[0] for line in found)


def refuse_network_file_system(folder: Path, mountinfo: str | None = None) -> None:
    """SQLite's locks do not hold there, and what was saved may be lost. Nothing is refused where mounts cannot be read.

    Raises:
        StorageFailed: the folder lies on such a file system; names it.
    """
    if mountinfo is None:
        try:
            mountinfo = _MOUNTS.read_text(errors="surrogateescape")
        except OSError:
            return
    mount, kind = _mount_of(os.path.realpath(folder), mountinfo.splitlines())
    if kind not in _LOCAL_FUSE and kind.startswith(_NETWORK_TYPES):
        raise StorageFailed(
            f"{folder} is on {mount}, a {kind} file system. A SQLite database would be damaged there. "
            "Set PONDER_DATA_DIR to a folder on a local disk, or PONDER_DATABASE_URL to a PostgreSQL."
        )


def _mount_of(path: str, lines: Iterable[str]) -> tuple[str, str]:
    """The mount point a path is below, and its type; of several at one place the last one is seen."""
    found = ("", "")
    for line in lines:
        before, separator, after = line.partition(" - ")
        fields = before.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4])
        is_above = mount == "/" or path == mount or path.startswith(f"{mount}/")
        if is_above and len(mount) >= len(found[0]):
            found = (mount, after.split(" ")[0])
    return found


def _connect(name: str) -> sqlite3.Connection:
    # The driver's own transactions begin too late and deferred; ours begin in _begin
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, uri=name.startswith("file:"))
    # A byte that was damaged costs a character, not the conversation; the driver's error would quote the text
    connection.text_factory = lambda raw: raw.decode(errors="replace")
    return connection


def _prepared(connection: sqlite3.Connection) -> sqlite3.Connection:
    is_in_memory = not connection.execute("PRAGMA database_list").fetchone()[2]
    unproved = _UNPROVED | (_UNPROVED_IN_MEMORY if is_in_memory else frozenset())
    for name, value in PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {value}").fetchall()
        if name in unproved:
            continue
        (set_value,) = connection.execute(f"PRAGMA {name}").fetchone()
        if set_value != value:
            raise sqlite3.OperationalError(f"PRAGMA {name} is {set_value!r} and not {value!r}")
    return connection


def _code_of(error: DBAPIError) -> int:
    return getattr(error.orig, "sqlite_errorcode", 0)


def _begin(connection: Connection) -> None:
    is_writer = connection.get_execution_options().get("is_writer", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_writer else "BEGIN")
