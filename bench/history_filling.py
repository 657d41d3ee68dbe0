"""Conversations for `bench.history`: who has how many of how many messages, and the fastest way into each database.

Everything comes from one seed, so that both databases hold the same.
"""

import json
import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import psycopg
from alembic import command
from psycopg import sql
from sqlalchemy import inspect

from app.accounts.keys import hash_of
from app.history.database import Database
from app.history.migrating import config_for
from app.history.search import SEARCH_VERSION, terms
from app.history.sqlite import make_empty
from app.render import RENDERER_VERSION
from bench.history_texts import Passage, Texts

# A conversation has 100 messages on average: most are short, some long, these few are opened by the bench
OPENED_MESSAGES = 200
_OPENED = 20
_BIG_SHARE = 0.4
_EDITED = 0.06
_SESSIONS = 200
_USAGE = json.dumps({"prompt_tokens": 500, "reasoning_tokens": 320, "answer_tokens": 110})
_TIMING = json.dumps({"queued_s": 0.0, "first_token_s": 0.4, "thinking_s": 12.5, "total_s": 17.25})
_NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
_BEGAN = _NOW - timedelta(days=400)
_PLACES_PER_S = 64


@dataclass
class Filled:
    """Whom and what the requests ask for."""

    messages: int = 0
    conversations: int = 0
    big_conversations: int = 0
    # Cookies: the one of who has thousands of conversations, and some of the others
    big: str = "a-big"
    others: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    rare: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """Rows for every table but `people` and `sessions`, a conversation's worth."""

    conversation: tuple[Any, ...]
    messages: list[tuple[Any, ...]]
    runs: list[tuple[Any, ...]]
    entries: list[tuple[Any, ...]]


PEOPLE = ("id", "kind", "username", "username_key", "created_at")
SESSIONS = ("token_hash", "id", "person_id", "agent", "created_at", "last_seen_at")
CONVERSATIONS = (
    *("id", "owner_id", "title", "is_pinned", "is_archived", "recency", "version", "search_version", "leaf_id"),
    *("created_at", "updated_at"),
)
MESSAGES = (
    *("id", "conversation_id", "parent_id", "position", "role", "text", "reasoning", "html", "reasoning_html"),
    *("renderer_version", "is_imported", "created_at"),
)
RUNS = (
    *("id", "owner_id", "conversation_id", "answer_id", "client_key", "state", "model", "effort", "options", "notes"),
    *("usage", "timing", "error_code", "error_message", "last_event", "created_at", "ended_at"),
)
ENTRIES = ("id", "owner_id", "conversation_id", "message_id", "terms")


class Mix:
    """Who has how many conversations of how many messages, and their rows."""

    def __init__(self, messages: int, texts: Texts) -> None:
        self._dice = random.Random(11)
        self._texts = texts
        self._places: set[int] = set()
        self._numbers = 0
        conversations = max(20, messages // 100)
        self.filled = Filled()
        sizes = self._sizes(conversations, messages)
        opened = {n for n, size in enumerate(sizes) if size == OPENED_MESSAGES}
        self.owners = [self._id()]
        self._plan: list[tuple[str, int, bool]] = []
        big = int(conversations * _BIG_SHARE)
        rest = list(enumerate(sizes))
        self._dice.shuffle(rest)
        for n, size in rest[:big]:
            self._plan.append((self.owners[0], size, n in opened))
        rest = rest[big:]
        while rest:
            self.owners.append(self._id())
            count = min(len(rest), 1 + int(self._dice.expovariate(1 / 3)))
            for n, size in rest[-count:]:
                self._plan.append((self.owners[-1], size, n in opened))
            del rest[-count:]
        self._dice.shuffle(self._plan)
        self.cookies = {self.owners[0]: self.filled.big}
        owners_with = {owner for owner, _, is_opened in self._plan if is_opened} - {self.owners[0]}
        for number, owner in enumerate([*sorted(owners_with), *self.owners[1:]][: _SESSIONS + len(owners_with)]):
            self.cookies.setdefault(owner, f"a-{number}")
        self.filled.others = [cookie for cookie in self.cookies.values() if cookie != self.filled.big]
        self.filled.conversations = conversations
        self.filled.messages = sum(sizes)
        self.filled.big_conversations = big

    def people(self) -> list[tuple[Any, ...]]:
        # Guests who are not here any more would be removed while others ask
        began = _moment(_BEGAN)
        return [(owner, "account", f"person{n}", f"person{n}", began) for n, owner in enumerate(self.owners)]

    def sessions(self) -> list[tuple[Any, ...]]:
        moment = _moment(datetime.now(UTC))
        return [
            (hash_of(token), self._id(), owner, "Firefox on Linux", moment, moment)
            for owner, token in self.cookies.items()
        ]

    def written(self) -> Iterator[Written]:
        """Oldest first."""
        step = (_NOW - _BEGAN) / len(self._plan)
        for number, (owner, size, is_opened) in enumerate(self._plan):
            yield self._conversation(owner, _BEGAN + step * number, size, is_opened)

    def _sizes(self, conversations: int, messages: int) -> list[int]:
        opened = max(2, min(_OPENED, conversations // 20))
        left = messages - opened * OPENED_MESSAGES
        shares = [self._dice.lognormvariate(0, 1) for _ in range(conversations - opened)]
        # Never as long as those that are opened by the bench
        sizes = [max(2, 2 * round(left * share / sum(shares) / 2)) for share in shares]
        return [OPENED_MESSAGES] * opened + [size + 2 * (size == OPENED_MESSAGES) for size in sizes]

    def _conversation(self, owner: str, began: datetime, size: int, is_opened: bool) -> Written:
        dice = self._dice
        conversation_id = self._id()
        language = dice.choices(("en", "de", "zh"), (7, 2, 1))[0]
        passages = self._texts.passages[language]
        title = dice.choice(passages)
        moment = began
        messages, runs = [], []
        entries = [(self._place(began), owner, conversation_id, None, " ".join(title.terms))]
        parent: str | None = None
        asked_behind: str | None = None
        for position in range(1, size + 1):
            moment += timedelta(seconds=dice.randint(5, 90))
            message_id, is_question = self._id(), position % 2 == 1
            if is_question:
                # Now and then it is the last question put differently: a sibling of it
                asked_behind = parent = asked_behind if dice.random() < _EDITED else parent
            parts, reasoning = self._question(passages) if is_question else self._answer(passages, is_long=is_opened)
            written, found_by = self._joined(owner, parts, reasoning)
            messages.append(
                (
                    *(message_id, conversation_id, parent, position, "user" if is_question else "assistant"),
                    *(written, "\n\n".join(part.text for part in reasoning)),
                    "" if is_question else "\n".join(part.html for part in parts),
                    "\n".join(part.html for part in reasoning),
                    *(0 if is_question else RENDERER_VERSION, False, _moment(moment)),
                )
            )
            entries.append((self._place(moment), owner, conversation_id, message_id, found_by))
            if not is_question:
                runs.append(self._run(owner, conversation_id, message_id, _moment(moment)))
            parent = message_id
        if is_opened:
            self.filled.opened.append(f"{self.cookies[owner]} {conversation_id}")
        row = (
            *(conversation_id, owner, title.text[:60], dice.random() < 0.01, dice.random() < 0.03),
            *(int(moment.timestamp() * 1_000_000), 0, SEARCH_VERSION, messages[-1][0], _moment(began), _moment(moment)),
        )
        return Written(row, messages, runs, entries)

    def _question(self, passages: list[Passage]) -> tuple[list[Passage], list[Passage]]:
        return self._dice.choices(passages, k=self._dice.randint(1, 2)), []

    def _answer(self, passages: list[Passage], *, is_long: bool) -> tuple[list[Passage], list[Passage]]:
        """An answer and its reasoning."""
        dice, texts = self._dice, self._texts
        if is_long:
            return [dice.choice(texts.long_answers)], [dice.choice(texts.long_reasonings)]
        return dice.choices(passages, k=dice.randint(2, 5)), dice.choices(passages, k=dice.randint(3, 7))

    def _joined(self, owner: str, parts: Sequence[Passage], reasoning: Sequence[Passage]) -> tuple[str, str]:
        """The text and its terms. Every tenth has a word that no other has."""
        written = "\n\n".join(part.text for part in parts)
        found: dict[str, None] = {}
        for part in (*parts, *reasoning):
            found |= part.terms
        self._numbers += 1
        if self._numbers % 10 == 0:
            rare = f"zq{self._numbers:x}"
            written += f" {rare}"
            found |= dict.fromkeys(terms(rare))
            token = self.cookies.get(owner)
            if token is not None:
                self.filled.rare.setdefault(token, []).append(rare)
        return written, " ".join(found)

    def _run(self, owner: str, conversation_id: str, answer_id: str, moment: str) -> tuple[Any, ...]:
        run_id = self._id()
        return (
            *(run_id, owner, conversation_id, answer_id, f"key-{run_id}", "done", "QwQ-32B", "normal", "{}", "[]"),
            *(_USAGE, _TIMING, "", "", 40, moment, moment),
        )

    def _id(self) -> str:
        return f"{self._dice.getrandbits(128):032x}"

    def _place(self, moment: datetime) -> int:
        place = int(moment.timestamp() * _PLACES_PER_S)
        while place in self._places:
            place += 1
        self._places.add(place)
        return place


def _moment(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds")


def fill(url: str, messages: int, revision: str) -> Filled:
    """Tables as they were at `revision`, with so many messages in them, indexed where there was a search."""
    database = Database(url)
    if database.file is not None:
        make_empty(database.file)
    with database.engine.execution_options(is_writer=True).begin() as connection:
        command.upgrade(config_for(connection), revision)
        has_search = "search_entries" in inspect(connection).get_table_names()
    into: _Sqlite | _Postgresql
    into = _Sqlite(str(database.file)) if database.file else _Postgresql(database.url.render_as_string())
    database.close()
    mix = Mix(messages, Texts())
    with into:
        into.insert("people", PEOPLE, mix.people())
        into.insert("sessions", SESSIONS, mix.sessions())
        written = mix.written()
        while some := list(islice(written, 500)):
            into.insert("conversations", CONVERSATIONS, (one.conversation for one in some))
            into.insert("messages", MESSAGES, (row for one in some for row in one.messages))
            into.insert("runs", RUNS, (row for one in some for row in one.runs))
            if has_search:
                into.insert("search_entries", ENTRIES, (row for one in some for row in one.entries))
    return mix.filled


class _Sqlite:
    """One transaction without a journal; what the search's triggers would do a row at a time is done at the end."""

    def __init__(self, file: str) -> None:
        self._db = sqlite3.connect(file, isolation_level=None)

    def __enter__(self) -> "_Sqlite":
        for pragma in ("journal_mode = off", "synchronous = off", "cache_size = -1000000", "locking_mode = exclusive"):
            self._db.execute(f"PRAGMA {pragma}").fetchall()
        self._triggers = self._db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in self._triggers:
            self._db.execute(f"DROP TRIGGER {name}")
        self._db.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        if self._triggers:
            self._db.execute("INSERT INTO search_terms (search_terms) VALUES ('rebuild')")
        for _, statement in self._triggers:
            self._db.execute(statement)
        self._db.execute("COMMIT")
        self._db.execute("PRAGMA journal_mode = wal").fetchall()
        self._db.close()

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Put rows into a table."""
        marks = ", ".join("?" * len(columns))
        self._db.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)


class _Postgresql:
    """COPY without looking up what a row refers to; the search's index is made at the end, from all rows at once."""

    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)

    def __enter__(self) -> "_Postgresql":
        for setting in (
            "session_replication_role = replica",
            "synchronous_commit = off",
            "maintenance_work_mem = '1GB'",
        ):
            self._db.execute(f"SET {setting}")  # type: ignore[call-overload]
        found = self._db.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'ix_search_terms'").fetchall()
        self._indexes = [row[0] for row in found]
        self._db.execute("DROP INDEX IF EXISTS ix_search_terms")
        return self

    def __exit__(self, *_: object) -> None:
        for statement in self._indexes:
            self._db.execute(statement)
        self._db.execute("VACUUM ANALYZE")
        self._db.close()

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Put rows into a table."""
        names = sql.SQL(", ").join(map(sql.Identifier, columns))
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), names)
        with self._db.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
