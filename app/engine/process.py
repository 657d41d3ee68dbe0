"""The engine process seen from the app: starts it, speaks to it, starts it again when it dies.

Imports no torch. When the process goes, every open request ends as failed with a sentence, and the page lives on.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from app.config import Settings
from app.engine.base import EngineEvent, EngineStatus, Finished, Message, ModelProfile, Request
from app.engine.wire import (
    EXIT_BROKEN,
    EXIT_GPU_LOST,
    EXIT_HUNG,
    MOST_LINE_BYTES,
    Add,
    Cancel,
    Encode,
    Frame,
    Ids,
    Prompt,
    Status,
    Written,
    from_line,
    to_line,
)
from app.errors import ModelUnavailable

_MOST_DEATHS = 3
_CONNECT_S = 60.0
_LOOKS = 20
# A sign of life comes every two seconds, so that this many seconds without one are no accident
_LEAST_SILENCE_S = 5.0
_SILENT = 0.75
_GOODBYE_S = 5.0
# A process that is killed is gone at once, unless it hangs in a driver or the computer is very busy
_KILLED_S = 10.0
# A socket's path has at most 107 bytes, of which "/ponder-xxxxxxxx/engine.sock" takes 28
_LONGEST_FOLDER = 79
_ENDED_BY_ITSELF = {EXIT_GPU_LOST: "the GPU failed", EXIT_HUNG: "the model hung", EXIT_BROKEN: "the engine broke"}
_log = logging.getLogger(__name__)


class _Unkillable(Exception):
    pass


class EngineProcess:
    """`engine.base.Engine` over a local socket. Use it on one event loop, between `start` and `close`.

    A process whose model does not move for `silence_s` while it has something to write, or that gives no sign of life
    for three quarters as long, hangs: it is ended and started again.
    """

    def __init__(self, settings: Settings, *, silence_s: float = 60.0) -> None:
        self._settings = settings
        self._silence_s = silence_s
        self._was_ready = False
        self._is_careful = False
        self._status = EngineStatus("starting", "Starting the model process")
        self._profile: ModelProfile | None = None
        self._events: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._open: set[str] = set()
        self._calls: dict[int, asyncio.Future[tuple[int, ...]]] = {}
        self._numbers = itertools.count()
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def profile(self) -> ModelProfile | None:
        return self._profile

    @property
    def pid(self) -> int | None:
        """The process that has the model; None while there is none."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start the process; returns at once."""
        self._supervisor = asyncio.create_task(self._supervise())

    async def close(self) -> None:
        """End the process and every request."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._end_requests("cancelled", "")
        self._events.put_nowait(None)

    async def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return await self._call(Prompt(next(self._numbers), tuple(messages)))

    async def encode(self, text: str) -> tuple[int, ...]:
        return await self._call(Encode(next(self._numbers), text))

    def add(self, request: Request) -> None:
        self._open.add(request.id)
        if not self._send(Add(request)):
            self._finish(Finished(request.id, "failed", problem="The model process is not running. Try again soon."))

    def cancel(self, request_id: str) -> None:
        if request_id in self._open:
            self._send(Cancel(request_id))

    async def events(self) -> AsyncIterator[Sequence[EngineEvent]]:
        while (event := await self._events.get()) is not None:
            batch = [event]
            while not self._events.empty():
                following = self._events.get_nowait()
                if following is None:
                    yield batch
                    return
                batch.append(following)
            yield batch

    # The process

    async def _supervise(self) -> None:
        """Keep a process running; give up when it dies again and again before it was ready."""
        deaths = 0
        while True:
            code: int | None = None
            self._was_ready = False
            try:
                code = await self._live_through_one()
            except _Unkillable:
                self._become(
                    EngineStatus(
                        "failed",
                        problem="The model process hangs in the GPU's driver and cannot be ended.",
                        remedy="Restart this machine; the driver's log (dmesg) may say why.",
                    )
                )
            except Exception:
                _log.exception("the model process could not be started or spoken to")
            finally:
                self._writer = None
                self._fail_calls()
            if self._status.state == "failed":
                self._end_requests("failed", self._status.problem)
                return
            if self._was_ready:
                deaths, self._is_careful = 1, False
            elif self._status.is_trying and self._settings.engine == "auto":
                # It may have been the trial that ended it, and the next one does without
                deaths, self._is_careful = 1, True
            else:
                deaths += 1
            _log.error("the model process ended: %s", _how(code))
            self._end_requests(
                "failed", f"The model ended in the middle: {_how(code)}. The text so far is kept; try again."
            )
            if deaths >= _MOST_DEATHS:
                self._become(
                    EngineStatus(
                        "failed",
                        problem=f"The model process ended {deaths} times in a row before it was ready ({_how(code)}).",
                        remedy="The log says why; out of memory is the usual cause. Start Ponder again afterwards.",
                    )
                )
                return
            self._become(EngineStatus("starting", "The model process ended; starting it again"))
            await asyncio.sleep(2.0 ** (deaths - 1) - 1)

    async def _live_through_one(self) -> int | None:
        """Start a process and serve it until it ends; its exit status."""
        is_long = len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER
        folder = Path(tempfile.mkdtemp(prefix="ponder-", dir="/tmp" if is_long else None))
        self._process = None
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.get_running_loop().create_future()
        )

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()
            else:
                connected.set_result((reader, writer))

        # A folder of mkdtemp is open to this user alone, and so is the socket in it
        socket_path = folder / "engine.sock"
        server = await asyncio.start_unix_server(accept, socket_path, limit=MOST_LINE_BYTES)
        try:
            self._process = await self._spawn(socket_path)
            ended = asyncio.create_task(self._process.wait())
            waited: set[asyncio.Future[Any]] = {connected, ended}
            await asyncio.wait(waited, timeout=_CONNECT_S, return_when=asyncio.FIRST_COMPLETED)
            if connected.done():
                reader, self._writer = connected.result()
                await self._read(reader)
            return await self._let_end()
        finally:
            server.close()
            try:
                await self._let_end()
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _spawn(self, socket_path: Path) -> asyncio.subprocess.Process:
        settings = self._settings
        arguments = {
            "--socket": socket_path,
            "--model": self._model(),
            "--cache-dir": settings.cache_dir.expanduser().absolute(),
            "--max-context-tokens": settings.max_context_tokens,
            "--silence-s": self._silence_s,
            "--engine": "careful" if self._is_careful else settings.engine,
            "--gpu-memory-gib": settings.gpu_memory_gib,
            "--kv-ram-gib": "auto" if settings.kv_ram_gib is None else settings.kv_ram_gib,
            "--log-level": settings.log_level,
            "--parent": os.getpid(),
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "app.engine.host.worker",
            *(str(part) for pair in arguments.items() for part in pair),
            stdin=asyncio.subprocess.DEVNULL,
            cwd=Path(__file__).parents[2],
        )

    def _model(self) -> str:
        """The model to load; what "auto" was at the first start it stays, as people's prompts are in its tokens."""
        if self._settings.model == "auto" and self._profile is not None:
            return self._profile.name
        return _absolute(self._settings.model)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Frames until the process is gone, or silent for so long that it must hang."""
        looks, most_s = 0, max(_LEAST_SILENCE_S, _SILENT * self._silence_s)
        while True:
            try:
                line = await asyncio.wait_for(reader.readline(), most_s / _LOOKS)
            except TimeoutError:
                # Looks are counted, not the clock: while a computer sleeps, or a container is paused, nobody speaks
                looks += 1
                if looks < _LOOKS:
                    continue
                _log.error("the model process gave no sign of life for %d s", most_s)
                return
            except ConnectionError:
                return
            if not line:
                return
            looks = 0
            try:
                frame = from_line(line)
            except ValueError:
                # Without the error's own words, which hold what is in the frame
                _log.error("the model process sent %d bytes that are no frame", len(line))
                return
            self._take(frame)

    async def _let_end(self) -> int | None:
        """See to it that the process is gone: it ends when its socket is closed, and is killed if it does not.

        Raises:
            _Unkillable: it is still there.
        """
        if self._writer is not None:
            self._writer.transport.abort()
        process = self._process
        if process is None:
            return None
        # Without a socket it does not know that it should end
        has_ended = await _ends(process, _GOODBYE_S if self._writer is not None else 0.0)
        if not has_ended:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if not await _ends(process, _KILLED_S):
                raise _Unkillable
        return process.returncode

    # What crosses the socket

    def _take(self, frame: Frame) -> None:
        match frame:
            case Written(deltas, finished):
                for delta in deltas:
                    self._events.put_nowait(delta)
                for one in finished:
                    self._finish(one)
            case Status(status, profile):
                self._profile = profile or self._profile
                self._become(status)
            case Ids(call, ids, problem):
                future = self._calls.pop(call, None)
                if future is not None and not future.done():
                    if problem:
                        future.set_exception(ModelUnavailable(problem))
                    else:
                        future.set_result(ids)

    def _send(self, frame: Frame) -> bool:
        if self._writer is None or self._writer.is_closing():
            return False
        self._writer.write(to_line(frame))
        return True

    async def _call(self, frame: Prompt | Encode) -> tuple[int, ...]:
        future: asyncio.Future[tuple[int, ...]] = asyncio.get_running_loop().create_future()
        self._calls[frame.call] = future
        if not self._send(frame):
            self._calls.pop(frame.call)
            raise ModelUnavailable("The model process is not running. Try again in a moment.")
        return await future

    def _become(self, status: EngineStatus) -> None:
        self._status = status
        self._was_ready = self._was_ready or status.state == "ready"
        self._events.put_nowait(status)

    def _finish(self, finished: Finished) -> None:
        if finished.request_id in self._open:
            self._open.discard(finished.request_id)
            self._events.put_nowait(finished)

    def _end_requests(self, reason: str, problem: str) -> None:
        for request_id in list(self._open):
            self._finish(Finished(request_id, "failed" if reason == "failed" else "cancelled", problem=problem))

    def _fail_calls(self) -> None:
        for future in self._calls.values():
            if not future.done():
                future.set_exception(ModelUnavailable("The model process ended. Try again in a moment."))
        self._calls.clear()


async def _ends(process: asyncio.subprocess.Process, within_s: float) -> bool:
    """Whether it is gone by then."""
    if process.returncode is None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), within_s)
    return process.returncode is not None


def _absolute(model: str) -> str:
    """A folder by its whole path: the process runs in another one than the app."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def _how(code: int | None) -> str:
    """How a process ended, from its exit status."""
    if code is None:
        return "it did not start"
    if code in _ENDED_BY_ITSELF:
        return _ENDED_BY_ITSELF[code]
    if code >= 0:
        return f"exit status {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
