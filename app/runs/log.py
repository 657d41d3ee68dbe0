"""The event log of one run: written once, read by any number of readers with a cursor each.

Logged events have gapless sequence numbers from 1. Passing events (the open tail, progress) have none: only the newest
of each kind is kept, and a reader that was away misses the older ones. A reader pulls from the shared list, so a slow
one costs nothing and holds nobody up.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

HEARTBEAT_S = 10.0
# Events that are kept at least, and half of those that are kept at most
MOST_KEPT = 400


class FarBehind(Exception):
    """A reader wants events that are not kept any more."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; `seq` is None for a passing one."""

    name: str
    content: dict[str, Any]
    seq: int | None = None


class RunLog:
    """What happened in a run, in order. Written from one task; use it on one event loop."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._forgotten = 0
        self._passing: dict[str, tuple[int, Event]] = {}
        self._version = 0
        self._wake = asyncio.Event()
        self._readers = 0
        self._closed = asyncio.Event()

    @property
    def last_seq(self) -> int:
        return self._forgotten + len(self._events)

    @property
    def has_readers(self) -> bool:
        return self._readers > 0

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Append an event for good."""
        self._events.append(Event(name, content, self.last_seq + 1))
        if len(self._events) > 2 * MOST_KEPT:
            # Whoever is further behind gets a snapshot, which tells more in less
            self._forgotten += MOST_KEPT
            del self._events[:MOST_KEPT]
        self._notify()

    def pass_on(self, key: str, name: str, content: dict[str, Any]) -> None:
        """Show an event to whoever reads now; it replaces the last one with this key."""
        self._version += 1
        self._passing[key] = (self._version, Event(name, content))
        self._notify()

    def forget(self, key: str) -> None:
        """The passing event with this key is out of date."""
        self._passing.pop(key, None)

    def close(self) -> None:
        """Nothing more will come; readers end behind the last event."""
        self._passing.clear()
        self._closed.set()
        self._notify()

    async def until_closed(self) -> None:
        """Wait until nothing more will come."""
        await self._closed.wait()

    async def follow(self, after: int) -> AsyncIterator[list[Event]]:
        """Everything behind sequence number `after`, then what comes, until the log is closed.

        Yields batches; an empty one every `HEARTBEAT_S` seconds of silence.

        Raises:
            FarBehind: what comes next is not kept any more.
        """
        self._readers += 1
        seen_version = 0
        try:
            while True:
                wake = self._wake
                if after < self._forgotten:
                    raise FarBehind
                batch = self._events[after - self._forgotten :]
                after += len(batch)
                fresh = [entry for entry in self._passing.values() if entry[0] > seen_version]
                seen_version = self._version
                batch += [event for _, event in sorted(fresh, key=lambda entry: entry[0])]
                if batch:
                    yield batch
                    continue
                if self.is_closed:
                    return
                try:
                    await asyncio.wait_for(wake.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield []
        finally:
            self._readers -= 1

    def _notify(self) -> None:
        self._wake.set()
        self._wake = asyncio.Event()
