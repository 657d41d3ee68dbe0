"""Puts together what writes: which model, in which window, by which engine. Runs in a thread of its own.

It knows no socket: what it comes to is told to whoever made it. Torch and all that brings it along are imported when
they are needed, as that takes seconds.
"""

import argparse
import ctypes
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from app.engine.base import Delta, EngineStatus, Finished, ModelProfile
from app.engine.model.checkpoint_files import check_folder
from app.engine.wire import EXIT_BROKEN, EXIT_GPU_LOST
from app.errors import ModelUnavailable, PonderError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from app.engine.batched.engine import BatchedEngine
    from app.engine.local.engine import LocalEngine
    from app.engine.model.memory import MemoryPlan
    from app.engine.model.prompts import PromptEncoder
    from app.engine.profiles import ModelSpec

_log = logging.getLogger(__name__)


class Assembly:
    """A model on its way. `encoder`, `profile` and `engine` are there as soon as they can be used, in this order.

    `give` gets what the engine writes, `tell_status` how far all is; both are called from several threads.
    """

    def __init__(
        self,
        told: argparse.Namespace,
        give: Callable[[Delta | Finished], None],
        tell_status: Callable[[EngineStatus], None],
    ) -> None:
        self._told = told
        self._give = give
        self._tell_to = tell_status
        self._status = EngineStatus("starting", "Starting the model process")
        self._note = ""
        self.profile: ModelProfile | None = None
        self.encoder: PromptEncoder | None = None
        self.engine: LocalEngine | BatchedEngine | None = None

    def load(self) -> None:
        """All of it; what goes wrong is told."""
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
        self.profile = loading.profile_of(spec, tokenizer, encoder, config, self._told.max_context_tokens)
        window = self.profile.context_window
        reason = hosting.why_not_batched(config, self._told.engine)
        # Before the weights are there, so that what cannot fit is said at once
        if reason:
            window = hosting.window_alone(spec, config, window, cap_gib)
        else:
            window = hosting.expected_plan(spec, config, window, cap_gib).window
        self.profile = loading.profile_of(spec, tokenizer, encoder, config, window)
        self.encoder = encoder
        self._tell("Loading weights", 0.0)
        model = loading.load_model(spec, source, config, self._tell)
        if reason:
            self._write_alone(model, tokenizer, reason)
            return
        plan = hosting.plan_for(spec, model, window, cap_gib)
        _log.info("%s", plan)
        profile = loading.profile_of(spec, tokenizer, encoder, config, plan.window)
        self.profile = replace(profile, slots=plan.rows)
        self._write_together(model, tokenizer, plan)

    def _write_alone(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", reason: str) -> None:
        from app.engine.local.engine import LocalEngine

        assert self.profile is not None
        self.profile = replace(self.profile, slots=1)
        self.engine = LocalEngine(model, tokenizer, self._give, lambda: os._exit(EXIT_GPU_LOST))
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

        installed = threading.Event()

        def prepare(moved: Callable[[], None]) -> Pace:
            # From the engine's own thread: what stands in for it must not be replaced by it
            installed.wait()

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

        self.engine = BatchedEngine(
            runner,
            pool,
            tokenizer,
            self._give,
            lambda is_gpu: os._exit(EXIT_GPU_LOST if is_gpu else EXIT_BROKEN),
            prepare=prepare,
            on_slower=self._tell_slower,
            store=store,
        )
        installed.set()

    def _tell_ready(self, way: str) -> None:
        assert self.profile is not None
        _end_as_lost()
        # What is there by now stays: looking through all of it for garbage would stop every stream for 0.2 s
        gc.collect()
        gc.freeze()
        way += self._note
        _log.info("%s is ready: %s", self.profile.title, way)
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
        self._tell_to(status)


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
