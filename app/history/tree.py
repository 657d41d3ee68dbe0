"""The tree of a conversation's messages: where a new one goes, which branch is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.errors import BadRequest, ConversationBusy, NotFound
from app.history.damage import with_parents_before
from app.history.listing import IS_OPEN
from app.history.tables import MessageTable, RunTable

_TITLE_CHARS = 60


class Node(Protocol):
    """What hangs in a tree."""

    @property
    def id(self) -> str: ...
    @property
    def parent_id(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class _Place:
    id: str
    parent_id: str | None
    role: str


_AnyNode = TypeVar("_AnyNode", bound=Node)


def branch(messages: Sequence[_AnyNode], leaf_id: str | None) -> list[_AnyNode]:
    """The messages from the root to `leaf_id`, the root first."""
    by_id = {message.id: message for message in messages}
    found: list[_AnyNode] = []
    at = by_id.get(leaf_id) if leaf_id else None
    while at is not None:
        found.append(at)
        at = by_id.get(at.parent_id) if at.parent_id else None
    return found[::-1]


def title_from(text: str) -> str:
    """A title out of a question: its first line, cut at a word."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = " ".join(line.split())
    if len(line) <= _TITLE_CHARS:
        return line
    cut = line[:_TITLE_CHARS]
    return (cut.rsplit(" ", 1)[0] if " " in cut[_TITLE_CHARS // 2 :] else cut) + " …"


def next_position(db: Session, conversation_id: str) -> int:
    """Where the next message stands in the order of writing."""
    last = db.scalar(select(func.max(MessageTable.position)).where(MessageTable.conversation_id == conversation_id))
    return (last or 0) + 1


def newest_leaf(db: Session, conversation_id: str, message_id: str) -> str:
    """The end of the branch through a message: from child to newest child.

    Raises:
        NotFound: the message is not in this conversation.
    """
    rows = db.execute(
        select(MessageTable.id, MessageTable.parent_id, MessageTable.role)
        .where(MessageTable.conversation_id == conversation_id)
        .order_by(MessageTable.position)
    )
    placed = with_parents_before([_Place(*row) for row in rows])
    if all(place.id != message_id for place in placed):
        raise NotFound("This message is not here.")
    newest_child = {place.parent_id: place.id for place in placed}
    leaf_id = message_id
    while leaf_id in newest_child:
        leaf_id = newest_child[leaf_id]
    return leaf_id


def refuse_a_second_run(db: Session, conversation_id: str) -> None:
    """One run at a time in a conversation.

    Raises:
        ConversationBusy: one is open.
    """
    run_id = db.scalar(select(RunTable.id).where(RunTable.conversation_id == conversation_id, IS_OPEN))
    if run_id is not None:
        raise ConversationBusy("The last message is still being answered. Wait for it, or stop it.", run_id=run_id)


def require_answer(db: Session, conversation_id: str, parent_id: str) -> None:
    """A question follows an answer of the same conversation.

    Raises:
        NotFound: it does not.
    """
    found = db.scalar(
        select(MessageTable.id).where(
            MessageTable.id == parent_id,
            MessageTable.conversation_id == conversation_id,
            MessageTable.role != "user",
        )
    )
    if found is None:
        raise NotFound("The message this one follows is not here.")


def question_of(db: Session, message: MessageTable) -> MessageTable:
    """The question that a message asks or answers.

    Raises:
        BadRequest: an answer without a question cannot be given again.
    """
    question = message if message.role == "user" else db.get(MessageTable, message.parent_id or "")
    if question is None or question.role != "user":
        raise BadRequest("There is no question before this answer, so it cannot be asked again.")
    return question


def accepted_rows(db: Session, owner_id: str, client_key: str) -> tuple[str, str, str] | None:
    """Question, answer and run of what was sent with this key before."""
    found: Any = db.execute(
        select(MessageTable.parent_id, MessageTable.id, RunTable.id)
        .join(MessageTable, MessageTable.id == RunTable.answer_id)
        .where(RunTable.owner_id == owner_id, RunTable.client_key == client_key)
    ).first()
    return (found[0] or "", found[1], found[2]) if found else None
