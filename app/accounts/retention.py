"""What is kept how long, and the job that ends it: guests, sessions, counters; in pieces that hold no writer up."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, or_, select
from sqlalchemy.orm import aliased

from app.accounts.sessions import ABSOLUTE, IDLE
from app.config import Settings
from app.errors import NotFound
from app.history.database import Database
from app.history.people import People
from app.history.snapshots import remove_old
from app.history.store import now
from app.history.tables import CounterTable, PersonTable, SessionTable

_BATCH = 100
_EVERY_S = 3600
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Purged:
    """How many of each were (or, in a dry run, would be) removed."""

    guests: int
    sessions: int
    counters: int


class Retention:
    """Ends what is over its time."""

    def __init__(self, database: Database, people: People, settings: Settings) -> None:
        self._database = database
        self._people = people
        self._guest_days = timedelta(days=settings.guest_days)
        self._worker = ThreadPoolExecutor(1, "purge")

    def purge(self, *, is_dry: bool = False) -> Purged:
        """Remove guests without a visit for so many days, sessions and counters that are over; or only count them.

        Raises:
            StorageFailed: the database gave an error; what was removed before stays removed.
        """
        guests = self._count(PersonTable, self._is_old_guest())
        sessions = self._count(SessionTable, self._is_old_session())
        counters = self._count(CounterTable, CounterTable.expires_at <= time.time())
        if not is_dry:
            while batch := self._old_guests():
                for person_id in batch:
                    with suppress(NotFound):  # somebody else was quicker
                        self._people.delete(person_id)
            with self._database.writing() as db:
                db.execute(delete(SessionTable).where(self._is_old_session()))
                db.execute(delete(CounterTable).where(CounterTable.expires_at <= time.time()))
            if self._database.file is not None:
                remove_old(self._database.file)
        return Purged(guests, sessions, counters)

    def close(self) -> None:
        """End its thread, after the purge that it is at."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def run(self) -> None:
        """Purge now and every hour, for as long as the server lives."""
        while True:
            try:
                purged = await asyncio.get_running_loop().run_in_executor(self._worker, self.purge)
                if purged != Purged(0, 0, 0):
                    _log.info(
                        "purged %d guests, %d sessions, %d counters", purged.guests, purged.sessions, purged.counters
                    )
            except Exception:  # a job that has died would break what the privacy page promises
                _log.exception("the purge job failed and will try again")
            await asyncio.sleep(_EVERY_S)

    def _old_guests(self) -> list[str]:
        with self._database.reading() as db:
            return list(db.scalars(select(PersonTable.id).where(self._is_old_guest()).limit(_BATCH)))

    def _is_old_guest(self) -> ColumnElement[bool]:
        """A guest nobody has visited as; one whose session is gone cannot be visited any more."""
        oldest = now() - self._guest_days
        visited = select(SessionTable.id).where(
            SessionTable.person_id == PersonTable.id, SessionTable.last_seen_at > oldest - timedelta(hours=1)
        )
        return (PersonTable.kind == "guest") & ~visited.exists()

    def _is_old_session(self) -> ColumnElement[bool]:
        person = aliased(PersonTable)
        guests = select(person.id).where(person.kind == "guest")
        is_guest = SessionTable.person_id.in_(guests)
        return or_(
            ~is_guest & (SessionTable.created_at < now() - ABSOLUTE),
            ~is_guest & (SessionTable.last_seen_at < now() - IDLE - timedelta(hours=1)),
            is_guest & (SessionTable.last_seen_at < now() - self._guest_days - timedelta(hours=1)),
        )

    def _count(self, table: type[PersonTable | SessionTable | CounterTable], which: ColumnElement[bool]) -> int:
        with self._database.reading() as db:
            return db.scalar(select(func.count()).select_from(table).where(which)) or 0
