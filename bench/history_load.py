"""Requests at a fixed rate for `bench.history`: a server in a process of its own, and a client in another.

A request's time counts from the moment it was due, whether or not a connection was free: a server that falls behind
shows it.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from app.accounts.keys import hash_of

_ROOT = Path(__file__).parents[1]
_CONNECTIONS = 64
_START_S = 180.0
_MOST_HEAD_BYTES = 2**20
# A server hangs up on connections that are not used for five seconds
_IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Ask:
    """A GET of somebody's, and what kind of request it is."""

    kind: str
    cookie: str
    path: str


@dataclass(frozen=True, slots=True)
class Answer:
    """How long an `Ask` took from when it was due, and what came."""

    kind: str
    took_s: float
    status: int
    bytes: int


@contextmanager
def served(database_url: str, folder: Path) -> Iterator[str]:
    """The address of a Ponder as an operator starts it, with the demo model loaded."""
    settings = {
        "PONDER_DATABASE_URL": database_url,
        "PONDER_DATA_DIR": str(folder),
        "PONDER_MODEL": "demo",
        "PONDER_LOG_LEVEL": "WARNING",
        "PONDER_SECRET_KEY": hash_of(str(folder)),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    said = folder / "log"
    with said.open("wb") as log:
        command = [sys.executable, "app.py", "--port", str(port)]
        process = subprocess.Popen(command, cwd=_ROOT, env=os.environ | settings, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        if not _comes_up(f"{url}/readyz", process):
            raise TimeoutError(f"the server did not come up: {said.read_text()[-2000:]}")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _comes_up(url: str, process: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        with suppress(httpx.TransportError):
            if httpx.get(url).status_code == 200:
                return True
        time.sleep(0.1)
    return False


def asking() -> ProcessPoolExecutor:
    """A process for `answers` to ask from."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def answers(client: ProcessPoolExecutor, url: str, asks: Sequence[Ask], rate: float) -> list[Answer]:
    """What came of the requests, so many of them a second."""
    return client.submit(_drive, url, asks, rate).result()


def _drive(url: str, asks: Sequence[Ask], rate: float) -> list[Answer]:
    return asyncio.run(_ask_all(url, asks, rate))


async def _ask_all(url: str, asks: Sequence[Ask], rate: float) -> list[Answer]:
    due: asyncio.Queue[tuple[float, Ask] | None] = asyncio.Queue()
    found: list[Answer] = []
    async with asyncio.TaskGroup() as group:
        for _ in range(_CONNECTIONS):
            group.create_task(_connection(url, due, found))
        start = time.monotonic() + 0.2
        for number, ask in enumerate(asks):
            moment = start + number / rate
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            due.put_nowait((moment, ask))
        for _ in range(_CONNECTIONS):
            due.put_nowait(None)
    return found


async def _connection(url: str, due: "asyncio.Queue[tuple[float, Ask] | None]", found: list[Answer]) -> None:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=_MOST_HEAD_BYTES)
    used_at = time.monotonic()
    while (some := await due.get()) is not None:
        moment, ask = some
        if time.monotonic() - used_at > _IDLE_S:
            writer.close()
            reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=_MOST_HEAD_BYTES)
        writer.write(f"GET {ask.path} HTTP/1.1\r\nHost: {where.netloc}\r\nCookie: ponder={ask.cookie}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(size)
        used_at = time.monotonic()
        found.append(Answer(ask.kind, used_at - moment, int(head[9:12]), size))
    writer.close()
