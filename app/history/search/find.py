"""Finding: newest first, what is the asker's alone, a bounded amount of work a page."""

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import and_, func, select, text, union_all
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.history.database import Database
from app.history.search.index import SEARCH_VERSION
from app.history.search.snippet import has_runs, snippet
from app.history.search.terms import OWNER, Needle, needles
from app.history.tables import ConversationTable, MessageTable, SearchEntryTable

_QUERY_CHARS = 1000
_QUERY_WORDS = 32
# So many entries are looked at for a page at most: beyond, the page is short and its cursor goes on from there
_CANDIDATES = 2000
_AT_ONCE = 250
# So many of the newest are walked through, and as many again while so many of them are found
_WALKED = 1000
_COMMON = 4
_WALKS = 8
_END = 2**63 - 1

# In halves, as SQLite uses no index of a part of the rows for an "or"
_UNINDEXED = union_all(
    *(
        select(ConversationTable.id).where(is_other, ConversationTable.deleted_at.is_(None))
        for is_other in (
            ConversationTable.search_version < SEARCH_VERSION,
            ConversationTable.search_version > SEARCH_VERSION,
        )
    )
).limit(1)
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
            ids = _Ids(db, owner_id, wanted, before, is_sqlite=self._database.is_sqlite)
            hits, last = self._page(db, owner_id, wanted, ids, limit)
        return Found(hits, str(last) if last is not None else None, is_complete)

    def _page(
        self, db: Session, owner_id: str, wanted: list[Needle], found: "_Ids", limit: int
    ) -> tuple[list[Hit], int | None]:
        """A page of hits, and the last id it went through if there is more behind it."""
        hits: dict[str, Hit] = {}
        ids = iter(found)
        looked_at = 0
        while some := list(islice(ids, _AT_ONCE if looked_at else limit)):
            rows = _rows(db, owner_id, some)
            texts = _Texts(db, rows, hits, limit)
            for number, row in enumerate(rows, 1):
                if row is None or row.conversation_id in hits:
                    continue
                hit = _hit(row, texts.of(row), wanted)
                if hit is not None:
                    hits[row.conversation_id] = hit
                if len(hits) == limit:
                    has_more = number < len(some) or next(ids, None) is not None
                    return list(hits.values()), some[number - 1] if has_more else None
            looked_at += len(some)
            if looked_at >= _CANDIDATES and next(ids, None) is not None:
                return list(hits.values()), some[-1]
        return list(hits.values()), found.left_at


def _before(cursor: str | None) -> int:
    if cursor is None:
        return _END
    if not re.fullmatch("[0-9]{1,18}", cursor, re.ASCII):
        raise BadRequest("The cursor cannot be used. Begin at the first page again.")
    return int(cursor)


class _Ids:
    """Entries that have every term, newest first, found as they are asked for; `left_at` is where it had enough.

    An index collects all that begins with a prefix before it gives the first, and GIN all that has a word. So the
    newest entries are walked through first: what is common is found there, and what is not is rare enough to collect.
    """

    def __init__(self, db: Session, owner_id: str, wanted: list[Needle], before: int, *, is_sqlite: bool) -> None:
        self.left_at: int | None = None
        self._db = db
        self._owner_id = owner_id
        self._wanted = wanted
        self._before = before
        self._is_sqlite = is_sqlite

    def __iter__(self) -> Iterator[int]:
        if self._is_sqlite and not _prefixes(self._wanted):
            return self._of_fts5()
        return self._walked()

    def _walked(self) -> Iterator[int]:
        for _ in range(_WALKS):
            rows = self._walk()
            found = [entry_id for entry_id, is_found in rows if is_found]
            yield from found
            if len(rows) < _WALKED:
                return
            self._before = rows[-1][0]
            if len(found) < _COMMON:
                yield from self._of_fts5() if self._is_sqlite else self._of_gin()
                return
        self.left_at = self._before

    def _walk(self) -> list[tuple[int, bool]]:
        place = func.instr if self._is_sqlite else func.strpos
        newest = (
            select(SearchEntryTable.id, (" " + SearchEntryTable.terms + " ").label("terms"))
            .where(SearchEntryTable.owner_id == self._owner_id, SearchEntryTable.id < self._before)
            .order_by(SearchEntryTable.id.desc())
            .limit(_WALKED)
            .subquery()
        )
        parts = [f" {term} " for term in _terms(self._wanted)] + [f" {prefix}" for prefix in _prefixes(self._wanted)]
        is_found = and_(*(place(newest.c.terms, part) > 0 for part in parts))
        rows = self._db.execute(select(newest.c.id, is_found).order_by(newest.c.id.desc()))
        return [(row[0], bool(row[1])) for row in rows]

    def _of_fts5(self) -> Iterator[int]:
        parts = [f'"{OWNER}{self._owner_id}"', *(f'"{term}"' for term in _terms(self._wanted))]
        parts += [f'"{prefix}" *' for prefix in _prefixes(self._wanted)]
        return iter(self._db.scalars(_FTS5, {"query": " AND ".join(parts), "before": self._before}))

    def _of_gin(self) -> Iterator[int]:
        # Nothing but the index may be used, and its list of rows must not fall back to pages: both would take the terms
        # of every row apart. Compiling the query takes longer than running it
        parts = [f"'{OWNER}{self._owner_id}'", *(f"'{term}'" for term in _terms(self._wanted))]
        parts += [f"'{prefix}':*" for prefix in _prefixes(self._wanted)]
        values = {"query": " & ".join(parts), "before": self._before, "rows": _CANDIDATES + 1}
        self._db.execute(text("BEGIN"))  # reading has no transaction, and these settings live as long as one
        for setting in ("enable_seqscan = off", "work_mem = '64MB'", "jit = off"):
            self._db.execute(text(f"SET LOCAL {setting}"))
        found = self._db.scalars(_GIN, values).all()
        self._db.execute(text("COMMIT"))
        return iter(found)


def _terms(wanted: list[Needle]) -> list[str]:
    return list(dict.fromkeys(term for needle in wanted for term in needle.terms()))


def _prefixes(wanted: list[Needle]) -> list[str]:
    return [prefix for needle in wanted if (prefix := needle.prefix()) is not None]


def _rows(db: Session, owner_id: str, ids: Sequence[int]) -> list[_Row | None]:
    """The entries; None for one that is not the owner's to be found any more."""
    entries = {
        entry.id: entry
        for entry in db.execute(
            select(SearchEntryTable.id, SearchEntryTable.conversation_id, SearchEntryTable.message_id).where(
                SearchEntryTable.id.in_(ids)
            )
        )
    }
    # Sorted out here, as a planner may else begin with everything that the owner has
    conversations = {
        row.id: row
        for row in db.execute(
            select(
                ConversationTable.id, ConversationTable.owner_id, ConversationTable.deleted_at, ConversationTable.title
            ).where(ConversationTable.id.in_({entry.conversation_id for entry in entries.values()}))
        )
        if row.owner_id == owner_id and row.deleted_at is None
    }
    return [
        _Row(entry.conversation_id, entry.message_id, conversations[entry.conversation_id].title)
        if (entry := entries.get(entry_id)) is not None and entry.conversation_id in conversations
        else None
        for entry_id in ids
    ]


class _Texts:
    """What entries were made of; read at once for those of `rows` that will most likely be hits."""

    def __init__(self, db: Session, rows: Sequence[_Row | None], hits: Collection[str], limit: int) -> None:
        self._db = db
        newest: dict[str, str | None] = {}
        for row in rows:
            if row is not None and row.conversation_id not in hits:
                newest.setdefault(row.conversation_id, row.message_id)
        likely = list(newest.values())[: limit - len(hits)]
        self._read = self._texts_of([message_id for message_id in likely if message_id is not None])

    def of(self, row: _Row) -> dict[str, str]:
        """The texts by where they stand; none if they have gone."""
        if row.message_id is None:
            return {"title": row.title}
        if row.message_id not in self._read:
            self._read |= self._texts_of([row.message_id])
        return self._read.get(row.message_id, {})

    def _texts_of(self, message_ids: Sequence[str]) -> dict[str, dict[str, str]]:
        if not message_ids:
            return {}
        messages = self._db.execute(
            select(MessageTable.id, MessageTable.role, MessageTable.text, MessageTable.reasoning).where(
                MessageTable.id.in_(message_ids)
            )
        )
        return {
            message.id: {"question": message.text}
            if message.role == "user"
            else {"answer": message.text, "reasoning": message.reasoning}
            for message in messages
        }


def _hit(row: _Row, texts: dict[str, str], wanted: list[Needle]) -> Hit | None:
    """The place in the texts; None if the pairs of a word are there and the word is not, or the text has gone."""
    if not texts or not has_runs(texts.values(), wanted):
        return None
    snippets = {where: snippet(text, wanted) for where, text in texts.items()}
    where, best = max(snippets.items(), key=lambda item: item[1].words)
    return Hit(row.conversation_id, row.message_id, where, best.text, best.marks)
