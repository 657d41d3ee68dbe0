"""What was deleted goes for good: rows in pieces that hold no writer up, then what is left of the words in files."""

import asyncio
import logging
import time

from sqlalchemy import ColumnElement, delete, select

from app.errors import StorageFailed
from app.history.database import Database
from app.history.search.forgetting import forget_deleted
from app.history.store import UNDO, now
from app.history.tables import ConversationTable, MessageTable

_CONVERSATIONS = 20
_MESSAGES = 500
_EVERY_S = 5.0
_FORGET_EVERY_S = 600.0
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

    def __init__(self, database: Database) -> None:
        self._database = database
        self._has_to_forget = True  # the last process may have ended before it did
        self._forgot_at = 0.0
        self._nudged = asyncio.Event()

    def remove_deleted(self) -> int:
        """Remove conversations whose deletion is final; how many.

        Raises:
            StorageFailed: the database gave an error; the rest is left for the next time.
        """
        removed = remove_conversations(self._database, ConversationTable.deleted_at < now() - UNDO)
        self._has_to_forget = self._has_to_forget or removed > 0
        return removed

    def forget(self) -> None:
        """Clear the words of what was removed from the search's pages and from the log of writes.

        Raises:
            StorageFailed: the database gave an error.
        """
        forget_deleted(self._database)
        self._has_to_forget, self._forgot_at = False, time.monotonic()

    def forget_soon(self) -> None:
        """Somebody's everything was removed: do not wait for the next time. Call it on the event loop."""
        self._has_to_forget, self._forgot_at = True, 0.0
        self._nudged.set()

    async def run(self) -> None:
        """Remove every few seconds; forget at most every ten minutes unless asked to."""
        while True:
            try:
                await asyncio.to_thread(self.remove_deleted)
                is_due = self._forgot_at == 0.0 or time.monotonic() - self._forgot_at > _FORGET_EVERY_S
                if self._has_to_forget and is_due:
                    await asyncio.to_thread(self.forget)
            except StorageFailed:
                pass  # logged where it failed
            except Exception:  # a job that has died would break what the privacy page promises
                _log.exception("removing what was deleted failed; trying again")
            try:
                await asyncio.wait_for(self._nudged.wait(), _EVERY_S)
            except TimeoutError:
                continue
            self._nudged.clear()
