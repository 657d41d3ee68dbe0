"""The tables. Alembic's migrations are made to equal these; a test compares them.

No value in a row keeps the row from being read: what is not what it must be comes as a marker of `damage`.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from app.history.damage import DAMAGED_MOMENT, DamagedList, DamagedObject
from app.history.states import open_sql


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC on every database (SQLite forgets the zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any | None], datetime | None] | None:
        read = super().result_processor(dialect, coltype)
        assert read is not None

        def read_or_mark(value: Any | None) -> datetime | None:
            try:
                return read(value)
            except (ValueError, TypeError, OverflowError):
                return DAMAGED_MOMENT

        return read_or_mark


class JsonObject(TypeDecorator[dict[str, Any]]):
    """A JSON object."""

    impl = JSON
    cache_ok = True

    def process_result_value(self, value: Any | None, dialect: Dialect) -> dict[str, Any]:
        return value if isinstance(value, dict) else DamagedObject()


class JsonList(TypeDecorator[list[dict[str, Any]]]):
    """A JSON list."""

    impl = JSON
    cache_ok = True

    def process_result_value(self, value: Any | None, dialect: Dialect) -> list[dict[str, Any]]:
        return value if isinstance(value, list) else DamagedList()


class Words(TypeDecorator[str]):
    """What people and models write. SQLite keeps bytes in a column of text if somebody puts them there."""

    impl = Text
    cache_ok = True

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str:
        return value if isinstance(value, str) else _decoded(value)


class Title(TypeDecorator[str]):
    """As `Words`, in a column of a fixed length."""

    impl = String(200)
    cache_ok = True

    def process_result_value(self, value: Any | None, dialect: Dialect) -> str:
        return value if isinstance(value, str) else _decoded(value)


def _decoded(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class Table(DeclarativeBase):
    """Base of all tables; constraints have names so that migrations can find them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JsonObject,
        list[dict[str, Any]]: JsonList,
    }


Id = String(32)


class PersonTable(Table):
    """Who owns things. A guest is a person with a cookie and no name; an account has a username or an identity.

    `username_key` is the username folded so that two people cannot have names that look the same.
    """

    __tablename__ = "people"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    username: Mapped[str | None] = mapped_column(String(64))
    username_key: Mapped[str | None] = mapped_column(String(64), unique=True, index=True)
    # What a provider calls them, to greet them by; says nothing about who they are
    display_name: Mapped[str] = mapped_column(String(64), default="", server_default="")
    password_hash: Mapped[str | None] = mapped_column(String(200))
    is_admin: Mapped[bool] = mapped_column(default=False, server_default=false())
    is_disabled: Mapped[bool] = mapped_column(default=False, server_default=false())
    runs_per_day: Mapped[int | None] = mapped_column(Integer)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    notice_version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    notice_accepted_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class SessionTable(Table):
    """A browser that is known: the hash of its cookie's token, never the token.

    `last_seen_at` is exact to the hour; `verified_at` is when its password or provider was last checked.
    """

    __tablename__ = "sessions"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    id: Mapped[str] = mapped_column(Id, unique=True, index=True)
    person_id: Mapped[str] = mapped_column(Id, ForeignKey("people.id", ondelete="CASCADE"), index=True)
    agent: Mapped[str] = mapped_column(String(80), default="", server_default="")
    created_at: Mapped[datetime]
    last_seen_at: Mapped[datetime] = mapped_column(index=True)
    verified_at: Mapped[datetime | None]


class IdentityTable(Table):
    """A provider's word for who somebody is: the issuer and its subject, nothing else."""

    __tablename__ = "identities"
    __table_args__ = (UniqueConstraint("issuer", "subject", name="uq_identities_issuer_subject"),)

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    person_id: Mapped[str] = mapped_column(Id, ForeignKey("people.id", ondelete="CASCADE"), index=True)
    issuer: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    provider: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime]


class RecoveryCodeTable(Table):
    """The hash of a code that sets a new password once."""

    __tablename__ = "recovery_codes"

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    person_id: Mapped[str] = mapped_column(Id, ForeignKey("people.id", ondelete="CASCADE"), index=True)


class CounterTable(Table):
    """Attempts counted under a keyed hash; `expires_at` in seconds of the epoch, as `limits` counts them."""

    __tablename__ = "counters"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    count: Mapped[int] = mapped_column(Integer)
    expires_at: Mapped[float] = mapped_column(index=True)


class UsageTable(Table):
    """What a person used on a day (UTC), apart from the runs: deleting a chat gives nothing back.

    No foreign key: the numbers of people who are gone are kept under the person "".
    """

    __tablename__ = "usage"

    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    person_id: Mapped[str] = mapped_column(Id, primary_key=True, index=True)
    runs: Mapped[int] = mapped_column(Integer, default=0)
    done: Mapped[int] = mapped_column(Integer, default=0)
    stopped: Mapped[int] = mapped_column(Integer, default=0)
    failed: Mapped[int] = mapped_column(Integer, default=0)
    interrupted: Mapped[int] = mapped_column(Integer, default=0)
    reasoning_tokens: Mapped[int] = mapped_column(Integer, default=0)
    answer_tokens: Mapped[int] = mapped_column(Integer, default=0)


_PRESENT = text("deleted_at IS NULL")
_DELETED = text("deleted_at IS NOT NULL")


class ConversationTable(Table):
    """A tree of messages; `leaf_id` is the end of the branch that is shown.

    `recency` orders a person's conversations: microseconds of the last turn, never going backwards. With a
    `deleted_at` it is gone for everybody; the row waits for an undo or, being imported, for the rest of its file.
    """

    __tablename__ = "conversations"
    __table_args__ = (
        Index(
            "ix_conversations_list",
            "owner_id",
            "is_archived",
            "is_pinned",
            "recency",
            "id",
            sqlite_where=_PRESENT,
            postgresql_where=_PRESENT,
        ),
        Index("ix_conversations_deleted", "deleted_at", sqlite_where=_DELETED, postgresql_where=_DELETED),
        Index(
            "ix_conversations_search_version",
            "search_version",
            sqlite_where=_PRESENT,
            postgresql_where=_PRESENT,
        ),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, ForeignKey("people.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(Title)
    is_pinned: Mapped[bool] = mapped_column(default=False, server_default=false())
    is_archived: Mapped[bool] = mapped_column(default=False, server_default=false())
    recency: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    # An answer has ended here while nobody was looking
    is_unread: Mapped[bool] = mapped_column(default=False, server_default=false())
    # The rules that its rows in the search were made by; 0 is none at all
    search_version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    deleted_at: Mapped[datetime | None]
    deletion_id: Mapped[str | None] = mapped_column(Id)
    # No foreign key: it would make a circle with messages, and a leaf that is gone only means the newest branch
    leaf_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class MessageTable(Table):
    """One role's text. An assistant's reasoning stands apart from its answer, both without any markup.

    `html` and `reasoning_html` are what the renderer of `renderer_version` made of them; empty until a run is over.
    """

    __tablename__ = "messages"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    conversation_id: Mapped[str] = mapped_column(Id, ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    parent_id: Mapped[str | None] = mapped_column(Id, ForeignKey("messages.id", ondelete="CASCADE"), index=True)
    # Order of writing inside the conversation; times may tie or jump
    position: Mapped[int] = mapped_column(Integer)
    role: Mapped[str] = mapped_column(String(16))
    text: Mapped[str] = mapped_column(Words, default="")
    reasoning: Mapped[str] = mapped_column(Words, default="")
    html: Mapped[str] = mapped_column(Words, default="")
    reasoning_html: Mapped[str] = mapped_column(Words, default="")
    renderer_version: Mapped[int] = mapped_column(Integer, default=0)
    is_imported: Mapped[bool] = mapped_column(default=False, server_default=false())
    created_at: Mapped[datetime]


_OPEN = text(open_sql())


class RunTable(Table):
    """One attempt to answer: queued, running, done, stopped, failed or interrupted."""

    __tablename__ = "runs"
    __table_args__ = (
        UniqueConstraint("owner_id", "client_key", name="uq_runs_client_key"),
        Index("uq_runs_one_open", "conversation_id", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index("ix_runs_open", "state", "owner_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, ForeignKey("people.id", ondelete="CASCADE"))
    conversation_id: Mapped[str] = mapped_column(Id, ForeignKey("conversations.id", ondelete="CASCADE"), index=True)
    answer_id: Mapped[str] = mapped_column(Id, ForeignKey("messages.id", ondelete="CASCADE"), index=True)
    client_key: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(String(200), default="")
    effort: Mapped[str] = mapped_column(String(16))
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    notes: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    usage: Mapped[dict[str, Any]] = mapped_column(default=dict)
    timing: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error_code: Mapped[str] = mapped_column(String(64), default="")
    error_message: Mapped[str] = mapped_column(Words, default="")
    last_event: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]


_TITLE = text("message_id IS NULL")


class SearchEntryTable(Table):
    """What a message is found by, or with no `message_id` a conversation's title.

    `id` is the moment of what was written, so entries made anew keep their place in the order. `terms` are different
    words, parted by spaces, never empty. `search_terms` (SQLite) and `ix_search_terms` (PostgreSQL) index them.
    """

    __tablename__ = "search_entries"
    __table_args__ = (
        Index("ix_search_entries_owner", "owner_id", "id"),
        Index("ix_search_entries_conversation_id", "conversation_id"),
        Index(
            "uq_search_entries_title",
            "conversation_id",
            unique=True,
            sqlite_where=_TITLE,
            postgresql_where=_TITLE,
        ),
    )

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False)
    # The conversation's, which alone says whose it is; no foreign key, as the conversation has it
    owner_id: Mapped[str] = mapped_column(Id)
    conversation_id: Mapped[str] = mapped_column(Id, ForeignKey("conversations.id", ondelete="CASCADE"))
    message_id: Mapped[str | None] = mapped_column(Id, ForeignKey("messages.id", ondelete="CASCADE"), unique=True)
    terms: Mapped[str] = mapped_column(Text)
