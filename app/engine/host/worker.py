"""The engine process: `python -m app.engine.host.worker`, started by `process.EngineProcess`.

It is the socket, and what crosses it; `assembly` makes what writes. It listens before torch is imported, so that its
parent hears at once how the loading goes. The tokenizer comes first and answers from then on; the weights follow. It
serves one app and ends with it.
"""

import argparse
import asyncio
import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from app.engine.base import Delta, EngineStatus, Finished, Request
from app.engine.host.assembly import Assembly
from app.engine.wire import (
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
from app.errors import PonderError
from app.logs import set_up_logs

_COALESCE_S = 0.04
_SIGN_OF_LIFE_S = 2.0
# Whoever is not looked after for so long was stopped as a whole, as a container that is paused
_STOPPED_S = 5 * _SIGN_OF_LIFE_S
_PR_SET_PDEATHSIG = 1
_NOT_TAKEN = "The model could not take this request. Try again."
_NOT_SENT = "What the model wrote could not be passed on. The text so far is kept; try again."
_log = logging.getLogger("app.engine.host.worker")


class Worker:
    """One model and one connection. Other threads hand over through `_collect` and `_tell_status`."""

    def __init__(self, told: argparse.Namespace) -> None:
        self._told = told
        self._assembly = Assembly(told, self._collect, self._tell_status)
        self._loop = asyncio.new_event_loop()
        self._deltas: list[Delta | Finished] = []
        self._lock = threading.Lock()
        self._has_written = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._looked_at = self._awake_since = time.monotonic()

    def run(self, socket_path: str) -> None:
        """Serve until the app goes away."""
        asyncio.set_event_loop(self._loop)
        with suppress(ConnectionError):
            self._loop.run_until_complete(self._serve(socket_path))

    async def _serve(self, socket_path: str) -> None:
        reader, self._writer = await asyncio.open_unix_connection(socket_path, limit=MOST_LINE_BYTES)
        threading.Thread(target=self._assembly.load, name="loading", daemon=True).start()
        sending = asyncio.create_task(self._send_written())
        calls: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                call = asyncio.create_task(self._obey(line))
                calls.add(call)
                call.add_done_callback(calls.discard)
        except ValueError:
            _log.error("the app sent a line of more than %d bytes; ending this process", MOST_LINE_BYTES)
        finally:
            sending.cancel()

    async def _obey(self, line: bytes) -> None:
        try:
            frame = from_line(line)
        except ValueError:
            # Without the error's own words, which hold what is in the frame
            _log.error("the app sent %d bytes that are no frame", len(line))
            self._refuse(line)
            return
        match frame:
            case Add(request):
                self._add(request)
            case Cancel(request_id):
                if self._assembly.engine is not None:
                    self._assembly.engine.cancel(request_id)
            case Prompt() | Encode():
                await self._answer(frame)

    def _add(self, request: Request) -> None:
        try:
            if self._assembly.engine is None:
                self._collect(Finished(request.id, "failed", problem="The model is not loaded yet."))
            else:
                self._assembly.engine.add(request)
        except Exception:
            _log.exception("a request could not be taken")
            self._collect(Finished(request.id, "failed", problem=_NOT_TAKEN))

    def _refuse(self, line: bytes) -> None:
        """Answer whoever waits for what cannot be read, where that much can be read."""
        with suppress(ValueError, TypeError, KeyError):
            told = json.loads(line)
            if told["kind"] == "add":
                self._collect(Finished(str(told["request"]["id"]), "failed", problem=_NOT_TAKEN))
            elif told["kind"] in ("prompt", "encode"):
                self._send(Ids(int(told["call"]), problem=_NOT_TAKEN))

    async def _answer(self, frame: Prompt | Encode) -> None:
        encoder = self._assembly.encoder
        if encoder is None:
            self._send(Ids(frame.call, problem="The model's tokenizer is not loaded yet. Try again in a moment."))
            return
        try:
            if isinstance(frame, Prompt):
                ids = await asyncio.to_thread(encoder.prompt, frame.messages)
            else:
                ids = await asyncio.to_thread(encoder.encode, frame.text)
            self._send(Ids(frame.call, ids))
        except PonderError as error:
            self._send(Ids(frame.call, problem=error.message))
        except Exception:
            _log.exception("encoding failed")
            self._send(Ids(frame.call, problem="This text could not be encoded for the model."))

    def _send(self, frame: Frame) -> None:
        assert self._writer is not None
        self._writer.write(to_line(frame))

    async def _send_written(self) -> None:
        """Everything of the last 40 ms in one frame; the first after a silence at once."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_written.wait(), _SIGN_OF_LIFE_S)
            self._has_written.clear()
            if self._is_hung():
                _log.error("the model has not moved for %d s; ending this process", self._told.silence_s)
                os._exit(EXIT_HUNG)  # a thread that hangs in a kernel can be ended no other way
            with self._lock:
                events, self._deltas = self._deltas, []
            self._send_all(events)
            if events:
                await asyncio.sleep(_COALESCE_S)

    def _is_hung(self) -> bool:
        """Whether the model should move and does not; while all of this process is stopped, nothing can."""
        moment, engine = time.monotonic(), self._assembly.engine
        if moment - self._looked_at > _STOPPED_S:
            self._awake_since = moment
        self._looked_at = moment
        stuck_s = engine.stuck_s if engine is not None else 0.0
        return bool(min(stuck_s, moment - self._awake_since) > self._told.silence_s)

    def _send_all(self, events: Sequence[Delta | Finished]) -> None:
        """In one frame; where that cannot be, each in its own: a fault in what one is told is nobody else's."""
        try:
            self._send(_coalesced(events))
        except Exception as error:
            if len(events) > 1:
                for event in events:
                    self._send_all([event])
                return
            # Without the error's own words, which may hold what was written
            _log.error("what the model wrote could not be sent (%s)", type(error).__name__)
            for event in events:
                if self._assembly.engine is not None:
                    self._assembly.engine.cancel(event.request_id)
                self._send(Written(finished=(Finished(event.request_id, "failed", problem=_NOT_SENT),)))

    # From the threads that load and write

    def _collect(self, event: Delta | Finished) -> None:
        """Something was written."""
        with self._lock:
            self._deltas.append(event)
            is_first = len(self._deltas) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._has_written.set)

    def _tell_status(self, status: EngineStatus) -> None:
        """The model is further, or can do no more."""
        self._loop.call_soon_threadsafe(self._send, Status(status, self._assembly.profile))


def _coalesced(events: Sequence[Delta | Finished]) -> Written:
    """One delta a request, its tokens in order."""
    ids: dict[str, list[int]] = {}
    texts: dict[str, list[str]] = {}
    logprobs: dict[str, list[float]] = {}
    finished: list[Finished] = []
    for event in events:
        if isinstance(event, Finished):
            finished.append(event)
        else:
            ids.setdefault(event.request_id, []).extend(event.token_ids)
            texts.setdefault(event.request_id, []).extend(event.texts)
            logprobs.setdefault(event.request_id, []).extend(event.logprobs)
    deltas = tuple(Delta(key, tuple(ids[key]), tuple(texts[key]), tuple(logprobs[key])) for key in ids)
    return Written(deltas, tuple(finished))


def _end_with_parent(parent: int) -> None:
    """Have the kernel end this process when the app dies, however it dies."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)


def main() -> int:
    """Serve the app that started this process."""
    # A terminal and systemd send these to all processes at once: the app ends its runs first, and then its socket
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--max-context-tokens", type=int, required=True)
    parser.add_argument("--silence-s", type=float, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--engine", choices=("auto", "batched", "local", "careful"), default="auto")
    parser.add_argument("--gpu-memory-gib", type=float, default=0.0)
    parser.add_argument("--kv-ram-gib", default="auto")
    parser.add_argument("--log-level", default="INFO")
    given = parser.parse_args()
    set_up_logs(given.log_level)
    _end_with_parent(given.parent)
    Worker(given).run(given.socket)
    # Threads of torch and of the loading may hang in native code; nothing is left to save
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
