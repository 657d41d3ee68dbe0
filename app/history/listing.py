"""The list of a person's conversations: its order, its pages, the clock behind it."""

import re
import time

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.history.tables import ConversationTable, RunTable

OPEN_STATES = ("queued", "running")
_ORDER = (ConversationTable.is_pinned, ConversationTable.recency, ConversationTable.id)


def listed(owner_id: str, *, is_archived: bool | None = None) -> Select[ConversationTable, str]:
    """A person's conversations with the run that is open in each: pinned first, then newest first.

    `is_archived` None means both those that are and those that are not.
    """
    query = (
        select(ConversationTable, RunTable.id)
        .outerjoin(RunTable, (RunTable.conversation_id == ConversationTable.id) & RunTable.state.in_(OPEN_STATES))
        .where(
            ConversationTable.owner_id == owner_id,
            ConversationTable.deleted_at.is_(None),
        )
        .order_by(*(column.desc() for column in _ORDER))
    )
    return query if is_archived is None else query.where(ConversationTable.is_archived.is_(is_archived))


def behind(query: Select[ConversationTable, str], cursor: str) -> Select[ConversationTable, str]:
    """What of `query` comes behind the place that a cursor names.

    Raises:
        BadRequest: the cursor is none of ours.
    """
    found = re.fullmatch(r"([01])-([0-9]{1,18})-(\w{1,32})", cursor, re.ASCII)
    if found is None:
        raise BadRequest("The cursor cannot be used. Begin at the first page again.")
    place = (found[1] == "1", int(found[2]), found[3])
    return query.where(tuple_(*_ORDER) < tuple_(*place))


def cursor_of(row: ConversationTable) -> str:
    """The place of a conversation in the list; good also when the conversation is gone."""
    return f"{row.is_pinned:d}-{row.recency}-{row.id}"


def next_recency(db: Session, owner_id: str) -> int:
    """Now, in microseconds, and behind everything this person has, even when the clock was turned back."""
    newest = db.scalar(
        select(func.max(ConversationTable.recency)).where(
            ConversationTable.owner_id == owner_id, ConversationTable.deleted_at.is_(None)
        )
    )
    return max(time.time_ns() // 1000, (newest or 0) + 1)
