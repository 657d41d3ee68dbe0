"""The list of a person's conversations: its order, its pages, the clock behind it."""

import re
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Row, Select, and_, bindparam, func, select, text, tuple_
from sqlalchemy.orm import Session

from app.errors import BadRequest
from app.history.states import open_sql
from app.history.tables import ConversationTable, RunTable

# Word for word what the indexes of open runs say: a database uses them for nothing else
IS_OPEN = text(open_sql("runs"))
_ORDER = (ConversationTable.is_pinned, ConversationTable.recency, ConversationTable.id)

# What the list shows of a conversation: columns, as making rows of the ORM takes longer than the query
ListedRow = Row[*tuple[Any, ...]]


def listed() -> Select[*tuple[Any, ...]]:
    """The conversations of the person `owner_id` with the run that is open in each: pinned first, then newest first."""
    return (
        select(
            ConversationTable.id,
            ConversationTable.title,
            ConversationTable.is_pinned,
            ConversationTable.is_archived,
            ConversationTable.is_unread,
            ConversationTable.recency,
            ConversationTable.version,
            ConversationTable.leaf_id,
            ConversationTable.created_at,
            ConversationTable.updated_at,
            RunTable.id.label("run_id"),
        )
        .outerjoin(RunTable, and_(RunTable.conversation_id == ConversationTable.id, IS_OPEN))
        .where(
            ConversationTable.owner_id == bindparam("owner_id"),
            ConversationTable.deleted_at.is_(None),
        )
        .order_by(*(column.desc() for column in _ORDER))
    )


def page(db: Session, owner_id: str, cursor: str | None, rows: int, *, is_archived: bool) -> Sequence[ListedRow]:
    """So many of a person's conversations, behind the place that a cursor names.

    Raises:
        BadRequest: the cursor is none of ours.
    """
    place = dict(zip(("pinned", "recency", "id"), _place(cursor), strict=True)) if cursor is not None else {}
    values = {"owner_id": owner_id, "is_archived": is_archived, "rows": rows, **place}
    return db.execute(_statement(has_cursor=cursor is not None), values).all()


@cache
def _statement(*, has_cursor: bool) -> Select[*tuple[Any, ...]]:
    """Built once, which takes as long as running it."""
    query = listed().where(ConversationTable.is_archived == bindparam("is_archived")).limit(bindparam("rows"))
    if has_cursor:
        query = query.where(tuple_(*_ORDER) < tuple_(bindparam("pinned"), bindparam("recency"), bindparam("id")))
    return query


def _place(cursor: str) -> tuple[bool, int, str]:
    found = re.fullmatch(r"([01])-([0-9]{1,18})-(\w{1,32})", cursor, re.ASCII)
    if found is None:
        raise BadRequest("The cursor cannot be used. Begin at the first page again.")
    return found[1] == "1", int(found[2]), found[3]


def cursor_of(row: ListedRow) -> str:
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
