"""Finding: newest first, what is the asker's alone, a bounded amount of work a page."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import and_, func, select, text
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.history.database import Database
from app.history.search.index import is_outdated
from app.history.search.snippet import has_runs, snippet
from app.history.search.terms import OWNER, Needle, needles
from app.history.tables import ConversationTable, MessageTable, SearchEntryTable

_QUERY_CHARS = 1000
_QUERY_WORDS = 32
# So many entries are looked at for a page at most: beyond, the page is short and its cursor goes on from there
_CANDIDATES = 2000
_AT_ONCE = 10
# So many of the newest are walked through, and as many again while so many of them are found
_WALKED = 1000
_COMMON = 4
_WALKS = 5
_END = 2**63 - 1

_UNINDEXED = select(ConversationTable.id).where(is_outdated(), ConversationTable.deleted_at.is_(None)).limit(1)
_FTS5 = text("SELECT rowid FROM search_terms WHERE search_terms MATCH :query AND rowid < :before ORDER BY rowid DESC")
_GIN = text("""
    WITH found AS MATERIALIZED (
        SELECT id FROM search_entries
        WHERE array_to_tsvector(string_to_array('@' || owner_id || ' ' || terms, ' ')) @@ CAST(:query AS tsquery)
    )
    SELECT id FROM found WHERE id < :before ORDER BY id DESC LIMIT :rows
""")


@dataclass(frozen=True, slots=True)
class Hit:
    """The newest place in a conversation, on this page, that has every word. `message_id` is None for a title.

    `where` is "title", "question", "answer" or "reasoning"; `marks` are pairs of offsets into `text`, in UTF-16 units.
    """

    conversation_id: str
    message_id: str | None
    where: str
    text: str
    marks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A page of hits. It may be short, even empty, with a `next_cursor`: the search has gone through enough at once.

    `is_complete`: everything is indexed, so that nothing can be missing.
    """

    hits: list[Hit]
    next_cursor: str | None
    is_complete: bool


@dataclass(frozen=True, slots=True)
class _Row:
    conversation_id: str
    message_id: str | None
    title: str


class Search:
    """Search in a person's titles and messages. Synchronous; raises `StorageFailed` throughout."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, owner_id: str, query: str, cursor: str | None = None, limit: int = 50) -> Found:
        """What has every word of the query, the last one as far as it is typed; newest first.

        A conversation is once on a page, with its newest hit, and may come again on a later page.

        Raises:
            BadRequest: the cursor is none of ours.
        """
        before = _before(cursor)
        wanted = needles(query[:_QUERY_CHARS])
        if len(wanted) > _QUERY_WORDS:
            wanted = sorted(wanted, key=lambda needle: len(needle.text))[-_QUERY_WORDS:]
        with self._database.reading() as db:
            is_complete = db.scalar(_UNINDEXED) is None
            if not wanted:
                return Found([], None, is_complete)
            ids = _ids(db, owner_id, wanted, before, is_sqlite=self._database.is_sqlite)
            hits, last = self._page(db, owner_id, wanted, ids, limit)
        return Found(hits, str(last) if last is not None else None, is_complete)

    def _page(
        self, db: Session, owner_id: str, wanted: list[Needle], ids: Iterator[int], limit: int
    ) -> tuple[list[Hit], int | None]:
        """A page of hits, and the last id it went through if there is more behind it."""
        hits: dict[str, Hit] = {}
        looked_at = 0
        while some := list(islice(ids, max(_AT_ONCE, limit - len(hits)))):
            rows = _rows(db, owner_id, some)
            for number, entry_id in enumerate(some, 1):
                row = rows.get(entry_id)
                if row is None or row.conversation_id in hits:
                    continue
                hit = _hit(db, row, wanted)
                if hit is not None:
                    hits[row.conversation_id] = hit
                if len(hits) == limit:
                    has_more = number < len(some) or next(ids, None) is not None
                    return list(hits.values()), entry_id if has_more else None
            looked_at += len(some)
            if looked_at >= _CANDIDATES and next(ids, None) is not None:
                return list(hits.values()), some[-1]
        return list(hits.values()), None


def _before(cursor: str | None) -> int:
    if cursor is None:
        return _END
    if not re.fullmatch("[0-9]{1,18}", cursor, re.ASCII):
        raise BadRequest("The cursor cannot be used. Begin at the first page again.")
    return int(cursor)


def _ids(db: Session, owner_id: str, wanted: list[Needle], before: int, *, is_sqlite: bool) -> Iterator[int]:
    """Entries that have every term, newest first, found as they are asked for.

    An index collects all that begins with a prefix before it gives the first, and GIN all that has a word. So the
    newest entries are walked through first: what is common is found there, and what is not is rare enough to collect.
    """
    if is_sqlite and not _prefixes(wanted):
        yield from _ids_of_fts5(db, owner_id, wanted, before)
        return
    for _ in range(1 if is_sqlite else _WALKS):
        rows = _walk(db, owner_id, wanted, before, func.instr if is_sqlite else func.strpos)
        found = [entry_id for entry_id, is_found in rows if is_found]
        yield from found
        if len(rows) < _WALKED:
            return
        before = rows[-1][0]
        if len(found) < _COMMON:
            break
    yield from (_ids_of_fts5 if is_sqlite else _ids_of_gin)(db, owner_id, wanted, before)


def _walk(
    db: Session, owner_id: str, wanted: list[Needle], before: int, place: Callable[..., Any]
) -> list[tuple[int, bool]]:
    newest = (
        select(SearchEntryTable.id, (" " + SearchEntryTable.terms + " ").label("terms"))
        .where(SearchEntryTable.owner_id == owner_id, SearchEntryTable.id < before)
        .order_by(SearchEntryTable.id.desc())
        .limit(_WALKED)
        .subquery()
    )
    parts = [f" {term} " for term in _terms(wanted)] + [f" {prefix}" for prefix in _prefixes(wanted)]
    is_found = and_(*(place(newest.c.terms, part) > 0 for part in parts))
    return [(row[0], bool(row[1])) for row in db.execute(select(newest.c.id, is_found).order_by(newest.c.id.desc()))]


def _ids_of_fts5(db: Session, owner_id: str, wanted: list[Needle], before: int) -> Iterator[int]:
    parts = [f'"{OWNER}{owner_id}"', *(f'"{term}"' for term in _terms(wanted))]
    parts += [f'"{prefix}" *' for prefix in _prefixes(wanted)]
    return iter(db.scalars(_FTS5, {"query": " AND ".join(parts), "before": before}))


def _ids_of_gin(db: Session, owner_id: str, wanted: list[Needle], before: int) -> Iterator[int]:
    # Nothing but the index may be used, and its list of rows must not fall back to pages: both would take the terms of
    # every row apart. Compiling the query takes longer than running it
    for setting in ("enable_seqscan = off", "work_mem = '64MB'", "jit = off"):
        db.execute(text(f"SET LOCAL {setting}"))
    parts = [f"'{OWNER}{owner_id}'", *(f"'{term}'" for term in _terms(wanted))]
    parts += [f"'{prefix}':*" for prefix in _prefixes(wanted)]
    return iter(db.scalars(_GIN, {"query": " & ".join(parts), "before": before, "rows": _CANDIDATES + 1}))


def _terms(wanted: list[Needle]) -> list[str]:
    return list(dict.fromkeys(term for needle in wanted for term in needle.terms()))


def _prefixes(wanted: list[Needle]) -> list[str]:
    return [prefix for needle in wanted if (prefix := needle.prefix()) is not None]


def _rows(db: Session, owner_id: str, ids: Sequence[int]) -> dict[int, _Row]:
    """Those of the entries that are still the owner's to be found."""
    entries = db.execute(
        select(SearchEntryTable.id, SearchEntryTable.conversation_id, SearchEntryTable.message_id).where(
            SearchEntryTable.id.in_(ids)
        )
    ).all()
    # Sorted out here, as a planner may else begin with everything that the owner has
    conversations = {
        row.id: row
        for row in db.execute(
            select(
                ConversationTable.id, ConversationTable.owner_id, ConversationTable.deleted_at, ConversationTable.title
            ).where(ConversationTable.id.in_({entry.conversation_id for entry in entries}))
        )
        if row.owner_id == owner_id and row.deleted_at is None
    }
    return {
        entry.id: _Row(entry.conversation_id, entry.message_id, conversations[entry.conversation_id].title)
        for entry in entries
        if entry.conversation_id in conversations
    }


def _hit(db: Session, row: _Row, wanted: list[Needle]) -> Hit | None:
    """The place in the texts; None if the pairs of a word are there and the word is not, or the text has gone."""
    texts: dict[str, str] = {}
    if row.message_id is None:
        texts["title"] = row.title
    else:
        message = db.execute(
            select(MessageTable.role, MessageTable.text, MessageTable.reasoning).where(
                MessageTable.id == row.message_id
            )
        ).first()
        if message is None:
            return None
        if message.role == "user":
            texts["question"] = message.text
        else:
            texts |= {"answer": message.text, "reasoning": message.reasoning}
    if not has_runs(texts.values(), wanted):
        return None
    snippets = {where: snippet(text, wanted) for where, text in texts.items()}
    where, best = max(snippets.items(), key=lambda item: item[1].words)
    return Hit(row.conversation_id, row.message_id, where, best.text, best.marks)
