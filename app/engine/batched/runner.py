"""The model's forward passes over a paged cache: a piece of one prompt, one token of many rows, or both.

Owns the tensors of the cache and of the rows. Runs the model's own modules; knows nothing of requests, text or time.
"""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from app.engine.base import LEAST_TEMPERATURE, Sampling
from app.engine.batched import attention
from app.engine.batched.attention import PagedCache, Step
from app.engine.batched.fused import fused_hidden, is_known
from app.engine.batched.graphs import Graph, Recorder
from app.engine.batched.nf4.linear import Joined
from app.engine.batched.sampler import FEW, MOST, SamplingRows, sample
from app.engine.batched.unpack import MANY, unpacked_layers
from app.engine.model.loading import decoder_layers
from app.engine.model.memory import ALIKE_ROWS

_log = logging.getLogger(__name__)
# The shortest piece that is worth a pass, where passes are not recorded
_LEAST_PIECE = 64


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one row got: a token, its log-probability, and whether the logits it came from were numbers."""

    token_id: int
    logprob: float
    is_sound: bool


class Runner:
    """One model with room for `rows` sequences in `pages` pages. Use it from one thread.

    A row is a place in the batch: `put` sets its sampling, `place` its pages and length. Row numbers are dense:
    `decode(n)` writes one token for each of the first n rows. `masks`, (K, vocabulary) bool, are the vocabularies that
    a row may be kept to; the first should be the whole one.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rows: int,
        pages: int,
        page_tokens: int,
        context_window: int,
        has_kernels: bool = False,
        masks: torch.Tensor | None = None,
        joined: Mapping[torch.nn.Module, Joined] | None = None,
    ) -> None:
        attention.register()
        config = model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.model, self.device, self.page_tokens = model, model.device, page_tokens
        self.vocabulary, self.context_tokens = int(config.vocab_size), context_window
        model.config._attn_implementation = attention.NAME
        shape = (pages, page_tokens, heads, width)

        def made() -> list[torch.Tensor]:
            return [torch.zeros(shape, dtype=model.dtype, device=self.device) for _ in range(config.num_hidden_layers)]

        self.cache = PagedCache(made(), made(), page_tokens)
        self.rows = rows
        # What the self-test may take back, one after the other
        self.has_kernels = has_kernels
        self.is_fused = has_kernels and is_known(model)
        self.is_joined = True
        self._joined_layers = dict(joined or {})
        self._unpacked = unpacked_layers(model) if self.is_fused else {}
        self.is_unpacking = bool(self._unpacked)
        self._block_table = torch.zeros(
            (rows, -(-context_window // page_tokens)), dtype=torch.int32, device=self.device
        )
        self._lengths = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._samplings = SamplingRows.on(self.device, rows, self.vocabulary, masks)
        self._most_asked = [FEW] * rows
        # By rows and `most`; by tokens of the pass, the rows' among them, and rows
        self._graphs: dict[tuple[int, int], Graph] = {}
        self._joined_graphs: dict[tuple[int, int], Graph] = {}
        # What recorded passes with a piece are told, and what comes of them
        self._told = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._hidden_states = torch.zeros(0, dtype=model.dtype, device=self.device)
        self._on_layer: Callable[[], None] = _nothing
        self._hooks: list[RemovableHandle] = []

    # Rows

    def put(self, row: int, sampling: Sampling, seed: int, seen: Sequence[int] = (), mask: int = 0) -> None:
        """How the row's tokens are drawn; `seen` are those that its repetition penalty counts so far."""
        self._samplings.put(row, sampling, seed, seen, mask)
        self._most_asked[row] = FEW if sampling.top_k <= FEW or sampling.temperature < LEAST_TEMPERATURE else MOST

    def place(self, row: int, pages: Sequence[int], first: int = 0) -> None:
        """The row's pages from the `first` on."""
        if len(pages) > first:
            new = torch.tensor(pages[first:], dtype=torch.int32, device=self.device)
            self._block_table[row, first : len(pages)] = new

    def set_next(self, row: int, token_id: int, length: int) -> None:
        """The row's last token, which is not in the cache yet, and how many tokens are."""
        self._tokens[row] = token_id
        self._lengths[row] = length

    def set_all_lengths(self, length: int) -> None:
        """Every row has so many tokens; for warming up."""
        self._lengths.fill_(length)

    def move(self, source: int, target: int) -> None:
        """The sequence in `source` goes on in `target`."""
        for tensor in (self._block_table, self._lengths, self._tokens):
            tensor[target] = tensor[source]
        self._samplings.move(source, target)
        self._most_asked[target] = self._most_asked[source]

    @torch.inference_mode()
    def copy_page(self, source: int, target: int) -> None:
        """The keys and values of one page, also in another."""
        for pages in (*self.cache.keys, *self.cache.values):
            pages[target].copy_(pages[source])

    # Passes

    @torch.inference_mode()
    def extend(self, pages: Sequence[int], ids: Sequence[int], start: int, *, row: int | None) -> Drawn | None:
        """Read a piece of a prompt: `ids` from place `start` on, into the sequence's pages.

        With a `row` the piece is the prompt's last: draws the first token as that row's sampling says.
        """
        hidden = self._joined_pass(0, pages, ids, start)[1]
        if row is None:
            return None
        one = self._samplings.at(slice(row, row + 1))
        position = torch.tensor([start + len(ids)], dtype=torch.int32, device=self.device)
        drawn = sample(self._logits(hidden[len(ids) - 1 : len(ids)]), one, position, self._most_asked[row])
        return _read(*drawn)[0]

    @torch.inference_mode()
    def decode_and_extend(
        self, rows: int, pages: Sequence[int], ids: Sequence[int], start: int, *, is_last: bool
    ) -> tuple[list[Drawn], Drawn | None]:
        """`decode` and `extend` in one pass, which reads the weights once; the rows' lengths grow by one.

        With `is_last` the piece is the prompt's last: row number `rows`, which has its sampling, is drawn from it.
        """
        size, hidden = self._joined_pass(rows, pages, ids, start)
        asked = rows + is_last
        wanted = torch.cat([hidden[size : size + rows], hidden[len(ids) - 1 : len(ids)]])[:asked]
        last = torch.tensor([start + len(ids)], dtype=torch.int32, device=self.device)
        positions = torch.cat([self._lengths[:rows] + 1, last])[:asked]
        drawn = sample(self._logits(wanted), self._samplings.at(slice(asked)), positions, max(self._most_asked[:asked]))
        read = _read(*drawn)
        # Only now: a pass that fails before has changed nothing of the rows
        self._tokens[:rows] = drawn[0][:rows]
        self._lengths[:rows] += 1
        return read[:rows], read[rows] if is_last else None

    def _joined_pass(
        self, rows: int, pages: Sequence[int], ids: Sequence[int], start: int, *, is_plain: bool = False
    ) -> tuple[int, torch.Tensor]:
        """The hidden states of a pass: first the piece's, filled up to the number returned, then the rows'.

        `is_plain` is for comparing: without anything of ours but the pages.
        """
        table = list(pages[: -(-(start + len(ids)) // self.page_tokens)])
        packed = [start, start + len(ids), *table, *[0] * (self._block_table.shape[1] - len(table)), *ids]
        tokens, places = self.tokens_with(len(ids), rows), self._places_for(rows)
        graph = self._joined_graphs.get((tokens, places))
        if graph is None or is_plain:
            told = torch.tensor(packed, device=self.device)
            return len(ids), self._joined_hidden(told, len(ids), rows, start + len(ids), is_plain=is_plain)
        self._told[: len(packed)] = torch.tensor(packed)
        self._blank(rows, places)
        graph.replay()
        return tokens - places, self._hidden_states[:tokens]

    def _places_for(self, rows: int) -> int:
        """For how many rows the pass is recorded that these take."""
        return min((places for _, places in self._joined_graphs if places >= rows), default=rows)

    def longest_piece(self, tokens: int, rows: int) -> int:
        """How long a piece may be in a pass of so many tokens in all, with so many rows."""
        return max(1 if self._joined_graphs else _LEAST_PIECE, tokens - self._places_for(rows))

    @property
    def longest_recorded(self) -> int:
        """The longest piece that is read in a recorded pass while nobody writes; 0 if none is."""
        return max((tokens - rows for tokens, rows in self._joined_graphs), default=0)

    def tokens_with(self, piece: int, rows: int) -> int:
        """The tokens that a pass of such a piece has, what fills it up included."""
        asked = piece + self._places_for(rows)
        return next((tokens for tokens in self.joined_tokens if tokens >= asked), asked)

    def _joined_hidden(
        self, told: torch.Tensor, size: int, rows: int, context: int, *, is_plain: bool = False
    ) -> torch.Tensor:
        """The hidden states of `size` tokens of a piece and of the rows' next tokens.

        `told` is where the piece begins and ends, its sequence's pages, its tokens; `context` is its end once more, or
        0 in a pass that is being recorded, where only the GPU will know it.
        """
        bounds, pages, ids = told[:2], told[2 : 2 + self._block_table.shape[1]], told[-size:]
        places = bounds[0] + torch.arange(size, device=self.device)
        page = pages[(places // self.page_tokens).clamp(max=len(pages) - 1)]
        # What fills the piece up writes to page 0, which is nobody's
        slots = torch.where(places < bounds[1], page * self.page_tokens + places % self.page_tokens, 0)
        has_kernels = self.has_kernels and not is_plain
        lengths = self._lengths[:rows] + 1
        step = Step(
            self.cache,
            slots=torch.cat([slots, self._slots(rows)]),
            block_table=self._table(lengths),
            lengths=lengths,
            has_kernels=has_kernels,
            piece=size,
            piece_pages=pages,
            bounds=bounds,
            context=context,
            gathered=self.context_tokens,
        )
        ids = torch.cat([ids, self._tokens[:rows]])
        places = torch.cat([places, self._lengths[:rows].long()])
        return self._hidden(ids, places, step, is_fused=self.is_fused and not is_plain)

    def _blank(self, rows: int, most: int) -> None:
        """The rows from `rows` on stand for nothing, and write to page 0, which is nobody's."""
        if rows < most:
            self._lengths[rows:most] = 0
            self._block_table[rows:most, 0] = 0

    @torch.inference_mode()
    def decode(self, rows: int) -> list[Drawn]:
        """One more token for each of the first `rows` rows; their lengths grow by one."""
        most = max(self._most_asked[:rows])
        size = next((size for size in self._sizes() if size >= rows), rows)
        graph = self._graphs.get((size, most))
        if graph is not None:
            self._blank(rows, size)
            graph.replay()
            return _read(*graph.given)[:rows]
        return _read(*self._decode(rows, most))

    @torch.inference_mode()
    def logits_of(self, pages: Sequence[int], ids: Sequence[int], last: int) -> torch.Tensor:
        """The logits behind the last tokens of a fresh sequence, (last, vocabulary), the plain way; for comparing."""
        return self._logits(self._joined_pass(0, pages, ids, 0, is_plain=True)[1][-last:]).float()

    @torch.inference_mode()
    def own_logits(self, ids: Sequence[int], last: int) -> torch.Tensor:
        """The same by the model's own forward, with none of our attention; for comparing."""
        self.model.config._attn_implementation = "sdpa"
        try:
            out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False, logits_to_keep=last)
        finally:
            self.model.config._attn_implementation = attention.NAME
        logits: torch.Tensor = out.logits[0, -last:]
        return logits.float()

    @torch.inference_mode()
    def both_logits(
        self, rows: int, pages: Sequence[int], ids: Sequence[int], last: int, start: int = 0
    ) -> torch.Tensor:
        """The logits behind the last tokens of a piece, and the rows', (last + rows, vocabulary); for comparing."""
        size, hidden = self._joined_pass(rows, pages, ids, start)
        wanted = torch.cat([hidden[len(ids) - last : len(ids)], hidden[size : size + rows]])
        return self._logits(wanted).float()

    @torch.inference_mode()
    def decode_logits(self, rows: int) -> torch.Tensor:
        """The logits that `decode` would draw from, (rows, vocabulary); without graphs, for comparing."""
        return self._logits(self._decode_hidden(rows)).float()

    def _decode(self, rows: int, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self._decode_hidden(rows)
        drawn = sample(self._logits(hidden), self._samplings.at(slice(rows)), self._lengths[:rows], most)
        self._tokens[:rows] = drawn[0]
        return drawn

    def _decode_hidden(self, rows: int) -> torch.Tensor:
        lengths = self._lengths[:rows]
        slots, places = self._slots(rows), lengths.long()
        lengths += 1
        step = Step(self.cache, slots, self._table(lengths), lengths, self.has_kernels, gathered=self.context_tokens)
        if self.is_fused:
            return self._hidden(self._tokens[:rows], places, step, is_fused=True)
        out = self.model.base_model(
            input_ids=self._tokens[:rows, None], position_ids=places[:, None], use_cache=False, step=step
        )
        hidden: torch.Tensor = out.last_hidden_state
        return hidden[:, -1]

    def _table(self, lengths: torch.Tensor) -> torch.Tensor:
        """The pages of the first rows; without a kernel, which reads what is there alone, no more than are in use."""
        rows = len(lengths)
        if self.has_kernels or not rows:
            return self._block_table[:rows]
        return self._block_table[:rows, : -(-int(lengths.max()) // self.page_tokens)]

    def _slots(self, rows: int) -> torch.Tensor:
        """Where the next token of each row goes."""
        places = self._lengths[:rows].long()
        page = self._block_table[:rows].gather(1, (places // self.page_tokens)[:, None])[:, 0].long()
        return page * self.page_tokens + places % self.page_tokens

    def _multiplies(self, rows: int) -> bool:
        return all(one.multiplies(rows) for one in self._joined_layers.values())

    def _hidden(self, ids: torch.Tensor, places: torch.Tensor, step: Step, *, is_fused: bool = False) -> torch.Tensor:
        """The hidden states of a pass: ids and places (tokens,), the result (tokens, hidden)."""
        if is_fused:
            quicker = self._unpacked if self.is_unpacking and len(ids) >= MANY else {}
            # What is unpacked is unpacked apart: joined it would take twice the room
            joined = self._joined_layers if self._multiplies(len(ids)) else {}
            return fused_hidden(self.model, ids, places, step, quicker, joined, self._on_layer)
        out = self.model.base_model(input_ids=ids[None], position_ids=places[None], use_cache=False, step=step)
        hidden: torch.Tensor = out.last_hidden_state
        return hidden[0]

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """A few rows are filled up to as many as share one order of sums."""
        head = self.model.get_output_embeddings()
        rows = len(hidden)
        if self.has_kernels and rows < ALIKE_ROWS:
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, ALIKE_ROWS - rows))
        logits: torch.Tensor = head(hidden)
        return logits[:rows]

    def wait(self) -> None:
        """Until the GPU has done all it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def is_lost(self) -> bool:
        """Whether the GPU can no longer be used by this process: an error inside a kernel is for ever."""
        try:
            self.wait()
        except RuntimeError:
            _log.exception("the GPU cannot be used by this process any more")
            return True
        return False

    # Graphs

    def _sizes(self) -> list[int]:
        return sorted({size for size, _ in self._graphs})

    @property
    def joined_tokens(self) -> list[int]:
        """Tokens of the passes with a piece that are recorded, the shortest first."""
        return sorted({tokens for tokens, _ in self._joined_graphs})

    @torch.inference_mode()
    def capture(
        self,
        sizes: Sequence[int],
        joined: Sequence[tuple[int, int]] = (),
        tell: Callable[[float], None] = lambda _: None,
    ) -> None:
        """Record the decode step for so many rows as CUDA graphs, and passes with a piece (see `joined_shapes`).

        Each must have been taken before, so that its kernels are loaded; doing that here would take as much memory
        again. Nothing may be in the rows.

        Raises:
            RuntimeError: the step waits for the GPU somewhere, or there is no room.
        """
        # The largest first: the others find room in its memory
        joined = sorted(joined, reverse=True)
        alone = list(itertools.product(sorted(sizes, reverse=True), (FEW, MOST)))
        width = self.model.config.get_text_config().hidden_size
        most = max((tokens for tokens, _ in joined), default=0)
        self._told = torch.zeros(2 + self._block_table.shape[1] + most, dtype=torch.int64, device=self.device)
        self._hidden_states = torch.zeros((most, width), dtype=self.model.dtype, device=self.device)
        recorder = Recorder()
        for number, (tokens, rows) in enumerate(joined):
            self._joined_graphs[tokens, rows] = recorder.record(partial(self._joined_step, tokens - rows, rows))
            tell((number + 1) / len(joined + alone))
        for number, (size, most) in enumerate(alone, len(joined)):
            self._graphs[size, most] = recorder.record(partial(self._decode, size, most))
            tell((number + 1) / len(joined + alone))
        self._lengths.zero_()

    def _joined_step(self, size: int, rows: int) -> tuple[torch.Tensor, ...]:
        """What is recorded of a pass with a piece: all but drawing."""
        told = self._told[: 2 + self._block_table.shape[1] + size]
        self._hidden_states[: size + rows] = self._joined_hidden(told, size, rows, 0)
        return ()

    def on_layer(self, tell: Callable[[], None]) -> None:
        """Have `tell` called before each of the model's layers, until `give_back`: a long pass moves too."""

        def before(*_: object) -> None:
            tell()

        self._on_layer = tell
        self._hooks += [layer.register_forward_pre_hook(before) for layer in decoder_layers(self.model)]

    def give_back(self) -> None:
        """The model is as it was, and the memory of the cache free; the runner is of no use afterwards."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._on_layer = _nothing
        self.model.config._attn_implementation = "sdpa"
        self.forget_graphs()
        self._unpacked.clear()
        self.cache.keys.clear()
        self.cache.values.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def forget_graphs(self) -> bool:
        """Go on without graphs; whether there were any."""
        had_some = bool(self._graphs or self._joined_graphs)
        self._graphs.clear()
        self._joined_graphs.clear()
        return had_some


def _nothing() -> None:
    """Nobody listens."""


def _read(tokens: torch.Tensor, logprobs: torch.Tensor, is_sound: torch.Tensor) -> list[Drawn]:
    """The one wait for the GPU of a step."""
    packed = torch.stack([tokens.double(), logprobs.double(), is_sound.double()]).cpu()
    return [Drawn(int(token), logprob, bool(sound)) for token, logprob, sound in packed.T.tolist()]
