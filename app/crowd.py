"""How many connections one address and all together may hold, and which one makes room when there is no more.

Knows addresses and connections, nothing of HTTP. Use it on one event loop.
"""

import resource
from collections import Counter
from typing import Protocol

# The database's, the engine's, files that are being sent: what the process holds open besides connections
_OWN_FILES = 80
_FEWEST_CONNECTIONS = 16
# More are of no use to one process, and some systems say "without end"
_MOST_FILES = 65_536


class Connection(Protocol):
    """What holds a place."""

    @property
    def address(self) -> str:
        """Whom it counts for."""

    def make_room(self) -> None:
        """Close: somebody else needs the place more than whoever waits here."""


class Crowd:
    """Counts open connections. A connection waits while no request of it is being answered.

    A newcomer beyond the limit takes the place of whoever waits longest, at its own address if that has its share, or
    else at the address with the most. Half-sent requests keep nobody out.
    """

    def __init__(self, most: int, most_of_one: int | None) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._open: Counter[str] = Counter()
        # By address, whoever waits longest first
        self._waiting: dict[str, dict[Connection, None]] = {}

    def admit(self, connection: Connection) -> bool:
        """Whether there is a place for one more, which waits then. Call `leave` in either case."""
        address = connection.address
        self._open[address] += 1
        is_welcome = True
        if self._most_of_one is not None and self._open[address] > self._most_of_one:
            is_welcome = self._make_room(address)
        elif self._open.total() > self._most:
            is_welcome = self._make_room(self._largest())
        if is_welcome:
            self.waits(connection)
        return is_welcome

    def waits(self, connection: Connection) -> None:
        """Nothing of it is being answered."""
        self._waiting.setdefault(connection.address, {})[connection] = None

    def works(self, connection: Connection) -> None:
        """A request of it is being answered: it keeps its place."""
        waiting = self._waiting.get(connection.address, {})
        waiting.pop(connection, None)
        if not waiting:
            self._waiting.pop(connection.address, None)

    def leave(self, connection: Connection) -> None:
        """It is closed."""
        self.works(connection)
        self._open[connection.address] -= 1
        if not self._open[connection.address]:
            del self._open[connection.address]

    def _largest(self) -> str:
        return max(self._waiting, key=lambda address: self._open[address], default="")

    def _make_room(self, address: str) -> bool:
        longest = next(iter(self._waiting.get(address, {})), None)
        if longest is None:
            return False
        self.works(longest)
        longest.make_room()
        return True


def raise_file_limit() -> int:
    """Take as many files as the system lets us have; how many connections there is room for beside our own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    known = _MOST_FILES if soft == resource.RLIM_INFINITY else min(soft, _MOST_FILES)
    return max(_FEWEST_CONNECTIONS, known - _OWN_FILES)
