"""Files of conversations for tests: people to import them for, trees to make them of, what is in the database."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from hypothesis import strategies as st
from sqlalchemy import func, select

from app.history.people import People
from app.history.portable import ours
from app.history.portable.importing import Imported, Imports
from app.history.store import Store, new_id
from app.history.tables import ConversationTable, MessageTable, RunTable, Table

SAMPLES = Path(__file__).parent / "data" / "exports"
LONG_AGO = datetime(2025, 3, 1, 12, 0, 0, 123456, UTC)
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)


@dataclass(frozen=True)
class Desk:
    """Where files are imported and exported."""

    store: Store
    imports: Imports

    def person(self) -> str:
        """Somebody new, without anything."""
        return People(self.store.database).add_guest(new_id() * 2)

    def account(self) -> str:
        """Somebody new with an account."""
        name = new_id()
        return People(self.store.database).add_account(
            username=name, username_key=name, password_hash="", code_hashes=[], is_admin=False
        )

    def take(self, owner_id: str, data: bytes) -> Imported:
        """Import a file."""
        upload, file = self.imports.begin(owner_id)
        with file:
            file.write(data)
        return self.imports.take(upload)

    def file_of(self, owner_id: str, *, has_reasoning: bool = True) -> bytes:
        """Everything of a person."""
        return b"".join(ours.exported_all(self.store, owner_id, has_reasoning=has_reasoning))

    def rows(self) -> dict[str, int]:
        """How many rows every table has."""
        with self.store.database.reading() as db:
            tables = Table.metadata.sorted_tables
            return {table.name: db.scalar(select(func.count()).select_from(table)) or 0 for table in tables}


def as_file(*conversations: dict[str, Any], **changes: Any) -> bytes:
    """A file of ours."""
    return orjson.dumps({"format": "ponder", "version": 1, "conversations": conversations} | changes)


def conversation(*messages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A conversation of a file of ours; without messages, of a question and an answer."""
    found = list(messages) or [question(), answer(1)]
    return {
        "title": "Primes",
        "is_pinned": False,
        "is_archived": False,
        "created_at": "2025-03-01T12:00:00.123456Z",
        "updated_at": "2025-03-01T12:00:05.000000Z",
        "leaf": max((n for n, message in enumerate(found, 1) if message.get("role") == "assistant"), default=None),
        "messages": found,
    } | changes


def question(text: str = "How many?", parent: int | None = None, **changes: Any) -> dict[str, Any]:
    """A question of a file of ours."""
    return {"role": "user", "parent": parent, "created_at": "2025-03-01T12:00:00.123456Z", "text": text} | changes


def answer(parent: int, text: str = "Ten.", **changes: Any) -> dict[str, Any]:
    """An answer of a file of ours."""
    run = {
        "state": "done",
        "model": "qwq",
        "effort": "normal",
        "notes": [{"kind": "budget", "text": "The budget is reached.", "at_token": 7}],
        "usage": {"prompt_tokens": 5, "reasoning_tokens": 7, "answer_tokens": 2},
        "timing": {"thinking_s": 1.5, "total_s": 2.0, "tokens_per_s": 4.5},
        "error": None,
    }
    made = {"role": "assistant", "parent": parent, "created_at": "2025-03-01T12:00:05.000000Z", "text": text}
    return made | {"reasoning": "2, 3, 5 …", "run": run} | changes


@st.composite
def rows_of_conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What `insert` takes: conversations as the database may hold them."""
    return [draw(_row_of_a_conversation()) for _ in range(draw(st.integers(0, 4)))]


@st.composite
def _row_of_a_conversation(draw: st.DrawFn) -> dict[str, Any]:
    messages: list[dict[str, Any]] = []
    moments = st.integers(0, 10**14).map(lambda micros: LONG_AGO + timedelta(microseconds=micros - 5 * 10**13))
    for _ in range(draw(st.integers(0, 5))):
        answers = [None, *(place for place, message in enumerate(messages) if message["role"] == "assistant")]
        asked = len(messages)
        messages.append({"role": "user", "parent": draw(st.sampled_from(answers)), "text": draw(TEXTS)})
        for _ in range(draw(st.integers(1, 2))):
            run = {
                "state": draw(st.sampled_from(["done", "stopped", "failed", "interrupted"])),
                "model": draw(TEXTS),
                "effort": draw(st.sampled_from(["", "quick", "normal", "deep"])),
                "notes": draw(st.lists(st.builds(_note, TEXTS, st.integers(0, 10**6)), max_size=2)),
                "usage": draw(
                    st.dictionaries(st.sampled_from(["prompt_tokens", "answer_tokens"]), st.integers(0, 9**9))
                ),
                "timing": draw(
                    st.dictionaries(st.sampled_from(["thinking_s", "total_s"]), st.floats(0, 1e6, allow_nan=False))
                ),
                "error_code": draw(st.sampled_from(["", "engine_failed"])),
                "error_message": draw(TEXTS),
            }
            messages.append(
                {"role": "assistant", "parent": asked, "text": draw(TEXTS), "reasoning": draw(TEXTS), "run": run}
            )
    ends = [None, *(place for place, message in enumerate(messages) if message["role"] == "assistant")]
    for message in messages:
        message["created_at"] = draw(moments)
    return {
        "title": draw(TEXTS),
        "is_pinned": draw(st.booleans()),
        "is_archived": draw(st.booleans()),
        "recency": draw(st.integers(1, 10)),
        "created_at": draw(moments),
        "updated_at": draw(moments),
        "leaf": draw(st.sampled_from(ends)),
        "messages": messages,
        "is_running": draw(st.booleans()),
    }


def _note(text: str, at_token: int) -> dict[str, Any]:
    return {"kind": "budget", "text": text, "at_token": at_token}


def insert(store: Store, owner_id: str, conversations: list[dict[str, Any]]) -> list[str]:
    """Put conversations into the database as chats would have; their ids. The last answer of one may be running."""
    made = []
    for spec in conversations:
        ids = [new_id() for _ in spec["messages"]]
        columns = {name: spec[name] for name in ("title", "is_pinned", "is_archived", "recency", "created_at")}
        row = ConversationTable(id=new_id(), owner_id=owner_id, updated_at=spec["updated_at"], **columns)
        row.leaf_id = ids[spec["leaf"]] if spec["leaf"] is not None else None
        made.append(row.id)
        with store.database.writing() as db:
            db.add(row)
            db.flush()
            for position, message in enumerate(spec["messages"]):
                parent = message["parent"]
                db.add(
                    MessageTable(
                        id=ids[position],
                        conversation_id=row.id,
                        parent_id=ids[parent] if parent is not None else None,
                        position=position + 1,
                        role=message["role"],
                        text=message["text"],
                        reasoning=message.get("reasoning", ""),
                        created_at=message["created_at"],
                    )
                )
                db.flush()
                if "run" in message:
                    is_open = spec.get("is_running") and position == len(ids) - 1
                    run = message["run"] | ({"state": "running"} if is_open else {})
                    identity = {"id": new_id(), "owner_id": owner_id, "client_key": new_id(), "conversation_id": row.id}
                    db.add(RunTable(**identity, answer_id=ids[position], created_at=message["created_at"], **run))
                    db.flush()
    return made
