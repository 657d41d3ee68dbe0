"""An engine process to talk to, and everything it said."""

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.config import Settings
from app.engine.base import Delta, EngineStatus, Finished, Request, Sampling
from app.engine.process import EngineProcess

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
# Tests put programs in its place
_PYTHON = sys.executable
Body = Callable[["Talk"], Awaitable[None]]


class Talk:
    """An engine process and everything it said."""

    def __init__(self, engine: EngineProcess) -> None:
        self.engine = engine
        self.statuses: list[EngineStatus] = []
        self.deltas: list[Delta] = []
        self.finished: dict[str, Finished] = {}
        self.listening: asyncio.Task[None]
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        async for batch in self.engine.events():
            for event in batch:
                if isinstance(event, EngineStatus):
                    self.statuses.append(event)
                elif isinstance(event, Delta):
                    self.deltas.append(event)
                else:
                    self.finished[event.request_id] = event
            self._changed.set()
            self._changed = asyncio.Event()

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            await self._changed.wait()

    async def ready(self) -> None:
        seen = len(self.statuses)
        await self.until(lambda: self.engine.status.state in ("ready", "failed") and len(self.statuses) >= seen)
        assert self.engine.status.state == "ready", self.engine.status

    async def written(self, name: str, tokens: int) -> Finished:
        """How a request ended."""
        self.add(name, tokens)
        await self.until(lambda: name in self.finished)
        return self.finished[name]

    def add(self, name: str, tokens: int) -> None:
        self.engine.add(Request(name, (40, 41, 42), Sampling(seed=1), (257,), tokens))


@contextmanager
def talking(settings: Settings, *, silence_s: float = 60.0) -> Iterator[Callable[[Body], None]]:
    """Runs bodies that talk to one engine process, which lives while the `with` lasts and is gone afterwards."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="talking")
    thread.start()

    async def begin() -> Talk:
        there = Talk(EngineProcess(settings, silence_s=silence_s))
        await there.engine.start()
        there.listening = asyncio.create_task(there.listen())
        return there

    async def limited(body: Body) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await body(there)

    async def end() -> None:
        pid = there.engine.pid
        await there.engine.close()
        await there.listening
        assert pid is None or not is_alive(pid)

    there = asyncio.run_coroutine_threadsafe(begin(), loop).result()
    try:
        yield lambda body: asyncio.run_coroutine_threadsafe(limited(body), loop).result()
    finally:
        try:
            asyncio.run_coroutine_threadsafe(end(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


def talk(settings: Settings, body: Body) -> None:
    """Talk to an engine process of its own."""
    with talking(settings) as say:
        say(body)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def program(folder: Path, code: str) -> str:
    """A program to put in Python's place, for a worker with something else in it; called as `python -m worker ...`."""
    path = folder / "worker"
    begin = f"#!{_PYTHON}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\nsys.argv = sys.argv[2:]\n"
    path.write_text(begin + code)
    path.chmod(0o700)
    return str(path)
