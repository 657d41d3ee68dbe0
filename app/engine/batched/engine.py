"""Many requests at the same time on one model: who reads, who writes, who waits.

One thread owns the model. A step is a token for everybody who writes, and with it a piece of one prompt: together they
read the weights once. What people get is the same tokens as alone (to the rounding of the batch's shape); what they
share of their beginnings is read once.
"""

import itertools
import logging
import queue
import secrets
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedTokenizerBase

from app.engine.base import Delta, Finished, FinishReason, Request, Usage
from app.engine.batched.offload import MOST_A_STEP, HostPages
from app.engine.batched.pace import Pace
from app.engine.batched.pages import Held, OutOfPages, PagePool
from app.engine.batched.runner import Drawn, Runner
from app.engine.batched.sampler import has_penalty
from app.engine.model.streamer import TokenStreamer

# Pages fetched from RAM or saved there between two looks at the orders, when nobody waits for the next token
_MOST_LOADED_ALONE = 64
_log = logging.getLogger(__name__)
Give = Callable[[Delta | Finished], None]


@dataclass(slots=True, eq=False)
class _Sequence:
    """One request on its way. `tokens` is the prompt and what was written; `held.ids` is what of it is in the cache."""

    request: Request
    streamer: TokenStreamer
    seed: int
    arrival: int
    tokens: list[int]
    held: Held = field(default_factory=Held)
    cached_tokens: int = -1
    failures: int = 0

    def seen(self, *more: int) -> list[int]:
        """The tokens that its repetition penalty counts; none where there is no penalty."""
        return [*self.tokens, *more] if has_penalty(self.request.sampling) else []

    @property
    def usage(self) -> Usage:
        """What it has come to so far."""
        return Usage(len(self.request.prompt), self.written, max(0, self.cached_tokens))

    @property
    def written(self) -> int:
        """How many tokens it has written."""
        return len(self.tokens) - len(self.request.prompt)


class BatchedEngine:
    """Writes many requests at once; `add` and `cancel` from any thread, `give` is called from the engine's own.

    `prepare` is called first, from that thread, with a function to call whenever it has moved; it returns how long the
    pieces of prompts may be. `on_lost` is called, from that thread too, when this process can write no more: with True
    when the GPU is gone, with False when the loop itself broke. `on_slower` is told in words what was given up.
    """

    def __init__(
        self,
        runner: Runner,
        pool: PagePool,
        tokenizer: PreTrainedTokenizerBase,
        give: Give,
        on_lost: Callable[[bool], None] = lambda _: None,
        *,
        on_slower: Callable[[str], None] = lambda _: None,
        prepare: Callable[[Callable[[], None]], Pace] = lambda _: Pace(),
        store: HostPages | None = None,
    ) -> None:
        self._runner, self._pool, self._store, self._tokenizer = runner, pool, store, tokenizer
        self._give, self._on_lost, self._on_slower, self._prepare = give, on_lost, on_slower, prepare
        self._orders: queue.SimpleQueue[Request | str | None] = queue.SimpleQueue()
        self._waiting: deque[_Sequence] = deque()
        self._reading: deque[_Sequence] = deque()
        self._writing: list[_Sequence] = []
        self._arrivals = itertools.count()
        self._refused: tuple[_Sequence, int, int] | None = None
        self._pace = Pace()
        self._last_step_s = 0.0
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def add(self, request: Request) -> None:
        """Write it as soon as there is room."""
        self._orders.put(request)

    def cancel(self, request_id: str) -> None:
        """End it before the next step; unknown and finished ids are ignored."""
        self._orders.put(request_id)

    def close(self) -> None:
        """End what is being written and what waits, and the thread."""
        self._orders.put(None)
        self._thread.join()

    @property
    def stuck_s(self) -> float:
        """How long nothing has moved, while there is something to prepare or to write; 0 when there is not."""
        since = self._last_step_s
        return time.monotonic() - since if since else 0.0

    # The loop

    def _work(self) -> None:
        try:
            self._moved()
            self._runner.on_layer(self._moved)
            self._pace = self._prepare(self._moved)
            while not self._is_closed:
                try:
                    self._take_orders()
                    self._step()
                except Exception as error:  # what serves all must not end with one of them
                    self._recover(error)
        except Exception:
            _log.exception("the engine's loop broke")
            self._lose(is_gpu=self._runner.is_lost())
        for sequence in self._everybody():
            self._end(sequence, "cancelled")

    def _moved(self) -> None:
        self._last_step_s = time.monotonic()

    def _everybody(self) -> list[_Sequence]:
        return [*self._writing, *self._reading, *self._waiting]

    def _lose(self, *, is_gpu: bool) -> None:
        """All is lost, and nothing may touch the GPU any more."""
        what = "GPU" if is_gpu else "model"
        problem = f"The {what} failed. The text so far is kept; the model is being started again."
        for sequence in self._everybody():
            self._give(Finished(sequence.request.id, "failed", sequence.usage, problem))
        self._writing.clear()
        self._reading.clear()
        self._waiting.clear()
        self._is_closed = True
        self._on_lost(is_gpu)

    def _take_orders(self) -> None:
        """Everything asked for since the last step; waits when there is nothing to do."""
        has_work = bool(self._everybody())
        self._last_step_s = time.monotonic() if has_work else 0.0
        try:
            while True:
                self._obey(self._orders.get(block=not has_work))
                has_work = True
        except queue.Empty:
            return

    def _obey(self, order: Request | str | None) -> None:
        self._moved()
        if order is None:
            self._is_closed = True
        elif isinstance(order, str):
            for sequence in self._everybody():
                if sequence.request.id == order:
                    self._end(sequence, "cancelled")
        else:
            try:
                self._accept(order)
            except Exception as error:
                _log.exception("a request could not be taken")
                self._give(Finished(order.id, "failed", problem=_failed_by(error)))

    def _accept(self, request: Request) -> None:
        problem = self._problem_of(request)
        if problem:
            self._give(Finished(request.id, "failed", problem=problem))
        elif request.max_new_tokens < 1:
            self._give(Finished(request.id, "length", Usage(len(request.prompt))))
        else:
            seed = request.sampling.seed if request.sampling.seed is not None else secrets.randbits(63)
            streamer = TokenStreamer(self._tokenizer)
            streamer.next_tokens_are_prompt = False
            self._waiting.append(_Sequence(request, streamer, seed, next(self._arrivals), list(request.prompt)))

    def _problem_of(self, request: Request) -> str:
        if not request.prompt or min(request.prompt) < 0 or max(request.prompt) >= self._runner.vocabulary:
            return "The prompt holds token ids that this model does not have. Was the model changed? Try again."
        room = min(self._pool.total * self._pool.page_tokens, self._runner.context_tokens)
        if len(request.prompt) >= room:
            return (
                f"This conversation is too long for this GPU: it has {len(request.prompt):,} tokens, and there is room "
                f"for {room:,}. Start a new chat, or shorten the message."
            )
        return ""

    def _step(self) -> None:
        if self._store is not None:
            self._store.begin_step(MOST_A_STEP if self._writing else _MOST_LOADED_ALONE)
        self._admit()
        if self._reading and self._writing and self._runner.is_joined:
            self._make_room()
        if not self._reading or self._is_catching_up(self._reading[0]):
            self._write()
        elif self._writing and self._runner.is_joined:
            self._read_and_write(self._reading[0])
        else:
            self._read_piece(self._reading[0])
            self._write()

    # Reading

    def _admit(self) -> None:
        """Let those who wait begin, in their order, while there are rows and pages for what they have to read."""
        while self._waiting and len(self._reading) + len(self._writing) < self._runner.rows:
            sequence = self._waiting[0]
            room = (sequence, self._pool.available, len(self._writing))
            if room == self._refused and (self._reading or self._writing):
                return  # looking again at what it has in common with others takes long
            held = self._pool.begin(sequence.tokens)
            missing = self._pool.pages_for(len(sequence.tokens) + 1) - len(held.pages)
            # Whoever writes needs another page soon: who came in for a moment would have to go again
            if missing + len(self._writing) > self._pool.available:
                self._pool.end(held)
                if not self._reading and not self._writing:
                    self._waiting.popleft()
                    self._fail_for_room(sequence)
                    continue
                self._refused = room
                return
            self._waiting.popleft()
            self._reading.append(sequence)
            sequence.held = held
            # All at once: two that read at the same time must not take each other's last pages
            self._pool.extend(held, len(sequence.tokens) + 1)

    def _is_catching_up(self, sequence: _Sequence) -> bool:
        """Take over what it need not read; whether there is more of that in the next step."""
        if self._pool.catch_up(sequence.held, sequence.tokens, MOST_A_STEP if self._writing else _MOST_LOADED_ALONE):
            return True
        self._fork(sequence)
        if sequence.cached_tokens < 0:
            sequence.cached_tokens = len(sequence.held.ids)
        return False

    def _fork(self, sequence: _Sequence) -> None:
        """Somebody who writes has read the very same: take over the last, unfinished page too."""
        size, held, end = self._pool.page_tokens, sequence.held, len(sequence.tokens) - 1
        if held.known != end // size or len(held.ids) != held.known * size or len(held.ids) == end:
            return
        rest = sequence.tokens[held.known * size : end]
        for other in self._writing:
            # Pages before the last are known by what is in them: if they are the same, so are their tokens
            is_same = other.held.age == held.age and other.held.pages[: held.known] == held.pages[: held.known]
            if is_same and other.held.ids[held.known * size : end] == rest:
                self._runner.copy_page(other.held.pages[held.known], held.pages[held.known])
                self._pool.wrote(held, rest)
                return

    def _read_piece(self, sequence: _Sequence) -> None:
        """Read the next piece of a prompt; with its end it has its first token and joins those who write."""
        start, piece, is_last = self._next_piece(sequence)
        row = len(self._writing) if is_last else None
        try:
            if row is not None:
                self._runner.put(row, sequence.request.sampling, sequence.seed, sequence.seen())
            drawn = self._runner.extend(sequence.held.pages, piece, start, row=row)
            self._runner.wait()
        except Exception as error:
            self._fail_to_read(sequence, len(piece), error)
            return
        self._has_read(sequence, piece, drawn)

    def _read_and_write(self, sequence: _Sequence) -> None:
        """A piece of a prompt, and a token for everybody who writes."""
        start, piece, is_last = self._next_piece(sequence)
        rows = len(self._writing)
        began = time.monotonic()
        try:
            if is_last:
                self._runner.put(rows, sequence.request.sampling, sequence.seed, sequence.seen())
            written, first = self._runner.decode_and_extend(rows, sequence.held.pages, piece, start, is_last=is_last)
        except Exception as error:
            self._fail_to_read(sequence, len(piece), error)
            # Tokens may be marked as seen that nobody got
            for row, other in enumerate(self._writing):
                if has_penalty(other.request.sampling):
                    self._runner.put(row, other.request.sampling, other.seed, other.seen())
            return
        self._pace.learn(self._runner.tokens_with(len(piece), rows), time.monotonic() - began)
        self._have_written(written)
        self._has_read(sequence, piece, first)

    def _next_piece(self, sequence: _Sequence) -> tuple[int, list[int], bool]:
        """Where it begins, its tokens, and whether it is the prompt's last."""
        start = len(sequence.held.ids)
        rows = len(self._writing)
        most = self._runner.longest_piece(self._pace.tokens, rows) if rows else self._pace.largest
        piece = sequence.tokens[start : start + most]
        return start, piece, start + len(piece) == len(sequence.tokens)

    def _has_read(self, sequence: _Sequence, piece: list[int], drawn: Drawn | None) -> None:
        self._pool.wrote(sequence.held, piece)
        if drawn is not None:
            self._reading.popleft()
            self._writing.append(sequence)
            row = len(self._writing) - 1
            # Others may have ended in the same step
            self._runner.put(row, sequence.request.sampling, sequence.seed, sequence.seen(drawn.token_id))
            self._runner.place(row, sequence.held.pages)
            self._runner.set_next(row, drawn.token_id, len(sequence.held.ids))
            self._take(sequence, drawn)

    def _fail_to_read(self, sequence: _Sequence, tokens: int, error: Exception) -> None:
        """Its own fault, and nobody else's, unless the GPU is gone; but what can be read another way is read again.

        Raises:
            Exception: the GPU is gone.
        """
        if isinstance(error, torch.OutOfMemoryError):
            _free_what_it_held(error)
            # Recorded passes have their memory already
            recorded = self._runner.longest_recorded
            if 0 < recorded < tokens:
                self._pace.largest = recorded
                self._on_slower(f"prompts are read in pieces of {recorded:,} tokens: no memory was left for {tokens:,}")
                return
            self._fail_for_room(sequence)
            return
        if self._runner.is_lost():
            raise error
        _log.error("reading a prompt failed", exc_info=error)
        if isinstance(error, RuntimeError) and self._runner.forget_graphs():
            # It reads again in the next step
            self._on_slower(f"CUDA graphs are off: reading a prompt failed ({type(error).__name__})")
            return
        self._fail(sequence, _failed_by(error))

    # Writing

    def _write(self) -> None:
        """A token for everybody who writes."""
        self._make_room()
        if not self._writing:
            return
        self._have_written(self._runner.decode(len(self._writing)))

    def _have_written(self, drawn: list[Drawn]) -> None:
        for sequence, one in zip(list(self._writing), drawn, strict=True):
            row = self._writing.index(sequence)
            known = sequence.held.known
            self._pool.wrote(sequence.held, sequence.tokens[-1:])
            if sequence.held.known != known:
                self._runner.place(row, sequence.held.pages, known)
            sequence.failures = 0
            self._take(sequence, one)

    def _make_room(self) -> None:
        """A place in a page for everybody's next token; if there is none, who came last waits again, read or not."""
        for sequence in list(self._writing):
            while sequence in self._writing:
                have = len(sequence.held.pages)
                try:
                    self._pool.extend(sequence.held, len(sequence.held.ids) + 1)
                except OutOfPages:
                    self._set_back(max([*self._writing, *self._reading], key=lambda one: one.arrival))
                    continue
                if len(sequence.held.pages) > have:
                    self._runner.place(self._writing.index(sequence), sequence.held.pages, have)
                break

    def _set_back(self, sequence: _Sequence) -> None:
        """Its pages are needed by others: it reads again when there is room, and fails if it is alone."""
        is_alone = len(self._writing) + len(self._reading) == 1
        try:
            self._leave(sequence)
        finally:
            self._waiting.appendleft(sequence)
        if is_alone:
            self._fail_for_room(sequence)

    def _take(self, sequence: _Sequence, drawn: Drawn) -> None:
        """Give on the token that a sequence got, and see whether it was its last."""
        if not drawn.is_sound:
            self._pool.forget()
            self._fail(sequence, "The model gave numbers that are none (NaN or infinite). Its weights may be damaged.")
            return
        sequence.tokens.append(drawn.token_id)
        try:
            self._give(_delta_of(sequence, drawn))
        except Exception as error:
            _log.exception("a token could not be given on")
            self._fail(sequence, _failed_by(error))
            return
        if drawn.token_id in sequence.request.stop_ids:
            self._end(sequence, "stop")
        elif sequence.written >= sequence.request.max_new_tokens or len(sequence.tokens) >= self._runner.context_tokens:
            self._end(sequence, "length")

    # Ends

    def _leave(self, sequence: _Sequence) -> None:
        """Out of whatever it is in; its pages are free in this very step."""
        self._pool.end(sequence.held)
        for others in (self._reading, self._waiting):
            if sequence in others:
                others.remove(sequence)
        if sequence in self._writing:
            row, last = self._writing.index(sequence), len(self._writing) - 1
            self._writing[row] = self._writing[last]
            self._writing.pop()
            if row != last:
                # The last of all: what may fail must leave nothing half done
                self._runner.move(last, row)

    def _end(self, sequence: _Sequence, reason: FinishReason, problem: str = "") -> None:
        try:
            self._leave(sequence)
        finally:
            self._give(Finished(sequence.request.id, reason, sequence.usage, problem))

    def _fail(self, sequence: _Sequence, problem: str) -> None:
        self._end(sequence, "failed", problem)

    def _fail_for_room(self, sequence: _Sequence) -> None:
        self._fail(
            sequence,
            f"This conversation is too long for this GPU: {len(sequence.tokens):,} tokens did not fit its memory. "
            "Start a new chat, or shorten the message.",
        )

    def _recover(self, error: Exception) -> None:
        """A step for all failed: everybody reads again from their tokens, once; who fails twice in a row is ended."""
        _log.error("a step failed", exc_info=error)
        if self._runner.is_lost():
            self._lose(is_gpu=True)
            return
        self._pool.forget()
        at_it = self._read_again()
        if isinstance(error, torch.OutOfMemoryError) and at_it:
            # The longest takes most: without it the others have room
            self._fail_for_room(max(at_it, key=lambda sequence: len(sequence.tokens)))
            _free_what_it_held(error)
            return
        if not at_it and self._waiting:
            # It could not even be let in
            at_it = [self._waiting[0]]
        if self._runner.forget_graphs():
            self._on_slower(f"CUDA graphs are off: a step failed ({type(error).__name__})")
        for sequence in at_it:
            sequence.failures += 1
            if sequence.failures > 1:
                self._fail(sequence, _failed_by(error))

    def _read_again(self) -> list[_Sequence]:
        """Whoever reads or writes goes on from their tokens, before whoever waits already; who that is."""
        at_it = [*self._writing, *self._reading]
        # From the last row on: then none has to be moved, which may be what failed
        for sequence in reversed(at_it):
            self._leave(sequence)
        self._waiting.extendleft(reversed(at_it))
        return at_it


def _delta_of(sequence: _Sequence, drawn: Drawn) -> Delta:
    """What its newest token adds to its text."""
    sequence.streamer.put(torch.tensor([drawn.token_id]))
    ids, texts = [], []
    while not sequence.streamer.text_queue.empty():
        token_id, text = sequence.streamer.text_queue.get()
        ids.append(token_id)
        texts.append(text)
    return Delta(sequence.request.id, tuple(ids), tuple(texts), (round(drawn.logprob, 4),))


def _free_what_it_held(error: Exception) -> None:
    """A pass that found no memory left has its tensors in the frames of its error."""
    traceback.clear_frames(error.__traceback__)
    torch.cuda.empty_cache()


def _failed_by(error: Exception) -> str:
    return f"The model failed ({type(error).__name__}). The text so far is kept."
