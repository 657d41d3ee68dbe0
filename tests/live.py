"""A whole Ponder on a loopback port, with a scripted engine, in a thread of this process."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from app.config import Settings
from app.engine.base import EngineStatus
from app.routes.access import Services
from app.server import http_config
from app.web import build_app, build_services
from tests.reused import reuse_page
from tests.scripted import ScriptedEngine


@dataclass
class LiveServer:
    """Talk to `url`; tell `engine` what to write, from any thread."""

    url: str
    engine: ScriptedEngine
    services: Services
    loop: asyncio.AbstractEventLoop

    def script(self, *texts: str | Exception, pace_s: float = 0.0) -> None:
        """What the next completions write."""
        self.engine.scripts.extend(texts)
        self.engine.pace_s = pace_s

    def release(self) -> None:
        """Let the scripts that wait at a `HOLD` go on, or the next that comes to one."""
        self.loop.call_soon_threadsafe(self.engine.release)

    def become(self, status: EngineStatus) -> None:
        """Change the engine's status."""
        self.loop.call_soon_threadsafe(self.engine.become, status)


class _Server(uvicorn.Server):
    """Ends as soon as it is told to and all is done, without fixed waits: it is started hundreds of times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.over = asyncio.Event()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self.over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  nor one for this
            await asyncio.sleep(0.005)
        for server in self.servers:
            await server.wait_closed()
        await self.lifespan.shutdown()


@contextmanager
def serving(settings: Settings, engine: ScriptedEngine, listening: socket.socket | None = None) -> Iterator[LiveServer]:
    """Serve while the `with` lasts, at an address that is listened at already or else at one of its own."""
    reuse_page()
    services = build_services(settings, engine)
    server = _Server(http_config(build_app(services), port=0))
    started = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        task = asyncio.create_task(server.serve([listening.dup()] if listening else None))
        while not server.started and not task.done():  # noqa: ASYNC110  uvicorn gives no event to wait for
            await asyncio.sleep(0.01)
        started.set()
        await task

    thread = threading.Thread(target=_in_new_loop(main), name="live-server")
    thread.start()
    started.wait(60)
    assert server.started, "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    live = LiveServer(f"http://127.0.0.1:{port}", engine, services, loops[0])
    try:
        yield live
    finally:
        asyncio.run_coroutine_threadsafe(services.runs.close(), live.loop).result(20)
        live.loop.call_soon_threadsafe(server.over.set)
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


def _in_new_loop(main: Callable[[], object]) -> Callable[[], None]:
    return lambda: asyncio.run(main())  # type: ignore[arg-type]
