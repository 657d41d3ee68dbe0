"""One model in this process, one request at a time, through transformers' `generate`.

Knows nothing of sockets, runs or text beyond what its streamer gives. The simplest engine that is whole: every other
one is measured against it.
"""

import logging
import math
import queue
import secrets
import threading
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

from app.engine.base import Delta, Finished, FinishReason, Request, Sampling, Usage
from app.engine.streamer import TokenStreamer

_log = logging.getLogger(__name__)
Give = Callable[[Delta | Finished], None]


class _Cancelled(Exception):
    pass


class _BadLogits(Exception):
    pass


class LocalEngine:
    """Writes requests one after the other in a thread of its own, which alone touches the model.

    `give` is called from that thread with every token and every end. The KV cache of the last request stays: the next
    one reads only what its prompt does not share with it, so that closing a completion and going on behind it costs
    nothing, nor does the next turn read the conversation again.

    `cancel` is heard before every layer of every forward pass. While decoding it takes effect within the token, and in
    a prefill within the layer that is being read: transformers offers no finer place, so a GPU still finishes the
    kernels that were already queued, and a CPU the layer's matrix products over the whole prompt.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, give: Give) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._give = give
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        self._current = ""
        self._is_cancelled = threading.Event()
        self._cache = DynamicCache(config=model.config)
        self._cached_ids: list[int] = []
        # Whatever a checkpoint's own generation_config says must not leak into a request
        model.generation_config = GenerationConfig()
        for layer in _layers(model):
            layer.register_forward_pre_hook(self._stop_if_cancelled)
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def add(self, request: Request) -> None:
        """Write it when the ones before are done."""
        with self._lock:
            self._waiting.add(request.id)
        self._requests.put(request)

    def cancel(self, request_id: str) -> None:
        """End it as soon as the model can be interrupted; a waiting one never starts."""
        with self._lock:
            if request_id == self._current:
                self._is_cancelled.set()
            self._waiting.discard(request_id)

    def close(self) -> None:
        """End what is being written, and the thread."""
        self._is_cancelled.set()
        self._requests.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            with self._lock:
                self._current = request.id
                is_wanted = request.id in self._waiting
                self._waiting.discard(request.id)
                self._is_cancelled.clear()
            self._give(self._write(request) if is_wanted else Finished(request.id, "cancelled"))
            with self._lock:
                self._current = ""

    def _write(self, request: Request) -> Finished:
        """One request from its prompt to its end; no exception leaves it."""
        streamer = _Direct(self._tokenizer, request.id, self._give)
        reason: FinishReason = "failed"
        problem, cached = "", 0
        try:
            cached = self._reuse(request.prompt)
            reason = self._generate(request, streamer)
        except _Cancelled:
            reason = "cancelled"
        except _BadLogits:
            problem = "The model gave numbers that are none (NaN). Its weights may be damaged."
        except torch.OutOfMemoryError:
            problem = (
                f"This conversation is too long for this GPU: {len(request.prompt):,} tokens did not fit its memory. "
                "Start a new chat, or shorten the message."
            )
        except Exception as error:
            _log.exception("a request failed")
            problem = f"The model failed ({type(error).__name__}). The text so far is kept."
        if reason == "failed":
            self._forget()
        else:
            self._cached_ids = [*request.prompt, *streamer.token_ids]
            self._trim(len(self._cached_ids))
        return Finished(request.id, reason, Usage(len(request.prompt), len(streamer.token_ids), cached), problem)

    @torch.inference_mode()
    def _generate(self, request: Request, streamer: "_Direct") -> FinishReason:
        ids = torch.tensor([request.prompt], device=self._model.device)
        seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
        torch.manual_seed(seed)
        self._model.generate(  # type: ignore[operator]
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=self._cache,
            generation_config=_generation_config(request),
            logits_processor=LogitsProcessorList([_RefuseBadLogits()]),
            streamer=streamer,
        )
        ended = bool(streamer.token_ids) and streamer.token_ids[-1] in request.stop_ids
        return "stop" if ended else "length"

    def _stop_if_cancelled(self, *_: Any) -> None:
        if self._is_cancelled.is_set():
            raise _Cancelled

    def _reuse(self, prompt: Sequence[int]) -> int:
        """Keep the part of the cache that this prompt begins with; how many tokens that is."""
        # The last token is always read again: its logits are what the first new token is drawn from
        most = min(len(self._cached_ids), len(prompt) - 1)
        shared = next((i for i in range(most) if self._cached_ids[i] != prompt[i]), most)
        shared = self._trim(shared)
        self._cached_ids = list(prompt[:shared])
        return shared

    def _trim(self, tokens: int) -> int:
        """Crop every layer of the cache to at most this many tokens, all to the same; how many are left.

        A pass that was interrupted has written into its first layers only.
        """
        layers: Sequence[Any] = self._cache.layers
        lengths = [layer.get_seq_length() for layer in layers]
        left = min([tokens, *lengths]) if lengths else 0
        for layer, length in zip(layers, lengths, strict=True):
            if length > left:
                layer.crop(left - length)
        self._cached_ids = self._cached_ids[:left]
        return left

    def _forget(self) -> None:
        self._cache = DynamicCache(config=self._model.config)
        self._cached_ids = []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
        if torch.isnan(scores).any():
            raise _BadLogits
        return scores


def _generation_config(request: Request) -> GenerationConfig:
    sampling: Sampling = request.sampling
    is_greedy = math.isclose(sampling.temperature, 0.0)
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
        eos_token_id=list(request.stop_ids),
        pad_token_id=request.stop_ids[0] if request.stop_ids else 0,
        use_cache=True,
        **drawn,
    )


def _layers(model: PreTrainedModel) -> Sequence[torch.nn.Module]:
    """The model's decoder layers, by the name that transformers' causal models share."""
    layers = getattr(model.base_model, "layers", None)
    return list(layers) if layers is not None else [model]
