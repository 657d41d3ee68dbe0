"""Finding: newest first, what is the asker's alone, a bounded amount of work a page."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.history.database import Database
from app.history.search.index import is_indexed
from app.history.search.snippet import has_runs, snippet
from app.history.search.terms import OWNER, Needle, needles
from app.history.tables import ConversationTable, MessageTable, SearchEntryTable

_QUERY_CHARS = 1000
_QUERY_WORDS = 32
# So many entries are looked at for a page at most: beyond, the page is short and its cursor goes on from there
_CANDIDATES = 2000
_AT_ONCE = 50
_WALKED = 2000
_END = 2**63 - 1

_UNINDEXED = select(ConversationTable.id).where(~is_indexed(), ConversationTable.deleted_at.is_(None)).limit(1)
_FTS5 = text("SELECT rowid FROM search_terms WHERE search_terms MATCH :query AND rowid < :before ORDER BY rowid DESC")
_WALK = text("""
    SELECT count(*) AS rows, min(id) AS last, array_agg(id ORDER BY id DESC) FILTER (
        WHERE NOT EXISTS (SELECT FROM unnest(CAST(:parts AS text[])) AS part WHERE strpos(terms, part) = 0)
    ) AS found
    FROM (
        SELECT id, ' ' || terms || ' ' AS terms FROM search_entries
        WHERE owner_id = :owner_id AND id < :before ORDER BY id DESC LIMIT :rows
    ) AS newest
""")
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
            ids = (_ids_of_fts5 if self._database.is_sqlite else _ids_of_gin)(db, owner_id, wanted, before)
            hits, last = self._page(db, owner_id, wanted, ids, limit)
        return Found(hits, str(last) if last is not None else None, is_complete)

    def _page(
        self, db: Session, owner_id: str, wanted: list[Needle], ids: Iterator[int], limit: int
    ) -> tuple[list[Hit], int | None]:
        """A page of hits, and the last id it went through if there is more behind it."""
        hits: dict[str, Hit] = {}
        some = list(islice(ids, _AT_ONCE))
        looked_at = 0
        while some:
            rows = _rows(db, owner_id, some)
            behind = list(islice(ids, _AT_ONCE))
            for number, entry_id in enumerate(some, 1):
                row = rows.get(entry_id)
                if row is None or row.conversation_id in hits:
                    continue
                hit = _hit(db, row, wanted)
                if hit is not None:
                    hits[row.conversation_id] = hit
                if len(hits) == limit:
                    return list(hits.values()), entry_id if behind or number < len(some) else None
            looked_at += len(some)
            if looked_at >= _CANDIDATES and behind:
                return list(hits.values()), some[-1]
            some = behind
        return list(hits.values()), None


def _before(cursor: str | None) -> int:
    if cursor is None:
        return _END
    if not re.fullmatch("[0-9]{1,18}", cursor, re.ASCII):
        raise BadRequest("The cursor cannot be used. Begin at the first page again.")
    return int(cursor)


def _ids_of_fts5(db: Session, owner_id: str, wanted: list[Needle], before: int) -> Iterator[int]:
    """Entries that have every term, newest first, as they are asked for."""
    parts = [f'"{OWNER}{owner_id}"', *(f'"{term}"' for term in _terms(wanted))]
    parts += [f'"{prefix}" *' for prefix in _prefixes(wanted)]
    return iter(db.scalars(_FTS5, {"query": " AND ".join(parts), "before": before}))


def _ids_of_gin(db: Session, owner_id: str, wanted: list[Needle], before: int) -> Iterator[int]:
    """The same. GIN knows no order and would collect a common word's every row, so the newest are walked through first:
    what is common is found there, and what is not there is rare enough to be collected.
    """
    parts = [f" {term} " for term in _terms(wanted)] + [f" {prefix}" for prefix in _prefixes(wanted)]
    # Each statement by itself may be planned so that it reads everything; a page of it never pays for that
    db.execute(text("SET LOCAL enable_seqscan = off"))
    db.execute(text("SET LOCAL jit = off"))
    walked = db.execute(_WALK, {"owner_id": owner_id, "before": before, "parts": parts, "rows": _WALKED}).one()
    yield from walked.found or ()
    if walked.rows < _WALKED:
        return
    lexemes = [f"'{OWNER}{owner_id}'", *(f"'{term}'" for term in _terms(wanted))]
    lexemes += [f"'{prefix}':*" for prefix in _prefixes(wanted)]
    values = {"query": " & ".join(lexemes), "before": walked.last, "rows": _CANDIDATES + 1}
    yield from db.scalars(_GIN, values)


def _terms(wanted: list[Needle]) -> list[str]:
    return list(dict.fromkeys(term for needle in wanted for term in needle.terms()))


def _prefixes(wanted: list[Needle]) -> list[str]:
    return [prefix for needle in wanted if (prefix := needle.prefix()) is not None]


def _rows(db: Session, owner_id: str, ids: Sequence[int]) -> dict[int, _Row]:
    """Those of the entries that are still the owner's to be found."""
    found = db.execute(
        select(SearchEntryTable.id, SearchEntryTable.conversation_id, SearchEntryTable.message_id)
        .join(ConversationTable, ConversationTable.id == SearchEntryTable.conversation_id)
        .where(
            SearchEntryTable.id.in_(ids),
            ConversationTable.owner_id == owner_id,
            ConversationTable.deleted_at.is_(None),
        )
    )
    return {row.id: _Row(row.conversation_id, row.message_id) for row in found}


def _hit(db: Session, row: _Row, wanted: list[Needle]) -> Hit | None:
    """The place in the texts; None if the pairs of a word are there and the word is not, or the text has gone."""
    texts: dict[str, str] = {}
    if row.message_id is None:
        title = db.scalar(select(ConversationTable.title).where(ConversationTable.id == row.conversation_id))
        texts["title"] = title or ""
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
