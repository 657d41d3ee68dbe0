"""Copies of a SQLite database: taken while it is in use, proved, kept for a while, put back."""

import logging
import os
import re
import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import create_engine

from app.errors import StorageFailed
from app.history.migrating import refuse_unknown, revision_of
from app.history.sqlite import damage_in, open_file

KEPT = 3
KEPT_DAYS = 30
_STAMP = r"\d{8}T\d{6}Z"
_log = logging.getLogger(__name__)


def folder_of(file: Path) -> Path:
    """Where the snapshots of a database lie."""
    return file.parent / "snapshots"


def take(file: Path, target: Path | None = None) -> Path:
    """Copy the database while others read and write it, prove the copy, and only then give it its name.

    Without a `target` it goes to the snapshots, of which only the newest are kept.

    Raises:
        StorageFailed: it cannot be copied, or the copy is not sound; nothing is left of it.
    """
    into = target or folder_of(file) / f"{file.stem}-{_revision(file) or 'empty'}-{_stamp()}.sqlite"
    partial = into.with_name(f".{into.name}.partial")
    try:
        into.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.unlink(missing_ok=True)
        # VACUUM INTO writes into a file that is empty, so nobody else can read it in between
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _copy(file, partial)
        problem = damage_in(partial, is_thorough=True)
        if problem:
            raise StorageFailed(f"The copy of {file} is not sound, so the database may not be either: {problem}.")
        _give_to_owner_of(file, partial, *([] if target else [into.parent]))
        _sync(partial)
        partial.replace(into)
        _sync(into.parent)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"{file} could not be copied to {into}: {_cause(error)}.") from error
    finally:
        partial.unlink(missing_ok=True)
    if target is None:
        remove_old(file)
    return into


def restore(file: Path, snapshot: Path) -> Path | None:
    """Put a snapshot in the database's place; where the old file is now, None if there was none.

    Nobody may have the database open.

    Raises:
        StorageFailed: the snapshot is not sound, or of a newer Ponder; the database is as it was.
    """
    if not snapshot.is_file():
        raise StorageFailed(f"There is no file {snapshot}. Snapshots lie in {folder_of(file)}.")
    problem = damage_in(snapshot, is_thorough=True)
    if problem:
        raise StorageFailed(f"{snapshot} is not sound, so nothing was changed: {problem}.")
    revision = _revision(snapshot)
    if not revision:
        raise StorageFailed(f"{snapshot} is no database of Ponder's, so nothing was changed.")
    refuse_unknown(revision, f"in {snapshot}")
    partial = file.with_name(f".{file.name}.partial")
    old = file.with_name(f"{file.name}.{_stamp()}.before-restore") if file.exists() else None
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial.unlink(missing_ok=True)
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        _copy(snapshot, partial)
        _give_to_owner_of(file if old is not None else file.parent, partial)
        _sync(partial)
        if old is not None:
            _set_aside(file, old)
        partial.replace(file)
        _sync(file.parent)
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(f"{snapshot} could not be put in the place of {file}: {_cause(error)}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return old


def remove_old(file: Path) -> int:
    """Remove snapshots but the newest, and everything of more than thirty days; how many files.

    What people deleted is still in them, so this is part of forgetting it.
    """
    mine = re.compile(rf"{re.escape(file.stem)}-\w+-{_STAMP}\.sqlite")
    snapshots = [path for path in folder_of(file).glob("*.sqlite") if mine.fullmatch(path.name)]
    snapshots.sort(key=lambda path: path.stem.rpartition("-")[2], reverse=True)
    set_aside = list(file.parent.glob(f"{file.name}.*.before-restore*"))
    oldest = time.time() - KEPT_DAYS * 86400
    removed = 0
    for path in [*snapshots[KEPT:], *(path for path in [*snapshots[:KEPT], *set_aside] if _mtime(path) < oldest)]:
        try:
            path.unlink()
            removed += 1
        except OSError as error:
            _log.error("the old snapshot %s cannot be removed: %s", path, error.strerror)
    return removed


def newest(file: Path) -> Path | None:
    """The snapshot that was taken last."""
    return max(folder_of(file).glob(f"{file.stem}-*.sqlite"), key=_mtime, default=None)


def _copy(file: Path, into: Path) -> None:
    connection = open_file(file, mode="ro")
    try:
        connection.execute("PRAGMA busy_timeout = 5000")
        connection.execute("VACUUM INTO ?", (str(into),))
    finally:
        connection.close()


def _give_to_owner_of(model: Path, *paths: Path) -> None:
    """What root makes at the command line is of use to the app only if it is the app's."""
    if os.geteuid() == 0:
        owner = model.stat()
        for path in paths:
            os.chown(path, owner.st_uid, owner.st_gid)


def _set_aside(file: Path, old: Path) -> None:
    """The log of writes belongs to the file; under its old name it would be taken for the new one's."""
    Path(f"{file}-shm").unlink(missing_ok=True)
    for ending in ("-wal", ""):
        beside = Path(f"{file}{ending}")
        if beside.exists():
            beside.rename(f"{old}{ending}")


def _revision(file: Path) -> str:
    engine = create_engine("sqlite://", creator=lambda: open_file(file, mode="ro"))
    try:
        with engine.connect() as connection:
            return revision_of(connection)
    finally:
        engine.dispose()


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause(error: OSError | sqlite3.Error) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
