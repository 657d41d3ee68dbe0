"""What is read of a conversation to go on with it: roles and texts of one branch, never reasoning or HTML."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from app.history.damage import known_role, with_parents_before
from app.history.tables import MessageTable, RunTable
from app.history.tree import branch

# Below the number of variables that any SQLite takes
_IDS_AT_ONCE = 900


@dataclass(frozen=True, slots=True)
class Turn:
    """One role's text in a branch."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class _Place:
    id: str
    parent_id: str | None
    role: str


def turns_to(db: Session, conversation_id: str, leaf_id: str | None) -> list[Turn]:
    """The branch from the root to `leaf_id`, the root first; messages without text are left out."""
    if leaf_id is None:
        return []
    rows = db.execute(
        select(
            MessageTable.id,
            MessageTable.parent_id,
            MessageTable.role,
            or_(RunTable.id.is_not(None), MessageTable.html != ""),
        )
        .outerjoin(RunTable, RunTable.answer_id == MessageTable.id)
        .where(MessageTable.conversation_id == conversation_id)
        .order_by(MessageTable.position)
    )
    places = with_parents_before(
        [
            _Place(message_id, parent_id, known_role(role, is_answer=is_answer))
            for message_id, parent_id, role, is_answer in rows
        ]
    )
    path = branch(places, leaf_id)
    texts = dict(_texts(db, [place.id for place in path]))
    return [
        Turn("user" if place.role == "user" else "assistant", text) for place in path if (text := texts.get(place.id))
    ]


def _texts(db: Session, ids: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(ids)
    while some := list(islice(rest, _IDS_AT_ONCE)):
        found = db.execute(select(MessageTable.id, MessageTable.text).where(MessageTable.id.in_(some)))
        yield from ((message_id, text) for message_id, text in found)
