"""How often something may be tried: `limits` over a table, under keyed hashes that change every day.

Attempts are counted for a name from an address, and for an address; never for a name alone, or a stranger could lock
somebody out.
"""

import time

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy import delete, select

from app.accounts.keys import keyed_today
from app.errors import PonderError, StorageFailed, TooManyAttempts
from app.history.database import Database
from app.history.store import now
from app.history.tables import CounterTable

_NAME_AND_ADDRESS = RateLimitItemPerMinute(5, 15, namespace="name")
_ADDRESS = RateLimitItemPerHour(50, namespace="address")
_IMPORTS = RateLimitItemPerHour(10, namespace="imports")
_TAKEN_NAMES = RateLimitItemPerHour(10, namespace="names")
_NEW_ACCOUNTS = RateLimitItemPerHour(10, namespace="accounts")


class TableStorage(Storage):
    """`limits`' counters as rows, so that they outlive a restart and are shared by processes."""

    STORAGE_SCHEME = None

    def __init__(self, database: Database) -> None:
        super().__init__()
        self._database = database

    @property
    def base_exceptions(self) -> type[Exception]:
        return StorageFailed

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count; a counter that has expired begins anew."""
        moment = time.time()
        with self._database.writing() as db:
            row = db.get(CounterTable, key, with_for_update=True)
            if row is None:
                row = CounterTable(key=key, count=0, expires_at=moment + expiry)
                db.add(row)
            elif row.expires_at <= moment:
                row.count, row.expires_at = 0, moment + expiry
            row.count += amount
            return row.count

    def get(self, key: str) -> int:
        """The count; 0 for an unknown or expired key."""
        with self._database.reading() as db:
            query = select(CounterTable.count).where(CounterTable.key == key, CounterTable.expires_at > time.time())
            return db.scalar(query) or 0

    def get_expiry(self, key: str) -> float:
        """When the counter begins anew, in seconds of the epoch."""
        with self._database.reading() as db:
            return db.scalar(select(CounterTable.expires_at).where(CounterTable.key == key)) or time.time()

    def check(self) -> bool:
        """Whether the database answers."""
        return self._database.is_answering()

    def reset(self) -> int | None:
        """Forget every counter."""
        with self._database.writing() as db:
            return len(db.execute(delete(CounterTable).returning(CounterTable.key)).all())

    def clear(self, key: str) -> None:
        """Forget one counter; most who sign in have none, and reading that keeps the writer free."""
        if not self.get(key):
            return
        with self._database.writing() as db:
            db.execute(delete(CounterTable).where(CounterTable.key == key))


class Attempts:
    """Counts what failed or was made, and refuses more of it. Synchronous."""

    def __init__(self, database: Database, secret: bytes, new_guests_per_hour: int) -> None:
        self._limiter = FixedWindowRateLimiter(TableStorage(database))
        self._secret = secret
        self._guests = RateLimitItemPerHour(new_guests_per_hour, namespace="guests")

    def refuse_too_many(self, name: str, address: str) -> None:
        """Before a check of a password or a code.

        Raises:
            TooManyAttempts: five failed for this name from here in 15 minutes, or 50 from here in an hour.
        """
        for item, who in ((_NAME_AND_ADDRESS, (name, address)), (_ADDRESS, (address,))):
            self._test(item, "That failed too often.", *who)

    def refuse_many_names(self, address: str) -> None:
        """Before it is said whether a name is taken.

        Raises:
            TooManyAttempts: ten names were told to be taken, to this address in this hour.
        """
        self._test(_TAKEN_NAMES, "Many names that are taken were tried from your address.", address)

    def count_taken_name(self, address: str) -> None:
        """A name was told to be taken."""
        self._limiter.hit(_TAKEN_NAMES, self._hashed(address))

    def failed(self, name: str, address: str) -> None:
        """A check failed."""
        self._limiter.hit(_NAME_AND_ADDRESS, self._hashed(name, address))
        self._limiter.hit(_ADDRESS, self._hashed(address))

    def succeeded(self, name: str, address: str) -> None:
        """A check went well: this name begins anew from here."""
        self._limiter.clear(_NAME_AND_ADDRESS, self._hashed(name, address))

    def count_account(self, address: str) -> None:
        """One more account from this address.

        Raises:
            TooManyAttempts: ten were made in this hour.
        """
        self._count(_NEW_ACCOUNTS, "Many accounts were made from your address.", address)

    def count_guest(self, address: str) -> None:
        """One more guest from this address.

        Raises:
            TooManyAttempts: as many as the settings allow were made in this hour.
        """
        self._count(self._guests, "Many guests came from your address.", address)

    def count_import(self, person_id: str) -> None:
        """One more file of this person.

        Raises:
            TooManyAttempts: ten came in this hour.
        """
        self._count(_IMPORTS, "You imported many files.", person_id)

    def _test(self, item: RateLimitItem, what: str, *who: str) -> None:
        hashed = self._hashed(*who)
        if not self._limiter.test(item, hashed):
            self._refuse(what, int(self._limiter.get_window_stats(item, hashed).reset_time))

    def _count(self, item: RateLimitItemPerHour, what: str, who: str) -> None:
        hashed = self._hashed(who)
        if not self._limiter.hit(item, hashed):
            self._refuse(what, int(self._limiter.get_window_stats(item, hashed).reset_time))

    def _refuse(self, what: str, until: int) -> None:
        seconds = max(1, until - int(time.time()))
        minutes = -(-seconds // 60)
        wait = "a minute" if minutes == 1 else f"{minutes} minutes"
        error: PonderError = TooManyAttempts(f"{what} Try again in {wait}.", retry_after_s=seconds)
        raise error

    def _hashed(self, *who: str) -> str:
        return keyed_today(self._secret, now(), *who)
