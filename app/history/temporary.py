"""Conversations that are never written to a disk, beside those that are kept.

They live in an SQLite database of this process's memory, behind the same `Store`. Ids of what is in it begin with `t`,
which no other id does (those are hexadecimal): so an id alone says where to look.
"""

import threading
import time
from typing import Any

from sqlalchemy import delete, func, select, update

from app.errors import NotFound, TooManyTemporary
from app.history.database import Database
from app.history.store import Accepted, Conversation, Ending, Store, StoredMessage, Written, new_id, now, open_run
from app.history.tables import ConversationTable, PersonTable, RunTable
from app.history.turns import Turn
from app.history.usage import Allowance, count_usage, refuse_too_much

KEPT_S = 3600.0
_LEFT_S = 30.0
_MOST_OF_ONE_PERSON = 10
_PREFIX = "t"


def is_temporary(any_id: str) -> bool:
    """Whether the id of a conversation, message or run is a temporary one's."""
    return any_id.startswith(_PREFIX)


class TemporaryStore(Store):
    """A store in memory. What is used is counted in the database that is kept, in numbers alone."""

    def __init__(self, kept: Database) -> None:
        database = Database("sqlite://")
        database.migrate()
        super().__init__(database)
        self._kept = kept
        self._ends_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def new_id(self) -> str:
        """An id that says that this is temporary."""
        return _PREFIX + new_id()[1:]

    def add_conversation(self, owner_id: str, title: str = "") -> Conversation:
        """An empty conversation.

        Raises:
            TooManyTemporary: this person has as many as one may.
        """
        self._know(owner_id)
        if self._count_of(owner_id) >= _MOST_OF_ONE_PERSON:
            raise TooManyTemporary(
                f"You have {_MOST_OF_ONE_PERSON} temporary chats open. Close one of their tabs, or wait a minute."
            )
        made = super().add_conversation(owner_id, title)
        self._use(made.id)
        return made

    def conversation(self, owner_id: str, conversation_id: str) -> tuple[Conversation, list[StoredMessage]]:
        """As for those that are kept; it is in use by this, and lives another hour.

        Raises:
            NotFound: there is none, its time is over, or it is somebody else's.
        """
        found = super().conversation(owner_id, conversation_id)
        self._use_again(conversation_id)
        return found

    def shown(self, owner_id: str, conversation_id: str) -> tuple[Conversation, list[StoredMessage]]:
        """As for those that are kept; it is in use by this, as by `conversation`."""
        found = super().shown(owner_id, conversation_id)
        self._use_again(conversation_id)
        return found

    def told(self, owner_id: str, conversation_id: str, leaf_id: str | None) -> list[Turn]:
        """As for those that are kept; it is in use by this, as by `conversation`."""
        found = super().told(owner_id, conversation_id, leaf_id)
        self._use_again(conversation_id)
        return found

    def delete_conversation(self, owner_id: str, conversation_id: str) -> None:
        """It is gone, and nothing brings it back.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        self.item(owner_id, conversation_id)
        self.end([conversation_id])

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
        """As for those that are kept."""
        self._refuse_too_much(owner_id, allowance)
        accepted = super().accept(
            owner_id,
            conversation_id,
            text,
            parent_id=parent_id,
            client_key=client_key,
            effort=effort,
            options=options,
            allowance=allowance,
        )
        self._count_new(owner_id, accepted)
        return accepted

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
        """As for those that are kept."""
        self._refuse_too_much(owner_id, allowance)
        accepted = super().retry(
            owner_id, message_id, client_key=client_key, effort=effort, options=options, allowance=allowance
        )
        self._count_new(owner_id, accepted)
        return accepted

    def save(self, run_id: str, written: Written, ending: Ending | None = None) -> str | None:
        """As for those that are kept."""
        owner_id = super().save(run_id, written, ending)
        if owner_id is not None and ending is not None:
            with self._kept.writing() as db:
                count_usage(db, owner_id, now(), **{ending.state: 1}, **written.tokens)
        return owner_id

    def end_run(self, run_id: str, ending: Ending) -> str | None:
        """As for those that are kept."""
        owner_id = super().end_run(run_id, ending)
        if owner_id is not None:
            with self._kept.writing() as db:
                count_usage(db, owner_id, now(), **{ending.state: 1})
        return owner_id

    # Their end

    def expires_in_s(self, conversation_id: str) -> float:
        """How long it is kept if nobody uses it."""
        return max(0.0, self._ends_at.get(conversation_id, 0.0) - time.monotonic())

    def leave(self, owner_id: str, conversation_id: str) -> None:
        """Its tab is being closed: it ends soon, unless it is read again.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        self.item(owner_id, conversation_id)
        with self._lock:
            self._ends_at[conversation_id] = time.monotonic() + _LEFT_S

    def over(self) -> list[tuple[str, str | None]]:
        """The conversations whose time has come, each with the run that is open in it."""
        with self._lock:
            moment = time.monotonic()
            ended = [conversation_id for conversation_id, ends_at in self._ends_at.items() if ends_at <= moment]
        return [(conversation_id, self._open_run(conversation_id)) for conversation_id in ended]

    def end(self, conversation_ids: list[str]) -> None:
        """Remove conversations for good."""
        with self.database.writing() as db:
            db.execute(delete(ConversationTable).where(ConversationTable.id.in_(conversation_ids)))
        with self._lock:
            for conversation_id in conversation_ids:
                self._ends_at.pop(conversation_id, None)

    def end_all_of(self, owner_id: str) -> None:
        """Remove everything of a person."""
        with self.database.writing() as db:
            found = db.scalars(select(ConversationTable.id).where(ConversationTable.owner_id == owner_id)).all()
            db.execute(delete(PersonTable).where(PersonTable.id == owner_id))
        with self._lock:
            for conversation_id in found:
                self._ends_at.pop(conversation_id, None)

    def move(self, from_id: str, to_id: str) -> None:
        """What was one person's is another's."""
        self._know(to_id)
        with self.database.writing() as db:
            for table in (ConversationTable, RunTable):
                db.execute(update(table).where(table.owner_id == from_id).values(owner_id=to_id))

    # Inside

    def _know(self, person_id: str) -> None:
        with self.database.writing() as db:
            if db.get(PersonTable, person_id) is None:
                db.add(PersonTable(id=person_id, kind="guest", settings={}, created_at=now()))

    def _use_again(self, conversation_id: str) -> None:
        if self.expires_in_s(conversation_id) == 0:
            raise NotFound("This temporary chat has ended. Nothing of it was kept.")
        self._use(conversation_id)

    def _use(self, conversation_id: str) -> None:
        with self._lock:
            self._ends_at[conversation_id] = time.monotonic() + KEPT_S

    def _count_of(self, owner_id: str) -> int:
        """All of a person's, archived ones too."""
        with self.database.reading() as db:
            query = select(func.count()).select_from(ConversationTable).where(ConversationTable.owner_id == owner_id)
            return db.scalar(query) or 0

    def _open_run(self, conversation_id: str) -> str | None:
        with self.database.reading() as db:
            return open_run(db, conversation_id)

    def _refuse_too_much(self, owner_id: str, allowance: Allowance) -> None:
        with self._kept.reading() as db:
            refuse_too_much(db, owner_id, allowance, now())

    def _count_new(self, owner_id: str, accepted: Accepted) -> None:
        if accepted.is_new:
            with self._kept.writing() as db:
                count_usage(db, owner_id, now(), runs=1)


class History:
    """Both stores; `of` says which one has what an id names."""

    def __init__(self, kept: Store) -> None:
        self.kept = kept
        self.temporary = TemporaryStore(kept.database)

    def of(self, any_id: str) -> Store:
        """The store that the conversation, message or run is in, if there is one."""
        return self.temporary if is_temporary(any_id) else self.kept

    @property
    def stores(self) -> tuple[Store, Store]:
        """Both."""
        return self.kept, self.temporary

    def close(self) -> None:
        """Give back every connection; what is temporary is gone."""
        self.temporary.database.close()
        self.kept.database.close()
