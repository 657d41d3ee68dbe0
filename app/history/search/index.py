"""What messages and titles are found by, kept in the transaction that keeps them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache

from sqlalchemy import ColumnElement, Executable, and_, bindparam, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.errors import StorageFailed
from app.history.search.terms import terms
from app.history.tables import ConversationTable, MessageTable, SearchEntryTable

# The rules that `terms` follows; with another number every conversation is indexed anew
SEARCH_VERSION = 1

# Coarse, as what FTS5 writes down for every word are the gaps between these numbers
_PLACES_PER_S = 64
_TRIES = 100
_ENTRY = SearchEntryTable


@dataclass(frozen=True, slots=True)
class Entry:
    """What is found, whose it is, and by which terms, parted by spaces. Without `message_id` it is a title."""

    owner_id: str
    conversation_id: str
    message_id: str | None
    terms: str


def index_message(db: Session, owner_id: str, conversation_id: str, message_id: str, texts: Sequence[str]) -> None:
    """Have a message found by these texts and by nothing else; the message's row must be there already."""
    put_entry(db, owner_id, conversation_id, message_id, " ".join(terms(*texts)))


def index_title(db: Session, owner_id: str, conversation_id: str, title: str) -> None:
    """Have a conversation found by this title and by none before; its row must be there already."""
    put_entry(db, owner_id, conversation_id, None, " ".join(terms(title)))


def move_entries(db: Session, from_id: str, to_id: str) -> None:
    """Everything that is found for one person is found for another instead."""
    _run(db, update(_ENTRY).where(_ENTRY.owner_id == from_id).values(owner_id=to_id))


def is_outdated() -> ColumnElement[bool]:
    """Whether a conversation's entries are not there, or follow other rules."""
    # Each side can use the index, which "not equal" cannot
    return or_(ConversationTable.search_version < SEARCH_VERSION, ConversationTable.search_version > SEARCH_VERSION)


def put_entry(db: Session, owner_id: str, conversation_id: str, message_id: str | None, joined: str) -> None:
    """Write the entry of a message or, without one, of a title; `joined` are its terms, parted by spaces."""
    if message_id is not None:
        same = _ENTRY.message_id == message_id
        moment_of = select(MessageTable.created_at).where(MessageTable.id == message_id)
    else:
        same = and_(_ENTRY.conversation_id == conversation_id, _ENTRY.message_id.is_(None))
        moment_of = select(ConversationTable.created_at).where(ConversationTable.id == conversation_id)
    for _ in range(_TRIES):
        known = db.execute(select(_ENTRY.id, _ENTRY.owner_id, _ENTRY.terms).where(same)).first()
        if known is not None:
            if not joined:
                _run(db, delete(_ENTRY).where(_ENTRY.id == known.id))
            elif (known.owner_id, known.terms) != (owner_id, joined):
                _run(db, update(_ENTRY).where(_ENTRY.id == known.id).values(owner_id=owner_id, terms=joined))
            return
        moment = db.scalar(moment_of) if joined else None
        if moment is None:
            return
        # Another process may have taken the place, or have indexed the same
        if add_entry(db, moment, Entry(owner_id, conversation_id, message_id, joined)):
            return
    raise StorageFailed("The database is busy. Your text is still here; try again in a few seconds.")


def add_entry(db: Session, moment: datetime, entry: Entry) -> bool:
    """Write the entry of what was written at this moment; False if somebody was quicker, which `put_entry` sees to."""
    row = {
        "id": _free_place(db, moment),
        "owner_id": entry.owner_id,
        "conversation_id": entry.conversation_id,
        "message_id": entry.message_id,
        "terms": entry.terms,
    }
    return db.scalar(_insert(db.get_bind().dialect.name), row) is not None


# Built once: for the short statements of the indexing that takes longer than running them
_TAKEN = select(_ENTRY.id).where(_ENTRY.id == bindparam("place"))
_LAST = select(func.max(_ENTRY.id)).where(_ENTRY.id >= bindparam("place"), _ENTRY.id < bindparam("end"))


@cache
def _insert(dialect_name: str) -> Executable:
    dialect = sqlite if dialect_name == "sqlite" else postgresql
    statement: Executable = dialect.insert(_ENTRY).on_conflict_do_nothing().returning(_ENTRY.id)
    return statement


def _free_place(db: Session, moment: datetime) -> int:
    """An id at this moment, or shortly after what was written in the same."""
    place = max(1, int(moment.timestamp() * _PLACES_PER_S))
    if db.scalar(_TAKEN, {"place": place}) is None:
        return place
    width = _PLACES_PER_S
    while True:
        last: int | None = db.scalar(_LAST, {"place": place, "end": place + width})
        if last is None or last + 1 < place + width:
            return (last or place) + 1
        width *= 16  # an import may hold thousands of messages of the same second


def _run(db: Session, statement: Executable) -> None:
    db.execute(statement, execution_options={"synchronize_session": False})
