"""People, their sessions, and how they prove who they are. Knows hashes, never a password, a token or a code."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, bindparam, delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.errors import IdentityTaken, LastWayIn, NotFound, StorageFailed, UsernameTaken
from app.history.database import Database
from app.history.removal import remove_conversations
from app.history.search import move_entries
from app.history.store import new_id, now
from app.history.tables import (
    ConversationTable,
    IdentityTable,
    PersonTable,
    RecoveryCodeTable,
    RunTable,
    SessionTable,
)
from app.history.usage import move_usage

_MOST_SESSIONS = 50


@dataclass(frozen=True, slots=True)
class Caller:
    """The person behind a request, and the session they came with."""

    person_id: str
    kind: str
    name: str
    is_admin: bool
    is_disabled: bool
    runs_per_day: int | None
    settings: dict[str, Any]
    session_id: str
    created_at: datetime
    last_seen_at: datetime
    verified_at: datetime | None


@dataclass(frozen=True, slots=True)
class Person:
    """What a person's own page shows of them."""

    id: str
    kind: str
    username: str
    name: str
    is_admin: bool
    is_disabled: bool
    has_password: bool
    settings: dict[str, Any]
    notice_version: int
    conversation_count: int
    recovery_codes: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a name and a password are checked against."""

    person_id: str
    password_hash: str | None
    is_disabled: bool


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A row of a person's list of sessions."""

    id: str
    agent: str
    created_at: datetime
    last_seen_at: datetime


@dataclass(frozen=True, slots=True)
class Identity:
    """A provider's word for a person."""

    id: str
    person_id: str
    issuer: str
    subject: str
    provider: str
    created_at: datetime


# Asked by every request: columns, and built once, as building it and making rows of the ORM take longer than the query
_CALLER = (
    select(
        PersonTable.id.label("person_id"),
        PersonTable.kind,
        PersonTable.username,
        PersonTable.display_name,
        PersonTable.is_admin,
        PersonTable.is_disabled,
        PersonTable.runs_per_day,
        PersonTable.settings,
        SessionTable.id.label("session_id"),
        SessionTable.created_at,
        SessionTable.last_seen_at,
        SessionTable.verified_at,
    )
    .join_from(SessionTable, PersonTable, PersonTable.id == SessionTable.person_id)
    .where(SessionTable.token_hash == bindparam("token_hash"))
)


class People:
    """The queries about people. Synchronous; raises `StorageFailed` throughout."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # Sessions

    def caller(self, token_hash: str) -> Caller | None:
        """Who has the cookie whose token has this hash, however old the session is."""
        with self.database.reading() as db:
            found = db.execute(_CALLER, {"token_hash": token_hash}).first()
        if found is None:
            return None
        return Caller(
            person_id=found.person_id,
            kind=found.kind,
            name=found.username or found.display_name,
            is_admin=found.is_admin,
            is_disabled=found.is_disabled,
            runs_per_day=found.runs_per_day,
            settings=found.settings,
            session_id=found.session_id,
            created_at=found.created_at,
            last_seen_at=found.last_seen_at,
            verified_at=found.verified_at,
        )

    def has_session(self, session_id: str) -> bool:
        """Whether the session has not been ended, nor its person disabled."""
        with self.database.reading() as db:
            found = db.scalar(
                select(SessionTable.id)
                .join(PersonTable, PersonTable.id == SessionTable.person_id)
                .where(SessionTable.id == session_id, PersonTable.is_disabled.is_(False))
            )
        return found is not None

    def touch(self, session_id: str, moment: datetime) -> None:
        """The session was used."""
        with self.database.writing() as db:
            db.execute(update(SessionTable).where(SessionTable.id == session_id).values(last_seen_at=moment))

    def open_session(
        self,
        person_id: str,
        token_hash: str,
        agent: str,
        *,
        verified_at: datetime | None,
        instead_of: str | None = None,
    ) -> None:
        """A new session; the one it stands for is over."""
        moment = now()
        with self.database.writing() as db:
            if instead_of is not None:
                db.execute(delete(SessionTable).where(SessionTable.id == instead_of))
            db.add(_session(person_id, token_hash, agent, moment, verified_at))
            db.flush()
            newest = (
                select(SessionTable.token_hash)
                .where(SessionTable.person_id == person_id)
                .order_by(SessionTable.created_at.desc())
                .limit(_MOST_SESSIONS)
            )
            db.execute(
                delete(SessionTable).where(
                    SessionTable.person_id == person_id, SessionTable.token_hash.not_in(newest.scalar_subquery())
                )
            )

    def sessions(self, person_id: str) -> list[BrowserSession]:
        """A person's sessions, the latest used first."""
        with self.database.reading() as db:
            rows = db.scalars(
                select(SessionTable)
                .where(SessionTable.person_id == person_id)
                .order_by(SessionTable.last_seen_at.desc(), SessionTable.created_at.desc())
            )
            return [BrowserSession(row.id, row.agent, row.created_at, row.last_seen_at) for row in rows]

    def end_session(self, person_id: str, session_id: str) -> None:
        """End one of a person's sessions.

        Raises:
            NotFound: there is none, or it is somebody else's.
        """
        with self.database.writing() as db:
            found = db.execute(
                delete(SessionTable)
                .where(SessionTable.id == session_id, SessionTable.person_id == person_id)
                .returning(SessionTable.id)
            ).all()
        if not found:
            raise NotFound("This session is not here. It may have ended already.")

    def end_sessions(self, person_id: str, *, but: str | None = None) -> None:
        """End all sessions of a person, except one."""
        with self.database.writing() as db:
            _end_sessions(db, person_id, but)

    # Guests and accounts

    def add_guest(self, token_hash: str, agent: str = "") -> str:
        """A new guest with this cookie; their id."""
        person = PersonTable(id=new_id(), kind="guest", settings={}, created_at=now())
        with self.database.writing() as db:
            db.add(person)
            db.flush()
            db.add(_session(person.id, token_hash, agent, person.created_at, None))
        return person.id

    def add_account(
        self,
        *,
        username: str | None = None,
        username_key: str | None = None,
        display_name: str = "",
        password_hash: str | None = None,
        code_hashes: Iterable[str] = (),
        is_admin: bool = False,
        identity: tuple[str, str, str] | None = None,
    ) -> str:
        """A new account; its id. `identity` is issuer, subject, provider.

        Raises:
            UsernameTaken: somebody has that name, or one that looks like it.
            IdentityTaken: the identity has an account.
        """
        person = PersonTable(
            id=new_id(),
            kind="account",
            username=username,
            username_key=username_key,
            display_name=display_name,
            password_hash=password_hash,
            is_admin=is_admin,
            settings={},
            created_at=now(),
        )
        with _taken_meanwhile(), self.database.writing() as db:
            _refuse_a_taken_name(db, username_key, person.id)
            if identity is not None and _identity(db, identity[0], identity[1]) is not None:
                raise IdentityTaken("This identity has an account here already.")
            db.add(person)
            db.flush()
            db.add_all(RecoveryCodeTable(code_hash=code, person_id=person.id) for code in code_hashes)
            if identity is not None:
                db.add(_identity_row(person.id, *identity))
        return person.id

    def person(self, person_id: str) -> Person:
        """What a person's own page shows.

        Raises:
            NotFound: they are gone.
        """
        with self.database.reading() as db:
            row = db.get(PersonTable, person_id)
            if row is None:
                raise NotFound("This person is not here.")
            return Person(
                id=row.id,
                kind=row.kind,
                username=row.username or "",
                name=_name(row),
                is_admin=row.is_admin,
                is_disabled=row.is_disabled,
                has_password=row.password_hash is not None,
                settings=row.settings,
                notice_version=row.notice_version,
                conversation_count=_count(
                    db, select(ConversationTable.id).filter_by(owner_id=person_id, deleted_at=None)
                ),
                recovery_codes=_count(db, select(RecoveryCodeTable.code_hash).filter_by(person_id=person_id)),
            )

    def change_settings(self, person_id: str, changes: dict[str, Any], notice_version: int | None) -> None:
        """Put `changes` over the person's settings; note which notice they accepted."""
        with self.database.writing() as db:
            row = _person(db, person_id)
            row.settings = {**row.settings, **changes}
            if notice_version is not None and notice_version > row.notice_version:
                row.notice_version, row.notice_accepted_at = notice_version, now()

    def claim(self, guest_id: str, account_id: str, *, with_settings: bool) -> None:
        """Move everything a guest has to an account, and end the guest. Only a guest can be claimed.

        Raises:
            NotFound: the guest is gone, or is none.
        """
        with self.database.writing() as db:
            guest, account = _person(db, guest_id), _person(db, account_id)
            if guest.kind != "guest" or account.kind != "account":
                raise NotFound("This guest is not here.")
            own_keys = select(RunTable.client_key).where(RunTable.owner_id == account_id)
            # Keys are unique by owner; one of a guest that the account has used too is worth nothing any more
            db.execute(
                update(RunTable)
                .where(RunTable.owner_id == guest_id, RunTable.client_key.in_(own_keys))
                .values(client_key=RunTable.id)
            )
            for table in (ConversationTable, RunTable):
                db.execute(update(table).where(table.owner_id == guest_id).values(owner_id=account_id))
            move_entries(db, guest_id, account_id)
            move_usage(db, guest_id, account_id)
            if with_settings:
                account.settings = guest.settings
                account.notice_version, account.notice_accepted_at = guest.notice_version, guest.notice_accepted_at
            db.flush()
            db.execute(delete(PersonTable).where(PersonTable.id == guest_id))

    def delete(self, person_id: str) -> None:
        """Remove a person with all they have; their numbers stay without them.

        Raises:
            NotFound: they are gone already.
        """
        with self.database.writing() as db:
            row = _person(db, person_id)
            # At once nobody can be them nor read anything. Should we end in mid-way, the purge job takes such a guest
            for table in (SessionTable, IdentityTable, RecoveryCodeTable):
                db.execute(delete(table).where(table.person_id == person_id))
            row.kind, row.username, row.username_key, row.display_name = "guest", None, None, ""
            row.password_hash, row.is_admin, row.settings = None, False, {}
            db.execute(
                update(ConversationTable)
                .where(ConversationTable.owner_id == person_id)
                .values(deleted_at=now(), deletion_id=new_id())
            )
        remove_conversations(self.database, ConversationTable.owner_id == person_id)
        with self.database.writing() as db:
            move_usage(db, person_id, "")
            db.execute(delete(PersonTable).where(PersonTable.id == person_id))

    # Passwords and codes

    def credentials(self, username_key: str) -> Credentials | None:
        """What the password of this name is checked against."""
        return self._credentials(select(PersonTable).where(PersonTable.username_key == username_key))

    def credentials_of(self, person_id: str) -> Credentials | None:
        """What this person's password is checked against."""
        return self._credentials(select(PersonTable).where(PersonTable.id == person_id))

    def _credentials(self, query: Select[PersonTable]) -> Credentials | None:
        with self.database.reading() as db:
            row = db.scalar(query)
        return Credentials(row.id, row.password_hash, row.is_disabled) if row is not None else None

    def set_password(
        self,
        person_id: str,
        password_hash: str,
        *,
        but: str | None = None,
        name: tuple[str, str] | None = None,
        code_hashes: Sequence[str] = (),
    ) -> None:
        """A new password; every session but one is over. `name` is username and key, where there was none.

        Raises:
            UsernameTaken: somebody has that name.
        """
        with _taken_meanwhile(), self.database.writing() as db:
            row = _person(db, person_id)
            if name is not None:
                _refuse_a_taken_name(db, name[1], person_id)
                row.username, row.username_key = name
            row.password_hash = password_hash
            _end_sessions(db, person_id, but)
            if code_hashes:
                _set_codes(db, person_id, code_hashes)

    def rehash(self, person_id: str, password_hash: str) -> None:
        """The same password under today's parameters."""
        with self.database.writing() as db:
            _person(db, person_id).password_hash = password_hash

    def set_codes(self, person_id: str, code_hashes: Sequence[str]) -> None:
        """New recovery codes; the old ones are void."""
        with self.database.writing() as db:
            _set_codes(db, person_id, code_hashes)

    def recover(self, person_id: str, code_hash: str, password_hash: str) -> bool:
        """Use up a code, set the password, end all sessions; False if the code is not theirs or was used."""
        with self.database.writing() as db:
            used = db.execute(
                delete(RecoveryCodeTable)
                .where(RecoveryCodeTable.code_hash == code_hash, RecoveryCodeTable.person_id == person_id)
                .returning(RecoveryCodeTable.code_hash)
            ).all()
            if used:
                _person(db, person_id).password_hash = password_hash
                _end_sessions(db, person_id, None)
        return bool(used)

    def has_code(self, person_id: str, code_hash: str) -> bool:
        """Whether this code would work."""
        with self.database.reading() as db:
            found = db.scalar(select(RecoveryCodeTable.code_hash).filter_by(code_hash=code_hash, person_id=person_id))
        return found is not None

    # Identities

    def identity(self, issuer: str, subject: str) -> tuple[Identity, bool] | None:
        """Whose identity this is, and whether they are disabled."""
        with self.database.reading() as db:
            row = _identity(db, issuer, subject)
            if row is None:
                return None
            return _as_identity(row), _person(db, row.person_id).is_disabled

    def identities(self, person_id: str) -> list[Identity]:
        """A person's identities, the oldest first."""
        with self.database.reading() as db:
            rows = db.scalars(
                select(IdentityTable).where(IdentityTable.person_id == person_id).order_by(IdentityTable.created_at)
            )
            return [_as_identity(row) for row in rows]

    def link(self, person_id: str, issuer: str, subject: str, provider: str) -> None:
        """Give a person one more identity; theirs already is fine.

        Raises:
            IdentityTaken: it is another account's.
        """
        with self.database.writing() as db:
            found = _identity(db, issuer, subject)
            if found is not None and found.person_id != person_id:
                raise IdentityTaken("This identity belongs to another account here. Sign in with it to use that one.")
            if found is None:
                db.add(_identity_row(person_id, issuer, subject, provider))

    def unlink(self, person_id: str, identity_id: str, usable_providers: Collection[str]) -> None:
        """Take an identity away; only those of `usable_providers` are ways in.

        Raises:
            NotFound: there is none, or it is somebody else's.
            LastWayIn: nobody could sign in to this account any more.
        """
        with self.database.writing() as db:
            row = db.scalar(select(IdentityTable).filter_by(id=identity_id, person_id=person_id))
            if row is None:
                raise NotFound("This identity is not here.")
            others = _count(
                db,
                select(IdentityTable.id).where(
                    IdentityTable.person_id == person_id,
                    IdentityTable.id != identity_id,
                    IdentityTable.provider.in_(usable_providers),
                ),
            )
            if not others and _person(db, person_id).password_hash is None:
                raise LastWayIn("This is the only way into your account. Set a password first.")
            db.delete(row)


@contextmanager
def _taken_meanwhile() -> Iterator[None]:
    """Two processes may find the same name free; the database then lets one in."""
    try:
        yield
    except StorageFailed as error:
        if isinstance(error.__cause__, IntegrityError):
            raise UsernameTaken("This name or identity has just been taken. Try again.") from error
        raise


def _session(
    person_id: str, token_hash: str, agent: str, moment: datetime, verified_at: datetime | None
) -> SessionTable:
    return SessionTable(
        token_hash=token_hash,
        id=new_id(),
        person_id=person_id,
        agent=agent,
        created_at=moment,
        last_seen_at=moment,
        verified_at=verified_at,
    )


def _end_sessions(db: Session, person_id: str, but: str | None) -> None:
    db.execute(delete(SessionTable).where(SessionTable.person_id == person_id, SessionTable.id != (but or "")))


def _set_codes(db: Session, person_id: str, code_hashes: Sequence[str]) -> None:
    db.execute(delete(RecoveryCodeTable).where(RecoveryCodeTable.person_id == person_id))
    db.add_all(RecoveryCodeTable(code_hash=code, person_id=person_id) for code in code_hashes)


def _person(db: Session, person_id: str) -> PersonTable:
    row = db.get(PersonTable, person_id)
    if row is None:
        raise NotFound("This person is not here.")
    return row


def _name(row: PersonTable) -> str:
    return row.username or row.display_name


def _count(db: Session, query: Select[Any]) -> int:
    return db.scalar(select(func.count()).select_from(query.subquery())) or 0


def _refuse_a_taken_name(db: Session, username_key: str | None, person_id: str) -> None:
    if username_key is None:
        return
    taken = select(exists().where(PersonTable.username_key == username_key, PersonTable.id != person_id))
    if db.scalar(taken):
        raise UsernameTaken("This name is taken. Choose another one.")


def _identity(db: Session, issuer: str, subject: str) -> IdentityTable | None:
    return db.scalar(select(IdentityTable).filter_by(issuer=issuer, subject=subject))


def _identity_row(person_id: str, issuer: str, subject: str, provider: str) -> IdentityTable:
    return IdentityTable(
        id=new_id(), person_id=person_id, issuer=issuer, subject=subject, provider=provider, created_at=now()
    )


def _as_identity(row: IdentityTable) -> Identity:
    return Identity(row.id, row.person_id, row.issuer, row.subject, row.provider, row.created_at)
