"""Threads for what takes its time, apart from those that save, send and list: nobody's searching holds up sending."""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from app.errors import TooManyAttempts

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Lane:
    """A few threads and the line before them, in which one person has so many places. Use it on one event loop."""

    def __init__(self, name: str, workers: int, most_of_one: int) -> None:
        self._threads = ThreadPoolExecutor(workers, name)
        self._most_of_one = most_of_one
        self._waiting: Counter[str] = Counter()

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, person_id: str, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What `work` gives, done in one of the threads.

        Raises:
            TooManyAttempts: this person waits for as much already.
        """
        if self._waiting[person_id] >= self._most_of_one:
            raise TooManyAttempts("You asked for much at once. Try again in a few seconds.", retry_after_s=5)
        self._waiting[person_id] += 1
        # Held until the thread is done, also when whoever asked has gone: that is what is counted
        doing = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        doing.add_done_callback(lambda _: self._leave(person_id))
        return await doing

    def _leave(self, person_id: str) -> None:
        self._waiting[person_id] -= 1
        if not self._waiting[person_id]:
            del self._waiting[person_id]


class Lanes:
    """One for each kind of slow work."""

    def __init__(self) -> None:
        self.search = Lane("search", workers=2, most_of_one=8)
        self.export = Lane("export", workers=2, most_of_one=4)

    def close(self) -> None:
        """Begin nothing more."""
        self.search.close()
        self.export.close()
