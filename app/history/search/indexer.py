"""Indexing in the background what has no entries, or entries by other rules: old databases, imports."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.errors import StorageFailed
from app.history.database import Database
from app.history.listing import IS_OPEN
from app.history.search.index import SEARCH_VERSION, Entry, add_entry, index_title, is_outdated, put_entry
from app.history.search.terms import terms
from app.history.tables import ConversationTable, MessageTable, RunTable, SearchEntryTable

# What is written at once: other writers wait no longer than for this
_MESSAGES = 25
_TERM_CHARS = 40_000
_CONVERSATIONS = 20
_EVERY_S = 60.0
_PAUSE_S = 0.02
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some messages of a conversation with their terms. `position` is the last one's; `is_last`: none come behind."""

    conversation_id: str
    is_first: bool
    is_last: bool
    position: int
    messages: list[tuple[str, datetime, str]]


class Indexer:
    """Brings every conversation's entries up to `SEARCH_VERSION`, for as long as the server lives."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._positions: dict[str, int] = {}
        self._unreadable: set[str] = set()
        self._nudged = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "index")

    def close(self) -> None:
        """End its thread, after the piece that it is at."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    def nudge(self) -> None:
        """There may be something to index now. Call it on the event loop."""
        self._nudged.set()

    async def run(self) -> None:
        """Index whatever is not indexed, whenever there is any."""
        while True:
            self._nudged.clear()
            try:
                while await self._index_some_and_rest():
                    pass
            except Exception:  # without this job the search would stay incomplete until the next start
                _log.exception("indexing failed; trying again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._nudged.wait(), _EVERY_S)

    async def _index_some_and_rest(self) -> int:
        began = time.monotonic()
        count = await asyncio.get_running_loop().run_in_executor(self._worker, self.index_some)
        await asyncio.sleep(max(_PAUSE_S, time.monotonic() - began))
        return count

    def index_some(self, limit: int = _MESSAGES) -> int:
        """Index some messages, in one short transaction; how many conversations they are of, 0 if nothing is left.

        A conversation that is being answered is left until it is not.

        Raises:
            StorageFailed: the database gave an error; the same is tried the next time.
        """
        parts = self._parts(limit)
        if parts:
            with self._database.writing() as db:
                for part in parts:
                    _write(db, part)
        # Only now, as what was not committed has to be written again
        for part in parts:
            self._positions.pop(part.conversation_id, None)
            if not part.is_last:
                self._positions[part.conversation_id] = part.position
        return len(parts)

    def _parts(self, limit: int) -> list[_Part]:
        """What is to be written next. Texts do not change any more, so their terms are found before anybody waits."""
        is_open = exists().where(RunTable.conversation_id == ConversationTable.id, IS_OPEN)
        query = (
            select(ConversationTable.id)
            .where(
                is_outdated(),
                ConversationTable.deleted_at.is_(None),
                ConversationTable.id.not_in(self._unreadable),
                ~is_open,
            )
            .limit(_CONVERSATIONS)
        )
        with self._database.reading() as db:
            conversation_ids = db.scalars(query).all()
        parts: list[_Part] = []
        chars = 0
        for conversation_id in conversation_ids:
            try:
                with self._database.reading() as db:
                    part = self._part(db, conversation_id, limit, _TERM_CHARS - chars)
            except (StorageFailed, ValueError):
                if not self._database.is_answering():
                    raise
                _log.error("conversation %s cannot be read, so it cannot be found", conversation_id)
                self._unreadable.add(conversation_id)
                continue
            parts.append(part)
            limit -= len(part.messages)
            chars += sum(len(joined) for _, _, joined in part.messages)
            if limit <= 0 or chars >= _TERM_CHARS:
                break
        return parts

    def _part(self, db: Session, conversation_id: str, limit: int, chars: int) -> _Part:
        position = self._positions.get(conversation_id)
        rows = db.execute(
            select(
                MessageTable.id,
                MessageTable.position,
                MessageTable.created_at,
                MessageTable.text,
                MessageTable.reasoning,
            )
            .where(MessageTable.conversation_id == conversation_id, MessageTable.position > (position or 0))
            .order_by(MessageTable.position)
            .limit(limit + 1)
        )
        messages: list[tuple[str, datetime, str]] = []
        last = position or 0
        is_last = True
        for row in rows:
            if len(messages) == limit or (messages and chars <= 0):
                is_last = False
                break
            joined = " ".join(terms(row.text, row.reasoning))
            messages.append((row.id, row.created_at, joined))
            chars -= len(joined)
            last = row.position
        return _Part(conversation_id, position is None, is_last, last, messages)


def _write(db: Session, part: _Part) -> None:
    row = db.scalar(
        select(ConversationTable)
        .where(ConversationTable.id == part.conversation_id, ConversationTable.deleted_at.is_(None), is_outdated())
        .with_for_update(key_share=True)
    )
    if row is None:
        return
    if part.is_first:
        index_title(db, row.owner_id, row.id, row.title)
    known = set(
        db.scalars(
            select(SearchEntryTable.message_id).where(
                SearchEntryTable.message_id.in_([message_id for message_id, _, _ in part.messages])
            )
        )
    )
    for message_id, moment, joined in part.messages:
        entry = Entry(row.owner_id, row.id, message_id, joined)
        if message_id in known or (joined and not add_entry(db, moment, entry)):
            put_entry(db, row.owner_id, row.id, message_id, joined)
    if part.is_last:
        row.search_version = SEARCH_VERSION
