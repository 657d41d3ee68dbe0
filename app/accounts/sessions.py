"""Sessions: from a cookie's token to the person who calls, and how long that lasts."""

from contextlib import suppress
from datetime import datetime, timedelta

from ua_parser import parse

from app.accounts.attempts import Attempts
from app.accounts.keys import hash_of, is_of_account, new_token
from app.config import Settings
from app.errors import ConfirmFirst, Disabled, SignedOut, StorageFailed
from app.history.people import Caller, People
from app.history.store import now

ABSOLUTE = timedelta(days=60)
IDLE = timedelta(days=14)
_RENEW_GUEST_AFTER = timedelta(days=30)
_RECENT = timedelta(minutes=10)
_LONGEST_AGENT = 300


class Sessions:
    """Opens, knows and ends sessions."""

    def __init__(self, people: People, attempts: Attempts, settings: Settings) -> None:
        self._people = people
        self._attempts = attempts
        self._guest_idle = timedelta(days=settings.guest_days)
        self.usable_providers = frozenset(provider.name for provider in settings.providers)

    def caller(self, token: str | None) -> Caller | None:
        """Who has this cookie; None for nobody and for a guest who is gone.

        Raises:
            SignedOut: it was an account's, and its session has ended.
            Disabled: it is a guest's, whom an admin has disabled.
        """
        if not token:
            return None
        found = self._people.caller(hash_of(token))
        if found is not None and not found.is_disabled and self._is_alive(found):
            return found
        if found is not None and found.is_disabled and found.kind == "guest":
            raise Disabled("Whoever runs this server has ended your visit here.")
        if (found is not None and found.kind == "account") or is_of_account(token):
            raise SignedOut("You have been signed out. Sign in again; your text is still here.")
        return None

    def is_due(self, caller: Caller) -> bool:
        """Whether the visit is to be noted; once an hour, so that reading stays reading."""
        return _hour(now()) > _hour(caller.last_seen_at)

    def note_visit(self, caller: Caller) -> None:
        """Note the visit, exact to the hour; reading goes on where writing does not, and the next visit tries again."""
        with suppress(StorageFailed):
            self._people.touch(caller.session_id, _hour(now()))

    def is_open(self, session_id: str) -> bool:
        """Whether a session has not been ended meanwhile; for streams, which outlive their request's check."""
        try:
            return self._people.has_session(session_id)
        except StorageFailed:
            # What the stream shows comes from memory; a database that is away for a moment does not end it
            return True

    def new_guest(self, agent: str, address: str) -> str:
        """A new guest's token.

        Raises:
            TooManyAttempts: many guests came from there.
        """
        self._attempts.count_guest(address)
        token = new_token("guest")
        self._people.add_guest(hash_of(token), shown_agent(agent))
        return token

    def open(self, person_id: str, agent: str, *, instead_of: Caller | None, verified_at: datetime | None) -> str:
        """A session for an account; its token. `verified_at` is when it was checked; a guest's or older one ends."""
        token = new_token("account")
        self._people.open_session(
            person_id,
            hash_of(token),
            shown_agent(agent),
            verified_at=verified_at,
            instead_of=instead_of.session_id if instead_of else None,
        )
        return token

    def renewed_guest(self, caller: Caller, agent: str) -> str | None:
        """A new token for a guest whose session grows old; None while it is young.

        The old one goes on until it is idle: its answer may be lost, or another tab still use it.
        """
        if caller.kind != "guest" or now() - caller.created_at < _RENEW_GUEST_AFTER:
            return None
        token = new_token("guest")
        try:
            self._people.open_session(caller.person_id, hash_of(token), shown_agent(agent), verified_at=None)
        except StorageFailed:
            return None
        return token

    def is_recent(self, caller: Caller) -> bool:
        """Whether a password or a provider was checked in this session in the last ten minutes."""
        return caller.verified_at is not None and now() - caller.verified_at < _RECENT

    def require_recent(self, caller: Caller) -> None:
        """Before what cannot be undone or opens a way in. Guests have nothing to check.

        Raises:
            ConfirmFirst: the last check is too long ago.
        """
        if caller.kind == "guest" or self.is_recent(caller):
            return
        person = self._people.person(caller.person_id)
        ways = ["password"] if person.has_password else []
        identities = self._people.identities(caller.person_id)
        ways += [identity.provider for identity in identities if identity.provider in self.usable_providers]
        if not ways:
            return  # the operator took their provider away; they may still leave
        raise ConfirmFirst("Confirm that it is you first.", methods=",".join(ways))

    def _is_alive(self, caller: Caller) -> bool:
        moment = now()
        is_guest = caller.kind == "guest"
        # `last_seen_at` is up to an hour early
        idle = (self._guest_idle if is_guest else IDLE) + timedelta(hours=1)
        return moment - caller.last_seen_at < idle and (is_guest or moment - caller.created_at < ABSOLUTE)


def shown_agent(agent: str) -> str:
    """A browser as its owner knows it again: "Firefox on Linux"; nothing finer is kept."""
    found = parse(agent[:_LONGEST_AGENT])
    browser = found.user_agent.family if found.user_agent else ""
    system = found.os.family if found.os else ""
    return " on ".join(part for part in (browser, system) if part)[:80] or "A program"


def _hour(moment: datetime) -> datetime:
    return moment.replace(minute=0, second=0, microsecond=0)
