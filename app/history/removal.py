"""What was deleted goes for good: rows in pieces that hold no writer up, then what is left of the words in files."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, select

from app.errors import StorageFailed
from app.history.database import Database
from app.history.search.forgetting import forget_deleted
from app.history.store import UNDO, now
from app.history.tables import ConversationTable, MessageTable

_CONVERSATIONS = 20
_MESSAGES = 500
_EVERY_S = 3.0
_log = logging.getLogger(__name__)


def remove_conversations(database: Database, which: ColumnElement[bool]) -> int:
    """Remove the rows of conversations with all that hangs on them; how many there were.

    Raises:
        StorageFailed: the database gave an error; what was removed before stays removed.
    """
    removed = 0
    while True:
        with database.writing() as db:
            ids = db.scalars(select(ConversationTable.id).where(which).limit(_CONVERSATIONS)).all()
            if not ids:
                return removed
            # Children have later positions than their parents: from the end, no row takes others along than these
            last = db.scalars(
                select(MessageTable.id)
                .where(MessageTable.conversation_id.in_(ids))
                .order_by(MessageTable.position.desc())
                .limit(_MESSAGES)
            ).all()
            db.execute(delete(MessageTable).where(MessageTable.id.in_(last)))
            # What a row took along is not counted by the database; SQLite goes no deeper than a thousand rows
            if len(last) < _MESSAGES:
                db.execute(delete(ConversationTable).where(ConversationTable.id.in_(ids)))
                removed += len(ids)


class Removal:
    """Removes what cannot be undone any more, for as long as the server lives."""

    def __init__(self, database: Database, *, undo: timedelta = UNDO, every_s: float = _EVERY_S) -> None:
        self._database = database
        self._undo = undo
        self._every_s = every_s
        # How many deletions the files have no words of any more; none is known of the process before this one
        self._forgotten = -1
        self._rests_until = 0.0
        self._nudged = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "removal")

    def remove_deleted(self) -> int:
        """Remove conversations whose deletion is final; how many.

        Raises:
            StorageFailed: the database gave an error; the rest is left for the next time.
        """
        return remove_conversations(self._database, ConversationTable.deleted_at < now() - self._undo)

    def forget(self) -> None:
        """Clear the words of whatever was removed, by anybody, from the search's pages and from the log of writes.

        Raises:
            StorageFailed: the database gave an error.
        """
        began, seen = time.monotonic(), self._database.deletions
        if forget_deleted(self._database):
            self._forgotten = seen
        # It reads and writes all of a large index: at most half of the time
        self._rests_until = 2 * time.monotonic() - began

    def forget_soon(self) -> None:
        """Somebody's everything was removed: do not wait for the next time. Call it on the event loop."""
        self._nudged.set()

    def close(self) -> None:
        """End its thread, after the piece that it is at."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def run(self) -> None:
        """Remove every few seconds, and forget whenever something was removed."""
        loop = asyncio.get_running_loop()
        while True:
            self._nudged.clear()
            try:
                await loop.run_in_executor(self._worker, self.remove_deleted)
                if self._database.deletions != self._forgotten and time.monotonic() >= self._rests_until:
                    await loop.run_in_executor(self._worker, self.forget)
            except StorageFailed:
                pass  # logged where it failed
            except Exception:  # a job that has died would break what the privacy page promises
                _log.exception("removing what was deleted failed; trying again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), self._every_s)
