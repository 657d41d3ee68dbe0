"""The queries. Each one that serves a person names its owner: what is not theirs is not there.

Frozen dataclasses come out; no row leaves its session.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import delete, func, select, tuple_, update
from sqlalchemy.orm import Session

from app.errors import ConversationBusy, NotFound
from app.history.database import Database
from app.history.tables import ConversationTable, MessageTable, RunTable
from app.history.usage import Allowance, count_usage, refuse_too_much

OPEN_STATES = ("queued", "running")
_TITLE_CHARS = 60


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is stored; `notes`, `usage` and `timing` are JSON-ready."""

    id: str
    conversation_id: str
    answer_id: str
    state: str
    model: str
    effort: str
    options: dict[str, Any]
    notes: list[dict[str, Any]]
    usage: dict[str, Any]
    timing: dict[str, Any]
    error_code: str
    error_message: str
    last_event: int


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message; an assistant's has a run."""

    id: str
    parent_id: str | None
    role: str
    text: str
    reasoning: str
    html: str
    reasoning_html: str
    renderer_version: int
    created_at: datetime
    run: Run | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation's row in the list."""

    id: str
    title: str
    leaf_id: str | None
    created_at: datetime
    updated_at: datetime
    running_run_id: str | None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A person's message that is in the database, with the run that will answer it."""

    message_id: str
    answer_id: str
    run_id: str
    is_new: bool


@dataclass(frozen=True, slots=True)
class Written:
    """What a run has written so far, as it goes into the database."""

    text: str
    reasoning: str
    notes: list[dict[str, Any]]
    usage: dict[str, Any]
    timing: dict[str, Any]
    last_event: int


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, and its text's final HTML."""

    state: str
    html: str
    reasoning_html: str
    renderer_version: int
    error_code: str = ""
    error_message: str = ""


def new_id() -> str:
    """An id nobody can guess."""
    return uuid4().hex


def now() -> datetime:
    """This moment, in UTC."""
    return datetime.now(UTC)


class Store:
    """All that is kept, by the questions that are asked of it. Synchronous; raises `StorageFailed` throughout."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # Conversations

    def add_conversation(self, owner_id: str, title: str = "") -> Conversation:
        """An empty conversation."""
        row = ConversationTable(id=new_id(), owner_id=owner_id, title=title, created_at=now(), updated_at=now())
        with self.database.writing() as db:
            db.add(row)
        return _conversation(row, None)

    def conversations(self, owner_id: str, cursor: str | None, limit: int) -> tuple[list[Conversation], str | None]:
        """Newest first; the cursor for the next page, None at the end.

        Raises:
            NotFound: the cursor is none of ours.
        """
        newest = (ConversationTable.updated_at, ConversationTable.id)
        query = (
            select(ConversationTable, RunTable.id)
            .outerjoin(
                RunTable,
                (RunTable.conversation_id == ConversationTable.id) & RunTable.state.in_(OPEN_STATES),
            )
            .where(ConversationTable.owner_id == owner_id)
            .order_by(*(column.desc() for column in newest))
            .limit(limit + 1)
        )
        with self.database.reading() as db:
            if cursor is not None:
                last = _owned_conversation(db, owner_id, cursor)
                query = query.where(tuple_(*newest) < tuple_(last.updated_at, last.id))
            found = [_conversation(row, run_id) for row, run_id in db.execute(query)]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def conversation(self, owner_id: str, conversation_id: str) -> tuple[Conversation, list[StoredMessage]]:
        """One conversation with all its messages, parents first.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            row = _owned_conversation(db, owner_id, conversation_id)
            found = db.execute(
                select(MessageTable, RunTable)
                .outerjoin(RunTable, RunTable.answer_id == MessageTable.id)
                .where(MessageTable.conversation_id == row.id)
                .order_by(MessageTable.position)
            )
            messages = [_message(message, run) for message, run in found]
        running = next((m.run.id for m in messages if m.run and m.run.state in OPEN_STATES), None)
        return _conversation(row, running), messages

    def delete_conversation(self, owner_id: str, conversation_id: str) -> None:
        """Remove it with all its messages and runs.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.writing() as db:
            row = _owned_conversation(db, owner_id, conversation_id)
            db.execute(delete(ConversationTable).where(ConversationTable.id == row.id))

    def message(self, owner_id: str, message_id: str) -> StoredMessage:
        """One message.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            found = db.execute(
                select(MessageTable, RunTable)
                .join(ConversationTable, ConversationTable.id == MessageTable.conversation_id)
                .outerjoin(RunTable, RunTable.answer_id == MessageTable.id)
                .where(MessageTable.id == message_id, ConversationTable.owner_id == owner_id)
            ).first()
        if found is None:
            raise NotFound("This message is not here.")
        return _message(found[0], found[1])

    # Runs

    def accepted(self, owner_id: str, client_key: str) -> Accepted | None:
        """What a message sent before with this key became."""
        with self.database.reading() as db:
            return _accepted(db, owner_id, client_key)

    def accept(
        self,
        owner_id: str,
        conversation_id: str,
        text: str,
        *,
        parent_id: str | None,
        client_key: str,
        effort: str,
        options: dict[str, Any],
        allowance: Allowance,
    ) -> Accepted:
        """Put a message, its empty answer and its queued run into the database, in one transaction.

        Raises:
            NotFound: no such conversation or parent, or somebody else's.
            ConversationBusy: a run is open in this conversation.
            TooManyRuns, QuotaUsedUp: the person's allowance has no room for it.
        """
        with self.database.writing() as db:
            known = _accepted(db, owner_id, client_key)
            if known is not None:
                return known
            conversation = _owned_conversation(db, owner_id, conversation_id)
            _refuse_a_second_run(db, conversation.id)
            if parent_id is not None:
                _require_answer(db, conversation.id, parent_id)
            position = db.scalar(
                select(func.coalesce(func.max(MessageTable.position), 0)).where(
                    MessageTable.conversation_id == conversation.id
                )
            )
            moment = now()
            refuse_too_much(db, owner_id, allowance, moment)
            question = MessageTable(
                id=new_id(),
                conversation_id=conversation.id,
                parent_id=parent_id,
                position=(position or 0) + 1,
                role="user",
                text=text,
                created_at=moment,
            )
            answer = MessageTable(
                id=new_id(),
                conversation_id=conversation.id,
                parent_id=question.id,
                position=(position or 0) + 2,
                role="assistant",
                created_at=moment,
            )
            run = RunTable(
                id=new_id(),
                owner_id=owner_id,
                conversation_id=conversation.id,
                answer_id=answer.id,
                client_key=client_key,
                state="queued",
                effort=effort,
                options=options,
                created_at=moment,
            )
            for row in (question, answer, run):
                db.add(row)
                db.flush()
            conversation.leaf_id = answer.id
            conversation.updated_at = moment
            conversation.title = conversation.title or title_from(text)
            count_usage(db, owner_id, moment, runs=1)
            return Accepted(question.id, answer.id, run.id, is_new=True)

    def run(self, owner_id: str, run_id: str) -> Run:
        """One run.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            row = db.scalar(select(RunTable).where(RunTable.id == run_id, RunTable.owner_id == owner_id))
        if row is None:
            raise NotFound("This run is not here.")
        return _run(row)

    def start_run(self, run_id: str, model: str) -> str | None:
        """The engine takes it up: whose it is now, or None if it has been deleted meanwhile."""
        with self.database.writing() as db:
            return db.scalar(
                update(RunTable)
                .where(RunTable.id == run_id, RunTable.state == "queued")
                .values(state="running", model=model)
                .returning(RunTable.owner_id)
            )

    def save(self, run_id: str, written: Written, ending: Ending | None = None) -> None:
        """What a run has written so far; with an `ending`, for good. A run that is gone is left alone."""
        values: dict[str, Any] = {
            "notes": written.notes,
            "usage": written.usage,
            "timing": written.timing,
            "last_event": written.last_event,
        }
        texts: dict[str, Any] = {"text": written.text, "reasoning": written.reasoning}
        if ending is not None:
            values |= {
                "state": ending.state,
                "error_code": ending.error_code,
                "error_message": ending.error_message,
                "ended_at": now(),
            }
            texts |= {
                "html": ending.html,
                "reasoning_html": ending.reasoning_html,
                "renderer_version": ending.renderer_version,
            }
        with self.database.writing() as db:
            run = db.execute(
                select(RunTable.answer_id, RunTable.owner_id, RunTable.ended_at).where(RunTable.id == run_id)
            ).first()
            if run is None:
                return
            db.execute(update(MessageTable).where(MessageTable.id == run.answer_id).values(**texts))
            db.execute(update(RunTable).where(RunTable.id == run_id).values(**values))
            if ending is not None and run.ended_at is None:
                tokens = {name: int(written.usage.get(name, 0)) for name in ("reasoning_tokens", "answer_tokens")}
                count_usage(db, run.owner_id, now(), **{ending.state: 1}, **tokens)

    def interrupt_open_runs(self) -> int:
        """At the start: whatever was open when the last process ended is interrupted. How many there were."""
        with self.database.writing() as db:
            found = db.execute(
                update(RunTable)
                .where(RunTable.state.in_(OPEN_STATES))
                .values(state="interrupted", ended_at=now())
                .returning(RunTable.owner_id, RunTable.usage)
            ).all()
            for owner_id, usage in found:
                tokens = {name: int(usage.get(name, 0)) for name in ("reasoning_tokens", "answer_tokens")}
                count_usage(db, owner_id, now(), interrupted=1, **tokens)
        return len(found)


def title_from(text: str) -> str:
    """A title out of a question: its first line, cut at a word."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = " ".join(line.split())
    if len(line) <= _TITLE_CHARS:
        return line
    cut = line[:_TITLE_CHARS]
    return (cut.rsplit(" ", 1)[0] if " " in cut[_TITLE_CHARS // 2 :] else cut) + " …"


def branch(messages: Sequence[StoredMessage], leaf_id: str | None) -> list[StoredMessage]:
    """The messages from the root to `leaf_id`, the root first."""
    by_id = {message.id: message for message in messages}
    found: list[StoredMessage] = []
    at = by_id.get(leaf_id) if leaf_id else None
    while at is not None:
        found.append(at)
        at = by_id.get(at.parent_id) if at.parent_id else None
    return found[::-1]


def _owned_conversation(db: Session, owner_id: str, conversation_id: str) -> ConversationTable:
    row = db.scalar(
        select(ConversationTable).where(ConversationTable.id == conversation_id, ConversationTable.owner_id == owner_id)
    )
    if row is None:
        raise NotFound("This conversation is not here.")
    return row


def _refuse_a_second_run(db: Session, conversation_id: str) -> None:
    run_id = db.scalar(
        select(RunTable.id).where(RunTable.conversation_id == conversation_id, RunTable.state.in_(OPEN_STATES))
    )
    if run_id is not None:
        raise ConversationBusy("The last message is still being answered. Wait for it, or stop it.", run_id=run_id)


def _require_answer(db: Session, conversation_id: str, parent_id: str) -> None:
    """A message follows an answer of the same conversation."""
    found = db.scalar(
        select(MessageTable.id).where(
            MessageTable.id == parent_id,
            MessageTable.conversation_id == conversation_id,
            MessageTable.role == "assistant",
        )
    )
    if found is None:
        raise NotFound("The message this one follows is not here.")


def _accepted(db: Session, owner_id: str, client_key: str) -> Accepted | None:
    found = db.execute(
        select(MessageTable.parent_id, MessageTable.id, RunTable.id)
        .join(MessageTable, MessageTable.id == RunTable.answer_id)
        .where(RunTable.owner_id == owner_id, RunTable.client_key == client_key)
    ).first()
    return Accepted(found[0] or "", found[1], found[2], is_new=False) if found else None


def _conversation(row: ConversationTable, run_id: str | None) -> Conversation:
    return Conversation(row.id, row.title, row.leaf_id, row.created_at, row.updated_at, run_id)


def _message(row: MessageTable, run: RunTable | None) -> StoredMessage:
    return StoredMessage(
        id=row.id,
        parent_id=row.parent_id,
        role=row.role,
        text=row.text,
        reasoning=row.reasoning,
        html=row.html,
        reasoning_html=row.reasoning_html,
        renderer_version=row.renderer_version,
        created_at=row.created_at,
        run=_run(run) if run is not None else None,
    )


def _run(row: RunTable) -> Run:
    return Run(
        id=row.id,
        conversation_id=row.conversation_id,
        answer_id=row.answer_id,
        state=row.state,
        model=row.model,
        effort=row.effort,
        options=row.options,
        notes=row.notes,
        usage=row.usage,
        timing=row.timing,
        error_code=row.error_code,
        error_message=row.error_message,
        last_event=row.last_event,
    )
