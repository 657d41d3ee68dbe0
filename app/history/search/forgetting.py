"""Words of what was deleted go from the files too, not from the answers alone."""

import logging
import sqlite3
import time
from contextlib import suppress

from sqlalchemy import text

from app.errors import StorageFailed
from app.history.database import Database
from app.history.sqlite import PRAGMAS

# Leaves of 4 kB that are merged at once; other writers wait no longer than for these
_PAGES = 80
_PAUSE_S = 0.01
_TRIES = 5
_WAIT_MS = 20
_log = logging.getLogger(__name__)

_MERGE = text("INSERT INTO search_terms (search_terms, rank) VALUES ('merge', :pages)")
_CHANGES = text("SELECT total_changes()")


def forget_deleted(database: Database) -> bool:
    """Clear the words of rows that are gone from SQLite's files: from the search's pages and the log of writes.

    FTS5 notes that a row is gone and keeps its words until it merges, so everything is merged: seconds for a large
    index, in steps between which others write. Relies on `secure_delete`, which overwrites what pages held.
    PostgreSQL does this by itself when it vacuums. False if somebody was reading, so that the log still has them.

    Raises:
        StorageFailed: the database gave an error.
    """
    if not database.is_sqlite:
        return True
    pages = -_PAGES  # a negative number begins a merge of everything, positive ones go on with it
    while True:
        with database.writing() as db:
            before = db.scalar(_CHANGES) or 0
            db.execute(_MERGE, {"pages": pages})
            changes = (db.scalar(_CHANGES) or 0) - before
        if changes < 2:
            break
        pages = _PAGES
        time.sleep(_PAUSE_S)
    return _empty_log(database)


def _empty_log(database: Database) -> bool:
    connection = database.engine.raw_connection()
    try:
        cursor = connection.cursor()
        # While it waits for readers it holds the place of the one writer
        cursor.execute(f"PRAGMA busy_timeout = {_WAIT_MS}")
        for _ in range(_TRIES):
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            is_busy, _, _ = cursor.fetchone() or (0, 0, 0)
            if not is_busy:
                return True
            time.sleep(_PAUSE_S)
        _log.info("the log of writes is being read, so it is emptied the next time")
        return False
    except sqlite3.Error as error:
        raise StorageFailed(
            "The database could not do this. Your text is still here; try again in a moment."
        ) from error
    finally:
        with suppress(sqlite3.Error):
            connection.cursor().execute(f"PRAGMA busy_timeout = {PRAGMAS['busy_timeout']}")
        connection.close()
