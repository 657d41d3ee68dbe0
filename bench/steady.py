"""An engine that writes given text at a steady rate, and a Ponder around it in a process of its own."""

import asyncio
import multiprocessing
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.engine.base import (
    Delta,
    EngineEvent,
    EngineStatus,
    Finished,
    Message,
    ModelProfile,
    ReasoningFormat,
    Request,
    Sampling,
    Usage,
)

CLOSE_ID = 1
_BATCH_S = 0.04


@dataclass(frozen=True)
class Script:
    """Reasoning, then answer, each a list of token texts, written at `tokens_per_s`; 0 stamps each batch instead.

    With `stamps` the text of every batch is the clock's reading, so that a reader can tell how late it is. When the
    last token is written, the time goes into `ended_file`.
    """

    reasoning: Sequence[str] = ()
    answer: Sequence[str] = ()
    tokens_per_s: float = 250.0
    stamps: int = 0
    batch_s: float = _BATCH_S
    ended_file: str = ""


class SteadyEngine:
    """Every request gets the same script."""

    def __init__(self, script: Script, slots: int) -> None:
        self.script = script
        self.status = EngineStatus("ready")
        self.profile: ModelProfile | None = ModelProfile(
            name="steady",
            title="Steady",
            about="Writes a fixed text.",
            is_demo=False,
            context_window=1_000_000,
            reasoning=ReasoningFormat("close_token", close_id=CLOSE_ID),
            sampling=Sampling(),
            answer_sampling=Sampling(),
            stop_ids=(0,),
            budgets={"quick": 0, "normal": 500_000, "deep": 500_000},
            answer_reserve=1000,
            slots=slots,
        )
        self._queue: asyncio.Queue[EngineEvent] = asyncio.Queue()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    async def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return (2,) * len(messages)

    async def encode(self, text: str) -> tuple[int, ...]:
        return (2,) * bool(text)

    def add(self, request: Request) -> None:
        self._tasks[request.id] = asyncio.get_running_loop().create_task(self._write(request))

    def cancel(self, request_id: str) -> None:
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.cancel()

    async def events(self) -> AsyncIterator[list[EngineEvent]]:
        while True:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            yield batch

    async def _write(self, request: Request) -> None:
        script = self.script
        start = time.monotonic()
        if script.stamps:
            for number in range(script.stamps):
                await asyncio.sleep(max(0.0, start + number * script.batch_s - time.monotonic()))
                self._give(request, [f"{time.monotonic():.4f} "])
        else:
            texts = [*script.reasoning, None, *script.answer]
            sent = 0
            while sent < len(texts):
                await asyncio.sleep(script.batch_s)
                due = min(len(texts), int((time.monotonic() - start) * script.tokens_per_s))
                self._give(request, texts[sent:due])
                sent = max(sent, due)
        self._queue.put_nowait(Finished(request.id, "stop", Usage(1, 1)))
        if script.ended_file:
            Path(script.ended_file).write_text(repr(time.time()))  # noqa: ASYNC240  once, at the very end

    def _give(self, request: Request, texts: Sequence[str | None]) -> None:
        if texts:
            ids = tuple(CLOSE_ID if text is None else 3 for text in texts)
            self._queue.put_nowait(Delta(request.id, ids, tuple(text or "</think>" for text in texts)))


def _serve(make_script: Callable[[], Script], slots: int, port: int, folder: str) -> None:
    import uvicorn

    from app.config import Settings
    from app.server import http_config
    from app.web import build_app, build_services

    settings = Settings(
        data_dir=Path(folder),
        cache_dir=Path(folder),
        max_waiting_runs=10_000,
        guest_runs_at_once=10_000,
        max_connections_per_address=10_000,
    )
    app = build_app(build_services(settings, SteadyEngine(make_script(), slots)))
    uvicorn.Server(http_config(app, port, drain_s=1)).run()


@contextmanager
def steady_ponder(make_script: Callable[[], Script], slots: int = 1) -> Iterator[tuple[str, int]]:
    """The address and the process id of a Ponder whose engine writes this script."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=_serve, args=(make_script, slots, port, folder))
        process.start()
        assert process.pid is not None
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(url)
            yield url, process.pid
        finally:
            process.terminate()
            process.join(20)


def _wait_for(url: str, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not come up")
