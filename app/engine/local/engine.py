"""One model in this process, one request at a time, through transformers' `generate`.

Knows nothing of sockets, runs or text beyond what its streamer gives. The simplest engine that is whole: every other
one is measured against it.
"""

import contextlib
import logging
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from app.engine.base import LEAST_TEMPERATURE, Delta, Finished, FinishReason, Request, Sampling, Usage
from app.engine.model.loading import decoder_layers
from app.engine.model.streamer import TokenStreamer

# Bounds what a long prompt holds in memory at once, and how much a GPU has queued when a cancel comes
_PREFILL_TOKENS = 4096
_log = logging.getLogger(__name__)
Give = Callable[[Delta | Finished], None]


class _Cancelled(Exception):
    pass


class _BadLogits(Exception):
    pass


class _UnknownToken(Exception):
    pass


class LocalEngine:
    """Writes requests one after the other in a thread of its own, which alone touches the model.

    `give` is called from that thread with every token and every end. The KV cache of the last request stays: the next
    one reads only what its prompt does not share with it, so that closing a completion and going on behind it costs
    nothing, nor does the next turn read the conversation again. (Models whose cache forgets, such as those with a
    sliding window, read every prompt whole.)

    `cancel` is heard before every layer of every forward pass. While decoding it takes effect within the token. A
    prefill is read in pieces of `_PREFILL_TOKENS`: a CPU stops at the next layer, and a GPU finishes at most the
    kernels that were already queued, which is one piece. What was read stays in the cache.

    `on_lost` is called, from the same thread, when the GPU can no longer be used by this process.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        give: Give,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._give = give
        self._on_lost = on_lost
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        self._current = ""
        self._is_cancelled = threading.Event()
        self._last_step_s = 0.0
        self._cache = DynamicCache(config=model.config)
        self._cached_ids: list[int] = []
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        # Whatever a checkpoint's own generation_config says must not leak into a request
        model.generation_config = GenerationConfig()
        for layer in decoder_layers(model):
            layer.register_forward_pre_hook(self._before_layer)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def add(self, request: Request) -> None:
        """Write it when the ones before are done."""
        with self._lock:
            self._waiting.add(request.id)
        self._requests.put(request)

    def cancel(self, request_id: str) -> None:
        """End it as soon as the model can be interrupted; a waiting one never starts, an unknown one is ignored."""
        with self._lock:
            self._waiting.discard(request_id)
            if request_id == self._current:
                self._is_cancelled.set()

    def close(self) -> None:
        """End what is being written and what waits, and the thread."""
        with self._lock:
            self._waiting.clear()
            self._is_cancelled.set()
        self._requests.put(None)
        self._thread.join()

    @property
    def stuck_s(self) -> float:
        """How long the model has not begun a layer, while it should; 0 when there is nothing to write."""
        return time.monotonic() - self._last_step_s if self._current else 0.0

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            with self._lock:
                is_wanted = request.id in self._waiting
                self._waiting.discard(request.id)
                self._is_cancelled.clear()
                self._last_step_s = time.monotonic()
                self._current = request.id
            finished = self._write(request) if is_wanted else Finished(request.id, "cancelled")
            with self._lock:
                self._current = ""
            self._give(finished)
            if finished.reason == "failed" and self._is_gpu_lost():
                self._on_lost()

    def _write(self, request: Request) -> Finished:
        """One request from its prompt to its end; no exception leaves it."""
        streamer = _Direct(self._tokenizer, request.id, self._give)
        reason: FinishReason = "failed"
        problem, cached = "", 0
        try:
            cached = self._reuse(request.prompt)
            reason = self._generate(request, streamer)
            self._keep([*request.prompt, *streamer.token_ids])
        except _BadLogits:
            problem = "The model gave numbers that are none (NaN or infinite). Its weights may be damaged."
        except _UnknownToken:
            problem = "The prompt holds token ids that this model does not have. Was the model changed? Try again."
        except torch.OutOfMemoryError:
            tokens = len(request.prompt) + len(streamer.token_ids)
            problem = (
                f"This conversation is too long for this GPU: {tokens:,} tokens did not fit its memory. "
                "Start a new chat, or shorten the message."
            )
        except Exception as error:
            _log.exception("a request failed")
            problem = f"The model failed ({type(error).__name__}). The text so far is kept."
        if problem:
            reason = "failed"
            self._forget()
        return Finished(request.id, reason, Usage(len(request.prompt), len(streamer.token_ids), cached), problem)

    @torch.inference_mode()
    def _generate(self, request: Request, streamer: "_Direct") -> FinishReason:
        if not request.prompt or min(request.prompt) < 0 or max(request.prompt) >= self._vocabulary:
            raise _UnknownToken  # a GPU would not raise but be lost
        if request.max_new_tokens < 1:
            return "length"
        ids = torch.tensor([request.prompt], device=self._model.device)
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
        torch.manual_seed(seed)
        try:
            self._model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=self._cache,
                generation_config=_generation_config(request),
                logits_processor=LogitsProcessorList([_RefuseBadLogits()]),
                streamer=streamer,
            )
        except _Cancelled:
            return "cancelled"
        ended = bool(streamer.token_ids) and streamer.token_ids[-1] in request.stop_ids
        return "stop" if ended else "length"

    def _before_layer(self, *_: Any) -> None:
        self._last_step_s = time.monotonic()
        if self._is_cancelled.is_set():
            raise _Cancelled

    def _reuse(self, prompt: Sequence[int]) -> int:
        """Keep the part of the cache that this prompt begins with; how many tokens that is."""
        # The last token is always read again: its logits are what the first new token is drawn from
        most = max(0, min(len(self._cached_ids), len(prompt) - 1))
        shared = next((i for i in range(most) if self._cached_ids[i] != prompt[i]), most)
        self._keep(self._cached_ids[:shared])
        return len(self._cached_ids)

    def _keep(self, ids: list[int]) -> None:
        """Crop the cache to what it holds of these tokens, every layer to the same length.

        A pass that was interrupted has written into its first layers only, and the last token drawn was never read.
        """
        layers: Sequence[Any] = self._cache.layers
        lengths = [layer.get_seq_length() for layer in layers]
        left = min([len(ids), *lengths]) if lengths else 0
        if left == 0 or any(self._cache.is_sliding) or not self._cache.is_croppable:
            # A cropped layer is a view: it would hold the memory of all that was cropped
            self._cache, self._cached_ids = DynamicCache(config=self._model.config), []
            return
        for layer, length in zip(layers, lengths, strict=True):
            if length > left:
                layer.crop(left - length)
        self._cached_ids = ids[:left]

    def _forget(self) -> None:
        self._cache, self._cached_ids = DynamicCache(config=self._model.config), []
        if torch.cuda.is_available():
            # On a lost GPU this raises too; `_work` asks for that next
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()

    def _is_gpu_lost(self) -> bool:
        """An error inside a kernel is for ever: every later call of this process gets it again."""
        if self._model.device.type != "cuda":
            return False
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            _log.exception("the GPU cannot be used by this process any more")
            return True
        return False


class _Direct(TokenStreamer):
    """Gives every token on at once, from the thread that writes it; `token_ids` is what was written."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, request_id: str, give: Give) -> None:
        super().__init__(tokenizer)
        self._request_id = request_id
        self._give = give
        self.token_ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take a token and hand it on."""
        super().put(value)
        while not self.text_queue.empty():
            token_id, text = self.text_queue.get()
            self.token_ids.append(token_id)
            self._give(Delta(self._request_id, (token_id,), (text,)))


class _RefuseBadLogits(LogitsProcessor):
    """Ends a request whose logits are not numbers, rather than sampling from them for ever."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        # The greatest is NaN if any is, and infinite where no token or one beyond all can be drawn
        if not torch.isfinite(scores.amax()):
            raise _BadLogits
        return scores


def _generation_config(request: Request) -> GenerationConfig:
    sampling: Sampling = request.sampling
    is_greedy = sampling.temperature < LEAST_TEMPERATURE
    drawn = {} if is_greedy else {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p or None,
    }  # fmt: skip
    return GenerationConfig(
        do_sample=not is_greedy,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=request.max_new_tokens,
        eos_token_id=list(request.stop_ids) or None,
        pad_token_id=request.stop_ids[0] if request.stop_ids else 0,
        use_cache=True,
        prefill_chunk_size=_PREFILL_TOKENS,
        **drawn,
    )
