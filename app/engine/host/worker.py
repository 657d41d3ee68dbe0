"""The engine process: `python -m app.engine.host.worker`, started by `process.EngineProcess`.

It listens before torch is imported, so that its parent hears at once how the loading goes. The tokenizer comes first
and answers from then on; the weights follow. It serves one app at a time and ends with it.
"""

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.engine.base import Delta, EngineStatus, Finished, ModelProfile
from app.engine.model.checkpoint_files import check_folder
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
from app.errors import ModelUnavailable, PonderError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from app.engine.batched.engine import BatchedEngine
    from app.engine.local.engine import LocalEngine
    from app.engine.model.memory import MemoryPlan
    from app.engine.model.prompts import PromptEncoder
    from app.engine.profiles import ModelSpec

_COALESCE_S = 0.04
_SIGN_OF_LIFE_S = 2.0
_PR_SET_PDEATHSIG = 1
_log = logging.getLogger("app.engine.host.worker")


class Worker:
    """One model and one connection. The loading thread and the engine's thread hand over through `_collect`."""

    def __init__(self, told: argparse.Namespace) -> None:
        self._told = told
        self._status = EngineStatus("starting", "Starting the model process")
        self._profile: ModelProfile | None = None
        self._note = ""
        self._encoder: PromptEncoder | None = None
        self._engine: LocalEngine | BatchedEngine | None = None
        self._loop = asyncio.new_event_loop()
        self._deltas: list[Delta | Finished] = []
        self._lock = threading.Lock()
        self._has_written = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None

    def run(self, socket_path: str) -> None:
        """Serve until the app goes away."""
        asyncio.set_event_loop(self._loop)
        with suppress(ConnectionError):
            self._loop.run_until_complete(self._serve(socket_path))

    async def _serve(self, socket_path: str) -> None:
        reader, self._writer = await asyncio.open_unix_connection(socket_path, limit=MOST_LINE_BYTES)
        threading.Thread(target=self._load, name="loading", daemon=True).start()
        sending = asyncio.create_task(self._send_written())
        calls: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                call = asyncio.create_task(self._obey(from_line(line)))
                calls.add(call)
                call.add_done_callback(calls.discard)
        finally:
            sending.cancel()

    async def _obey(self, frame: Frame) -> None:
        match frame:
            case Add(request):
                if self._engine is None:
                    problem = "The model is not loaded yet."
                    self._collect(Finished(request.id, "failed", problem=problem))
                else:
                    self._engine.add(request)
            case Cancel(request_id):
                if self._engine is not None:
                    self._engine.cancel(request_id)
            case Prompt() | Encode():
                await self._answer(frame)

    async def _answer(self, frame: Prompt | Encode) -> None:
        encoder = self._encoder
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

    def _collect(self, event: Delta | Finished) -> None:
        """From any thread: something was written."""
        with self._lock:
            self._deltas.append(event)
            is_first = len(self._deltas) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._has_written.set)

    async def _send_written(self) -> None:
        """Everything of the last 40 ms in one frame; the first after a silence at once."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._has_written.wait(), _SIGN_OF_LIFE_S)
            self._has_written.clear()
            if self._engine is not None and self._engine.stuck_s > self._told.silence_s:
                _log.error("the model has not moved for %d s; ending this process", self._told.silence_s)
                os._exit(EXIT_HUNG)  # a thread that hangs in a kernel can be ended no other way
            with self._lock:
                events, self._deltas = self._deltas, []
            self._send(_coalesced(events))
            if events:
                await asyncio.sleep(_COALESCE_S)

    # Loading, in a thread of its own

    def _load(self) -> None:
        try:
            self._load_all()
        except PonderError as error:
            _log.error("%s", error.message)
            self._tell_status(
                EngineStatus("failed", problem=error.message, remedy=str(error.details.get("remedy", "")))
            )
        except Exception as error:
            _log.exception("loading failed")
            from app.engine.host.hosting import explained

            told = explained(error)
            self._tell_status(EngineStatus("failed", problem=told.message, remedy=str(told.details["remedy"])))

    def _load_all(self) -> None:
        if self._told.model.startswith("/"):
            # Importing torch takes seconds, and whoever mistyped a folder need not wait for that
            with suppress(OSError):  # what cannot be read has a sentence where it is loaded
                check_folder(self._told.model)
        self._tell("Starting torch", None)
        # Read when triton is imported: kernels that were compiled once are there at the next start
        os.environ.setdefault("TRITON_CACHE_DIR", str(self._told.cache_dir / "triton"))
        with _without_garbage():
            from app.engine.host import hosting
            from app.engine.model import loading
            from app.engine.model.demo import demo_folder
            from app.engine.model.prompts import PromptEncoder
            from app.engine.profiles import spec_for

        told = self._told
        free_gib = hosting.take_gpu(told.gpu_memory_gib, is_optional=told.model in ("auto", "demo"))
        spec = spec_for(told.model, free_gib)
        source = spec.source
        loading.require_gpu(spec)
        if spec.is_demo:
            source = str(demo_folder(told.cache_dir, lambda stage: self._tell(stage, None)) or source)
        self._tell("Loading the tokenizer", None)
        tokenizer = loading.load_tokenizer(source)
        config = loading.load_config(source)
        loading.require_same_vocabulary(source, tokenizer, config)
        encoder = PromptEncoder(tokenizer)
        self._note = f". {hosting.why_demo(free_gib)}" if told.model == "auto" and spec.is_demo else ""
        load = partial(self._load_weights, spec, source, config, tokenizer, encoder)
        try:
            load()
        except (ModelUnavailable, RuntimeError) as error:
            if not spec.is_demo or not loading.has_gpu():
                raise
            # Others have its memory: any computer will do for this one
            hosting.leave_unusable_gpu(error)
            load()

    def _load_weights(
        self,
        spec: "ModelSpec",
        source: str,
        config: "PretrainedConfig",
        tokenizer: "PreTrainedTokenizerBase",
        encoder: "PromptEncoder",
    ) -> None:
        from app.engine.host import hosting
        from app.engine.model import loading

        cap_gib = self._told.gpu_memory_gib
        self._profile = loading.profile_of(spec, tokenizer, encoder, config, self._told.max_context_tokens)
        window = self._profile.context_window
        reason = hosting.why_not_batched(config, self._told.engine)
        # Before the weights are there, so that what cannot fit is said at once
        if reason:
            window = hosting.window_alone(spec, config, window, cap_gib)
        else:
            window = hosting.expected_plan(spec, config, window, cap_gib).window
        self._profile = loading.profile_of(spec, tokenizer, encoder, config, window)
        self._encoder = encoder
        self._tell("Loading weights", 0.0)
        model = loading.load_model(spec, source, config, self._tell)
        if reason:
            self._write_alone(model, tokenizer, reason)
            return
        plan = hosting.plan_for(spec, model, window, cap_gib)
        _log.info("%s", plan)
        profile = loading.profile_of(spec, tokenizer, encoder, config, plan.window)
        self._profile = replace(profile, slots=plan.rows)
        self._write_together(model, tokenizer, plan)

    def _write_alone(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", reason: str) -> None:
        from app.engine.local.engine import LocalEngine

        assert self._profile is not None
        self._profile = replace(self._profile, slots=1)
        self._engine = LocalEngine(model, tokenizer, self._collect, lambda: os._exit(EXIT_GPU_LOST))
        self._tell_ready(f"one request at a time, by transformers' generate: {reason}")

    def _write_together(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", plan: "MemoryPlan"
    ) -> None:
        from app.engine.batched.engine import BatchedEngine
        from app.engine.batched.pace import Pace
        from app.engine.batched.pages import PagePool
        from app.engine.batched.selftest import CannotBatch
        from app.engine.batched.start import make_ready, quicker_layers, runner_for
        from app.engine.host.hosting import pages_in_ram

        def trying(stage: str, progress: float | None) -> None:
            self._tell(stage, progress, is_trying=True)

        joined = quicker_layers(model, self._told.cache_dir, trying)
        trying("Making room for the KV cache", None)
        runner = runner_for(model, plan, joined)
        store = pages_in_ram(runner.cache, self._told.kv_ram_gib)
        pool = PagePool(plan.pages, plan.page_tokens, store)

        def prepare(moved: Callable[[], None]) -> Pace:
            def tell(stage: str, progress: float | None) -> None:
                moved()
                trying(stage, progress)

            try:
                ready = make_ready(runner, plan, tell)
            except CannotBatch as error:
                _log.warning("writing for several people at once is off: %s", error)
                if store is not None:
                    store.give_back()
                runner.give_back()
                self._write_alone(model, tokenizer, f"the self-test failed: {error}")
                return Pace()
            self._tell_ready(ready.way)
            return ready.pace

        self._engine = BatchedEngine(
            runner,
            pool,
            tokenizer,
            self._collect,
            lambda is_gpu: os._exit(EXIT_GPU_LOST if is_gpu else EXIT_BROKEN),
            prepare=prepare,
            on_slower=self._tell_slower,
            store=store,
        )

    def _tell_ready(self, way: str) -> None:
        assert self._profile is not None
        _end_as_lost()
        # What is there by now stays: looking through all of it for garbage would stop every stream for 0.2 s
        gc.collect()
        gc.freeze()
        way += self._note
        _log.info("%s is ready: %s", self._profile.title, way)
        self._tell_status(EngineStatus("ready", way=way))

    def _tell_slower(self, sentence: str) -> None:
        _log.warning("%s", sentence)
        self._tell_status(replace(self._status, way=f"{self._status.way}; since then {sentence}"))

    def _tell(self, stage: str, progress: float | None, *, is_trying: bool = False) -> None:
        """A stage, or a step of it worth showing."""
        shown = None if progress is None else round(progress, 2)
        if (stage, shown) != (self._status.stage, self._status.progress):
            if stage != self._status.stage:
                _log.info("%s", stage)
            self._tell_status(EngineStatus("loading", stage, shown, is_trying=is_trying))

    def _tell_status(self, status: EngineStatus) -> None:
        self._status = status
        self._loop.call_soon_threadsafe(self._send, Status(status, self._profile))


def _coalesced(events: list[Delta | Finished]) -> Written:
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


@contextmanager
def _without_garbage() -> Iterator[None]:
    """For what makes much that stays, as importing torch does: looking for garbage in it takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _end_as_lost() -> None:
    """Have C's own `exit` end this process as one that has lost its GPU.

    bitsandbytes calls it when CUDA has failed; we never do. What is registered last is called first, so before the
    libraries' own clean-up, which may hang on such a GPU.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        end = ctypes.cast(libc._exit, ctypes.c_void_p)
        libc.__cxa_atexit(end, ctypes.c_void_p(EXIT_GPU_LOST), None)


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
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _end_with_parent(given.parent)
    Worker(given).run(given.socket)
    # Threads of torch and of the loading may hang in native code; nothing is left to save
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
