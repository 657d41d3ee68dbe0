"""The queries. Each one that serves a person names its owner: what is not theirs is not there.

Frozen dataclasses come out; no row leaves its session.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session, defer

from app.errors import ChangedMeanwhile, NotFound
from app.history.damage import DAMAGED_MOMENT, figures, known_role, readable_run, report, with_parents_before
from app.history.database import Database
from app.history.listing import IS_OPEN, ListedRow, cursor_of, listed, next_recency, page
from app.history.search.index import SEARCH_VERSION, index_message, index_title, put_entry
from app.history.search.terms import terms
from app.history.states import OPEN_STATES, FinalState, RunState
from app.history.storable import storable
from app.history.tables import ConversationTable, MessageTable, PersonTable, RunTable
from app.history.tree import (
    accepted_rows,
    newest_leaf,
    next_position,
    question_of,
    refuse_a_second_run,
    require_answer,
    title_from,
)
from app.history.tree import branch as branch
from app.history.turns import Turn, turns_to
from app.history.usage import Allowance, count_usage, refuse_too_much

# Ten seconds in which a deletion can be undone, and a few for the way of the request
UNDO = timedelta(seconds=15)
_LONGEST_MODEL = 200


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it is stored; `notes`, `usage` and `timing` are JSON-ready."""

    id: str
    conversation_id: str
    answer_id: str
    state: RunState
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
    """A message; an assistant's has a run. Of one that is read to be shown, the reasoning is left where it is."""

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
    has_reasoning: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation's row in the list; `version` counts its changes, `is_unread`: an answer ended unseen."""

    id: str
    title: str
    is_pinned: bool
    is_archived: bool
    is_unread: bool
    version: int
    leaf_id: str | None
    created_at: datetime
    updated_at: datetime
    running_run_id: str | None


@dataclass(frozen=True, slots=True)
class Changes:
    """What shall be different about a conversation; None leaves it. `version` is the one that was seen."""

    title: str | None = None
    is_pinned: bool | None = None
    is_archived: bool | None = None
    leaf_id: str | None = None
    version: int | None = None
    is_unread: bool | None = None


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

    @property
    def tokens(self) -> dict[str, int]:
        """What is counted of it."""
        return {name: int(self.usage.get(name, 0)) for name in ("reasoning_tokens", "answer_tokens")}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended, its text's final HTML, and whether nobody was looking."""

    state: FinalState
    html: str
    reasoning_html: str
    renderer_version: int
    error_code: str = ""
    error_message: str = ""
    is_unread: bool = False


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

    def new_id(self) -> str:
        """An id of this store's kind."""
        return new_id()

    # Conversations

    def add_conversation(self, owner_id: str, title: str = "") -> Conversation:
        """An empty conversation."""
        moment = now()
        with self.database.writing() as db:
            row = ConversationTable(
                id=self.new_id(),
                owner_id=owner_id,
                title=title,
                is_pinned=False,
                is_archived=False,
                version=0,
                recency=next_recency(db, owner_id),
                search_version=SEARCH_VERSION,
                created_at=moment,
                updated_at=moment,
            )
            db.add(row)
            if title:
                db.flush()
                index_title(db, owner_id, row.id, title)
        return _conversation(row, None)

    def conversations(
        self, owner_id: str, cursor: str | None, limit: int, *, is_archived: bool = False
    ) -> tuple[list[Conversation], str | None]:
        """Pinned first, then newest first; the cursor for the next page, None at the end.

        Raises:
            BadRequest: the cursor is none of ours.
        """
        with self.database.reading() as db:
            found = page(db, owner_id, cursor, limit + 1, is_archived=is_archived)
        shown = [_conversation(row, row.run_id) for row in found[:limit]]
        return shown, cursor_of(found[limit - 1]) if len(found) > limit else None

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
            messages = with_parents_before([_message(message, run) for message, run in found])
        running = next((m.run.id for m in messages if m.run and m.run.state in OPEN_STATES), None)
        return _conversation(row, running), messages

    def shown(self, owner_id: str, conversation_id: str) -> tuple[Conversation, list[StoredMessage]]:
        """As `conversation`, without the reasoning and its HTML: a page asks for that when it is opened.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            row = _owned_conversation(db, owner_id, conversation_id)
            found = db.execute(
                select(MessageTable, RunTable, MessageTable.reasoning != "")
                .outerjoin(RunTable, RunTable.answer_id == MessageTable.id)
                .where(MessageTable.conversation_id == row.id)
                .order_by(MessageTable.position)
                .options(defer(MessageTable.reasoning), defer(MessageTable.reasoning_html))
            )
            messages = with_parents_before(
                [_message(message, run, is_shown=True, has_reasoning=has) for message, run, has in found]
            )
        running = next((m.run.id for m in messages if m.run and m.run.state in OPEN_STATES), None)
        return _conversation(row, running), messages

    def told(self, owner_id: str, conversation_id: str, leaf_id: str | None) -> list[Turn]:
        """What was asked and answered in the branch that ends in `leaf_id`, the oldest first.

        Raises:
            NotFound: there is no such conversation, or it is somebody else's.
        """
        with self.database.reading() as db:
            return turns_to(db, _owned_conversation(db, owner_id, conversation_id).id, leaf_id)

    def question(self, owner_id: str, message_id: str) -> tuple[str, str]:
        """The conversation and the question that a message asks or answers.

        Raises:
            NotFound: there is no such message, or it is somebody else's.
            BadRequest: it answers none.
        """
        with self.database.reading() as db:
            message, _ = _owned_message(db, owner_id, message_id)
            return message.conversation_id, question_of(db, message).id

    def item(self, owner_id: str, conversation_id: str) -> Conversation:
        """One conversation without its messages.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            row = _owned_conversation(db, owner_id, conversation_id)
            return _conversation(row, open_run(db, row.id))

    def items(self, owner_id: str, conversation_ids: Sequence[str]) -> list[Conversation]:
        """Those of these conversations that are there and theirs, in no order."""
        query = listed().where(ConversationTable.id.in_(conversation_ids))
        with self.database.reading() as db:
            return [_conversation(row, row.run_id) for row in db.execute(query, {"owner_id": owner_id})]

    def change_conversation(self, owner_id: str, conversation_id: str, changes: Changes) -> Conversation:
        """Rename, pin, archive, show another branch: the newest leaf below `leaf_id`. To have seen it is no change.

        Raises:
            NotFound: no such conversation or message, or somebody else's.
            ChangedMeanwhile: `version` is not the current one; nothing is changed.
        """
        with self.database.writing() as db:
            row = _owned_conversation(db, owner_id, conversation_id, is_locked=True)
            if changes.version is not None and changes.version != row.version:
                raise ChangedMeanwhile(
                    "This chat was changed in another tab meanwhile. Look at it again, then repeat your change.",
                    version=row.version,
                )
            if changes.title is not None:
                row.title = changes.title
                index_title(db, owner_id, row.id, changes.title)
            if changes.is_pinned is not None:
                row.is_pinned = changes.is_pinned
            if changes.is_archived is not None:
                row.is_archived = changes.is_archived
            if changes.leaf_id is not None:
                row.leaf_id = newest_leaf(db, row.id, changes.leaf_id)
            if changes.is_unread is not None:
                row.is_unread = changes.is_unread
            if changes != Changes(version=changes.version, is_unread=changes.is_unread):
                row.version += 1
            return _conversation(row, open_run(db, row.id))

    # Deleting: everything reads as gone at once, the rows follow when it cannot be undone any more

    def delete_conversation(self, owner_id: str, conversation_id: str) -> None:
        """It is gone; `restore_conversation` brings it back for a few seconds.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.writing() as db:
            row = _owned_conversation(db, owner_id, conversation_id, is_locked=True)
            row.deleted_at, row.deletion_id = now(), new_id()

    def restore_conversation(self, owner_id: str, conversation_id: str) -> Conversation:
        """Undo its deletion.

        Raises:
            NotFound: it was not deleted, or too long ago, or is somebody else's.
        """
        with self.database.writing() as db:
            row = db.scalar(
                select(ConversationTable)
                .where(ConversationTable.id == conversation_id, *_can_be_restored(owner_id))
                .with_for_update()
            )
            if row is None:
                raise NotFound("This conversation is not here any more. A deletion can be undone for 10 seconds.")
            row.deleted_at = row.deletion_id = None
            return _conversation(row, None)

    def delete_all(self, owner_id: str) -> tuple[str, int]:
        """All of a person's conversations are gone: what the deletion is called, and how many there were."""
        deletion_id = new_id()
        with self.database.writing() as db:
            found = db.execute(
                update(ConversationTable)
                .where(ConversationTable.owner_id == owner_id, ConversationTable.deleted_at.is_(None))
                .values(deleted_at=now(), deletion_id=deletion_id)
                .returning(ConversationTable.id)
            ).all()
        return deletion_id, len(found)

    def restore_all(self, owner_id: str, deletion_id: str) -> int:
        """Undo `delete_all`; how many are back.

        Raises:
            NotFound: there is nothing of this deletion any more, or it is somebody else's.
        """
        with self.database.writing() as db:
            found = db.execute(
                update(ConversationTable)
                .where(ConversationTable.deletion_id == deletion_id, *_can_be_restored(owner_id))
                .values(deleted_at=None, deletion_id=None)
                .returning(ConversationTable.id)
            ).all()
        if not found:
            raise NotFound("These conversations are not here any more. A deletion can be undone for 10 seconds.")
        return len(found)

    # Messages

    def message(self, owner_id: str, message_id: str) -> StoredMessage:
        """One message.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            message, run = _owned_message(db, owner_id, message_id)
            return _message(message, run)

    def conversation_of(self, owner_id: str, message_id: str) -> str:
        """The id of the conversation a message is in.

        Raises:
            NotFound: there is no such message, or it is somebody else's.
        """
        with self.database.reading() as db:
            return _owned_message(db, owner_id, message_id)[0].conversation_id

    def keep_html(self, message_id: str, html: str, reasoning_html: str, renderer_version: int) -> None:
        """What the renderer of today makes of a finished message."""
        values = {"html": html, "reasoning_html": reasoning_html, "renderer_version": renderer_version}
        with self.database.writing() as db:
            db.execute(update(MessageTable).where(MessageTable.id == message_id).values(**values))

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
        made: list[Accepted] = []

        def work(db: Session) -> Accepted:
            _lock_person(db, owner_id)
            known = _accepted(db, owner_id, client_key)
            if known is not None:
                return _own(known, made)
            conversation = _owned_conversation(db, owner_id, conversation_id, is_locked=True)
            refuse_a_second_run(db, conversation.id)
            if parent_id is not None:
                require_answer(db, conversation.id, parent_id)
            moment = now()
            refuse_too_much(db, owner_id, allowance, moment)
            question = MessageTable(
                id=self.new_id(),
                conversation_id=conversation.id,
                parent_id=parent_id,
                position=next_position(db, conversation.id),
                role="user",
                text=text,
                created_at=moment,
            )
            db.add(question)
            db.flush()
            index_message(db, owner_id, conversation.id, question.id, [text])
            if not conversation.title:
                conversation.title = title_from(text)
                index_title(db, owner_id, conversation.id, conversation.title)
            made.append(self._ask(db, conversation, question, client_key, effort, options, moment))
            return made[-1]

        return self.database.transact(work)

    def retry(
        self,
        owner_id: str,
        message_id: str,
        *,
        client_key: str,
        effort: str,
        options: dict[str, Any],
        allowance: Allowance,
    ) -> Accepted:
        """Another answer to a question, beside those that are there; `message_id` is the question or one of them.

        Raises:
            NotFound: no such message, or somebody else's.
            BadRequest: it answers no question.
            ConversationBusy, TooManyRuns, QuotaUsedUp: as in `accept`.
        """
        made: list[Accepted] = []

        def work(db: Session) -> Accepted:
            _lock_person(db, owner_id)
            known = _accepted(db, owner_id, client_key)
            if known is not None:
                return _own(known, made)
            message, _ = _owned_message(db, owner_id, message_id)
            conversation = _owned_conversation(db, owner_id, message.conversation_id, is_locked=True)
            refuse_a_second_run(db, conversation.id)
            question = question_of(db, message)
            moment = now()
            refuse_too_much(db, owner_id, allowance, moment)
            made.append(self._ask(db, conversation, question, client_key, effort, options, moment))
            return made[-1]

        return self.database.transact(work)

    def _ask(
        self,
        db: Session,
        conversation: ConversationTable,
        question: MessageTable,
        client_key: str,
        effort: str,
        options: dict[str, Any],
        moment: datetime,
    ) -> Accepted:
        """An empty answer below a question, with its queued run; the branch that is shown ends there."""
        answer = MessageTable(
            id=self.new_id(),
            conversation_id=conversation.id,
            parent_id=question.id,
            position=next_position(db, conversation.id),
            role="assistant",
            created_at=moment,
        )
        run = RunTable(
            id=self.new_id(),
            owner_id=conversation.owner_id,
            conversation_id=conversation.id,
            answer_id=answer.id,
            client_key=client_key,
            state="queued",
            effort=effort,
            options=options,
            created_at=moment,
        )
        for row in (answer, run):
            db.add(row)
            db.flush()
        conversation.leaf_id = answer.id
        conversation.is_unread = False
        conversation.updated_at = moment
        conversation.recency = next_recency(db, conversation.owner_id)
        count_usage(db, conversation.owner_id, moment, runs=1)
        return Accepted(question.id, answer.id, run.id, is_new=True)

    def run(self, owner_id: str, run_id: str) -> Run:
        """One run.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.reading() as db:
            row = db.scalar(
                select(RunTable)
                .join(ConversationTable, ConversationTable.id == RunTable.conversation_id)
                .where(RunTable.id == run_id, RunTable.owner_id == owner_id, ConversationTable.deleted_at.is_(None))
            )
        if row is None:
            raise NotFound("This run is not here.")
        return _run(row)

    def start_run(self, run_id: str, model: str) -> str | None:
        """The engine takes it up: whose it is now, or None if it has been deleted meanwhile."""

        def work(db: Session) -> str | None:
            # Running already, where an earlier try was committed after all
            is_there = select(ConversationTable.id).where(
                ConversationTable.id == RunTable.conversation_id, ConversationTable.deleted_at.is_(None)
            )
            return db.scalar(
                update(RunTable)
                .where(RunTable.id == run_id, RunTable.state.in_(OPEN_STATES), is_there.exists())
                .values(state="running", model=storable(model)[:_LONGEST_MODEL])
                .returning(RunTable.owner_id)
            )

        return self.database.transact(work)

    def save(self, run_id: str, written: Written, ending: Ending | None = None) -> str | None:
        """What a run has written so far; with an `ending`, for good. A run that is gone is left alone.

        Whose run this ended, or None if it did not end it.
        """
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
        found_by = " ".join(terms(written.text, written.reasoning)) if ending is not None else ""

        def work(db: Session) -> str | None:
            run = db.execute(
                select(RunTable.answer_id, RunTable.owner_id, RunTable.conversation_id, RunTable.ended_at).where(
                    RunTable.id == run_id
                )
            ).first()
            if run is None:
                return None
            db.execute(update(MessageTable).where(MessageTable.id == run.answer_id).values(**texts))
            if ending is None and db.scalar(select(RunTable.ended_at).where(RunTable.id == run_id)) is not None:
                db.rollback()  # this waited longer than the end did
                return None
            db.execute(update(RunTable).where(RunTable.id == run_id).values(**values))
            if ending is None:
                return None
            put_entry(db, run.owner_id, run.conversation_id, run.answer_id, found_by)
            if run.ended_at is not None:
                return None
            if ending.is_unread:
                _mark_unread(db, [run.conversation_id])
            count_usage(db, run.owner_id, now(), **{ending.state: 1}, **written.tokens)
            owner_id: str = run.owner_id
            return owner_id

        return self.database.transact(work)

    def end_run(self, run_id: str, ending: Ending) -> str | None:
        """How a run ended whose text cannot be saved; what was saved of it before stays. Gives what `save` gives."""

        def work(db: Session) -> str | None:
            ended = db.execute(
                update(RunTable)
                .where(RunTable.id == run_id, RunTable.ended_at.is_(None))
                .values(
                    state=ending.state,
                    error_code=ending.error_code,
                    error_message=ending.error_message,
                    ended_at=now(),
                )
                .returning(RunTable.owner_id, RunTable.conversation_id)
            ).first()
            if ended is None:
                return None
            owner_id: str = ended.owner_id
            if ending.is_unread:
                _mark_unread(db, [ended.conversation_id])
            count_usage(db, owner_id, now(), **{ending.state: 1})
            return owner_id

        return self.database.transact(work)

    def interrupt_open_runs(self, *, but_not: Collection[str] = (), older_than: timedelta | None = None) -> int:
        """Whatever is open is interrupted, as nobody carries it on. How many there were."""
        left: list[ColumnElement[bool]] = [RunTable.state.in_(OPEN_STATES), RunTable.id.not_in(but_not)]
        if older_than is not None:
            left.append(RunTable.created_at < now() - older_than)
        with self.database.reading() as db:
            if db.scalar(select(RunTable.id).where(*left).limit(1)) is None:
                return 0
        with self.database.writing() as db:
            found = db.execute(
                update(RunTable)
                .where(*left)
                .values(state="interrupted", ended_at=now())
                .returning(RunTable.owner_id, RunTable.conversation_id, RunTable.usage)
            ).all()
            interrupted = [conversation_id for _, conversation_id, _ in found]
            _mark_unread(db, interrupted)
            # What their answers hold so far is indexed with whatever else is not
            db.execute(update(ConversationTable).where(ConversationTable.id.in_(interrupted)).values(search_version=0))
            for owner_id, _, usage in found:
                counts = figures(usage)
                tokens = {name: int(counts.get(name, 0)) for name in ("reasoning_tokens", "answer_tokens")}
                count_usage(db, owner_id, now(), interrupted=1, **tokens)
        return len(found)


def _owned_conversation(
    db: Session, owner_id: str, conversation_id: str, *, is_locked: bool = False
) -> ConversationTable:
    query = select(ConversationTable).where(
        ConversationTable.id == conversation_id,
        ConversationTable.owner_id == owner_id,
        ConversationTable.deleted_at.is_(None),
    )
    row = db.scalar(query.with_for_update() if is_locked else query)
    if row is None:
        raise NotFound("This conversation is not here.")
    return row


def _owned_message(db: Session, owner_id: str, message_id: str) -> tuple[MessageTable, RunTable | None]:
    found = db.execute(
        select(MessageTable, RunTable)
        .join(ConversationTable, ConversationTable.id == MessageTable.conversation_id)
        .outerjoin(RunTable, RunTable.answer_id == MessageTable.id)
        .where(
            MessageTable.id == message_id,
            ConversationTable.owner_id == owner_id,
            ConversationTable.deleted_at.is_(None),
        )
    ).first()
    if found is None:
        raise NotFound("This message is not here.")
    return found[0], found[1]


def _mark_unread(db: Session, conversation_ids: Sequence[str]) -> None:
    db.execute(update(ConversationTable).where(ConversationTable.id.in_(conversation_ids)).values(is_unread=True))


def _lock_person(db: Session, person_id: str) -> None:
    """What one person sends is accepted one after the other, whichever process got it."""
    db.execute(select(PersonTable.id).where(PersonTable.id == person_id).with_for_update(key_share=True))


def open_run(db: Session, conversation_id: str) -> str | None:
    return db.scalar(select(RunTable.id).where(RunTable.conversation_id == conversation_id, IS_OPEN))


def _can_be_restored(owner_id: str) -> tuple[ColumnElement[bool], ...]:
    # What is deleted in the future is an import that goes on
    return (
        ConversationTable.owner_id == owner_id,
        ConversationTable.deleted_at.between(now() - UNDO, now() + UNDO),
    )


def _accepted(db: Session, owner_id: str, client_key: str) -> Accepted | None:
    found = accepted_rows(db, owner_id, client_key)
    return Accepted(*found, is_new=False) if found else None


def _own(known: Accepted, made: Sequence[Accepted]) -> Accepted:
    """What is known is new if this very call made it, in an earlier try that was committed though it seemed to fail."""
    return next((own for own in made if own.run_id == known.run_id), known)


def _conversation(row: ConversationTable | ListedRow, run_id: str | None) -> Conversation:
    if row.created_at is DAMAGED_MOMENT or row.updated_at is DAMAGED_MOMENT:
        report("conversations", row.id)
    return Conversation(
        id=row.id,
        title=row.title,
        is_pinned=row.is_pinned,
        is_archived=row.is_archived,
        is_unread=row.is_unread,
        version=row.version,
        leaf_id=row.leaf_id,
        created_at=row.created_at,
        updated_at=row.updated_at,
        running_run_id=run_id,
    )


def _message(
    row: MessageTable, run: RunTable | None, *, is_shown: bool = False, has_reasoning: bool | None = None
) -> StoredMessage:
    """A row as it is read; `is_shown` leaves the reasoning unread."""
    role = known_role(row.role, is_answer=run is not None or bool(row.html))
    if role != row.role or row.created_at is DAMAGED_MOMENT:
        report("messages", row.id)
    return StoredMessage(
        id=row.id,
        parent_id=row.parent_id,
        role=role,
        text=row.text,
        reasoning="" if is_shown else row.reasoning,
        html=row.html,
        reasoning_html="" if is_shown else row.reasoning_html,
        renderer_version=row.renderer_version,
        created_at=row.created_at,
        run=_run(run) if run is not None else None,
        has_reasoning=bool(has_reasoning) if is_shown else bool(row.reasoning),
    )


def _run(row: RunTable) -> Run:
    return Run(
        id=row.id,
        conversation_id=row.conversation_id,
        answer_id=row.answer_id,
        model=row.model,
        error_message=row.error_message,
        **readable_run(row),
    )
