"""Whether the quick ways of the step compute what the plain ones do, on this GPU, with this model. Runs at the start.

Rounding differs with the shape of a batch, and much more in 4 bits: how far the plain decode is from reading the same
tokens at once is measured first, and a quick way may not be noticeably further. Random or quantized weights have near
ties, so a token counts as lost only where the two likeliest are further apart than rounding moved on the plain way.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from app.engine.base import Sampling
from app.engine.batched.runner import Runner
from app.engine.batched.sampler import MOST
from app.engine.batched.unpack import MANY
from app.engine.model.memory import MOST_RECORDED
from app.errors import first_line

# Tokens that are compared, behind more than a page of others, so that pages, blocks and splits all have a part in it
_TOKENS = 8
_OVER_A_PAGE = 40
_ROWS = (4, 1)
_MORE = 1.5
# So far from the truth is nothing by rounding: QwQ's 64 layers with random weights in 4 bits come to 0.12
_BROKEN = 0.5
_WAYS = {
    "has_kernels": "the attention kernel",
    "is_fused": "the fused step",
    "is_unpacking": "unpacking matrices by ourselves",
}
_LIKELIEST = Sampling(temperature=0.0)
# As good as the likeliest, but drawn from as many as are ever drawn from
_LIKELIEST_OF_MANY = Sampling(temperature=1e-3, top_k=MOST)
# A few of bf16's last bits, for models that are exact otherwise
_LEAST = 0.02
_LEAST_LOGPROB = 0.05
# How many tokens a pass lacks that is not filled
_LESS = 3


class CannotBatch(Exception):
    """Why this model cannot be written for several people at once."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same logits: their difference on the whole, over the logits' own spread; the largest one of a
    logit; and how many of the tokens were lost though they were clear."""

    difference: float
    largest: float = 0.0
    flipped: int = 0
    tokens: int = 0


def compared(plain: torch.Tensor, other: torch.Tensor, rounding: float = math.inf) -> Comparison:
    """Logits of shape (tokens, vocabulary) with others; `rounding` is how far a logit may move without any fault."""
    spread = float(plain.var(-1).mean())
    apart = plain - other
    found = math.sqrt(float(apart.square().mean()) / spread) if spread > 0 else math.inf
    best = plain.topk(2)
    is_clear = best.values[:, 0] - best.values[:, 1] > 2 * rounding
    flipped = int((is_clear & (other.argmax(-1) != best.indices[:, 0])).sum())
    return Comparison(found if math.isfinite(found) else math.inf, float(apart.abs().max()), flipped, len(plain))


@dataclass(frozen=True, slots=True)
class _Told:
    """What is read for a comparison: for each row its tokens and its pages; `before` of them come first."""

    prompts: list[list[int]]
    tables: list[list[int]]
    before: int


def _told(runner: Runner, rows: int) -> _Told:
    generator = torch.Generator().manual_seed(rows)
    before = min(max(runner.page_tokens, MANY) + _OVER_A_PAGE, runner.context_tokens - _TOKENS - 1)
    pages = -(-(before + _TOKENS + 1) // runner.page_tokens)
    rows = max(1, min(rows, runner.rows + 1, (runner.cache.keys[0].shape[0] - 1) // pages))
    prompts = torch.randint(0, runner.vocabulary, (rows, before + _TOKENS), generator=generator).tolist()
    tables = [list(range(1 + row * pages, 1 + (row + 1) * pages)) for row in range(rows)]
    return _Told(prompts, tables, before)


@torch.inference_mode()
def against_reading(runner: Runner, rows: int, rounding: float = math.inf) -> Comparison:
    """Compare a decode of several rows, taken as the runner takes it now, with reading the same tokens at once.

    Uses the cache's first pages and rows. Afterwards the cache holds nothing of use: begin with a fresh pool.
    """
    told = _told(runner, min(rows, runner.rows))
    each = list(zip(told.tables, told.prompts, strict=True))
    plain = torch.stack([runner.logits_of(table, prompt, _TOKENS) for table, prompt in each], 1)
    for row, (table, prompt) in enumerate(each):
        runner.extend(table, prompt[: told.before], 0, row=None)
        _stand(runner, row, table, prompt[told.before], told.before)
    written = []
    for at in range(told.before, told.before + _TOKENS):
        for row, prompt in enumerate(told.prompts):
            runner.set_next(row, prompt[at], at)
        written.append(runner.decode_logits(len(each)))
    return compared(plain.flatten(0, 1), torch.cat(written), rounding)


@torch.inference_mode()
def joined_against_reading(runner: Runner, rows: int, rounding: float = math.inf) -> Comparison:
    """Compare a pass of a prompt and several rows with reading the same tokens at once; the rest as above."""
    told = _told(runner, rows + 1)
    *others, (last_table, last_prompt) = zip(told.tables, told.prompts, strict=True)
    plain = [runner.logits_of(last_table, last_prompt, _TOKENS)]
    plain += [runner.logits_of(table, prompt, _TOKENS)[:1] for table, prompt in others]
    for row, (table, prompt) in enumerate(others):
        runner.extend(table, prompt[: told.before], 0, row=None)
        _stand(runner, row, table, prompt[told.before], told.before)
    joined = runner.both_logits(len(others), last_table, last_prompt, _TOKENS)
    return compared(torch.cat(plain), joined, rounding)


def _stand(runner: Runner, row: int, table: Sequence[int], token_id: int, length: int) -> None:
    runner.put(row, Sampling(temperature=0.0), 0)
    runner.place(row, table)
    runner.set_next(row, token_id, length)


@torch.inference_mode()
def against_model(runner: Runner) -> str:
    """What is wrong with reading through our pages, compared with the model's own forward; empty for nothing."""
    told = _told(runner, 1)
    ids = told.prompts[0]
    first = told.tables[0][0]
    for keys in runner.cache.keys:
        keys[first].zero_()
    plain = runner.own_logits(ids, _TOKENS)
    # The model's own forward is this far from itself when the same tokens come in a batch of another shape
    half = _TOKENS // 2
    rounding = compared(plain[:half], runner.own_logits(ids[:-half], half)).difference
    difference = compared(plain, runner.logits_of(told.tables[0], ids, _TOKENS)).difference
    # Read at once, a prompt comes out right even where nobody's attention is ours
    missing = sum(not bool(keys[first].any()) for keys in runner.cache.keys)
    if missing:
        return f"{missing} of its {len(runner.cache.keys)} layers do not keep their keys in our pages"
    most = max(_LEAST, _MORE * rounding)
    if difference <= most:
        return ""
    return f"reading in pages differs from the model's own way by {difference:.4f} ({most:.4f} is rounding)"


def set_rows(runner: Runner, rows: int, tokens: int = 0) -> None:
    """Rows that stand behind so many tokens, all of them in one page that is shared; for tests and warm-up only."""
    for row in range(rows):
        runner.put(row, Sampling(temperature=0.0), row)
        runner.place(row, [1] * (1 + tokens // runner.page_tokens))
        runner.set_next(row, 7 % runner.vocabulary, tokens)


@torch.inference_mode()
def steps_of(runner: Runner, sizes: Sequence[int], joined: Sequence[tuple[int, int]]) -> list[list[float]]:
    """The likeliest tokens' log-probabilities after each pass that is to be recorded, or is; NaN for no number.

    Each is filled, as rounding differs by shape. Near ties may fall either way, and have the same log-probability.
    """
    alone = [_after_decode(runner, rows, sampling) for rows in sizes for sampling in (_LIKELIEST, _LIKELIEST_OF_MANY)]
    return alone + [_after_both(runner, rows, tokens - rows) for tokens, rows in joined]


@torch.inference_mode()
def recorded_problem(
    runner: Runner, sizes: Sequence[int], joined: Sequence[tuple[int, int]], plain: Sequence[Sequence[float]]
) -> str:
    """What is wrong with the recorded passes, compared with `plain`, those that they were recorded from; or nothing."""
    recorded = steps_of(runner, sizes, joined)
    worst = _largest_difference(recorded, plain)
    for (tokens, rows), filled in zip(joined, recorded[2 * len(sizes) :], strict=True):
        # With a row and some tokens less it is the same recorded pass, and the rest must come out as before
        if runner.longest_piece(tokens, rows - 1) == tokens - rows:
            some = _after_both(runner, rows, tokens - rows, is_filled=False)
            worst = max(worst, _largest_difference([some], [[filled[0], *filled[_LESS + 1 : _LESS + rows]]]))
    return "" if worst <= _LEAST_LOGPROB else f"log-probabilities differ by {worst:.4f}"


def _largest_difference(ours: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> float:
    """Infinite where one of them is no number."""
    pairs = [pair for both in zip(ours, others, strict=True) for pair in zip(*both, strict=True)]
    apart = [abs(one - other) for one, other in pairs]
    return max(apart) if all(map(math.isfinite, apart)) else math.inf


def _fill_pages(runner: Runner) -> None:
    """Something that looks as if it had been read, in the pages that are used below."""
    generator = torch.Generator(runner.device).manual_seed(0)
    rows, piece = _pages(runner, runner.rows, min(MOST_RECORDED, runner.context_tokens - 1))
    for pages in (*runner.cache.keys, *runner.cache.values):
        pages[1 : max(*rows, *piece) + 1].normal_(generator=generator)


def _pages(runner: Runner, rows: int, piece: int) -> tuple[list[int], list[int]]:
    """A page for each row as far as there are some, and pages for a piece behind more than a page of others."""
    last = runner.cache.keys[0].shape[0] - 1
    needed = min(-(-(_before(runner, piece) + piece) // runner.page_tokens), last - 1)
    of_rows = min(rows, last - needed)
    return [1 + row % of_rows for row in range(rows)], list(range(1 + of_rows, 1 + of_rows + needed))


def _before(runner: Runner, piece: int) -> int:
    """Tokens before a piece: more than a page of them, if there is room."""
    room = min(runner.context_tokens, (runner.cache.keys[0].shape[0] - 2) * runner.page_tokens)
    return max(0, min(runner.page_tokens + _OVER_A_PAGE, room - piece))


def _stand_apart(runner: Runner, pages: Sequence[int], sampling: Sampling) -> None:
    """Rows in the middle of texts; where they share a page, each writes to another place of it."""
    _fill_pages(runner)
    for row, page in enumerate(pages):
        runner.put(row, sampling, row)
        runner.place(row, [page])
        runner.set_next(row, (7 * row + 1) % runner.vocabulary, 1 + row % (runner.page_tokens - 1))


def _after_decode(runner: Runner, rows: int, sampling: Sampling) -> list[float]:
    _stand_apart(runner, _pages(runner, rows, 1)[0], sampling)
    return [one.logprob if one.is_sound else math.nan for one in runner.decode(rows)]


def _after_both(runner: Runner, rows: int, piece: int, *, is_filled: bool = True) -> list[float]:
    """Of the last tokens of a piece, and of the rows; if it is not filled, without those tokens and the last row."""
    of_rows, of_piece = _pages(runner, rows, piece)
    _stand_apart(runner, of_rows, _LIKELIEST)
    ids = [(5 * place + 3) % runner.vocabulary for place in range(piece if is_filled else piece - _LESS)]
    asked, last = (rows, 1 + _LESS) if is_filled else (rows - 1, 1)
    logits = runner.both_logits(asked, of_piece, ids, last, _before(runner, piece))
    found: list[float] = logits.log_softmax(-1).amax(-1).tolist()
    return found


def choose(runner: Runner) -> list[str]:
    """Take back the quick ways that compute something else, one after the other; a sentence for each that went.

    Raises:
        CannotBatch: the plain way itself does not write what it reads.
    """
    # The simplest first: what is found wrong is then its own fault
    ways = [way for way in _WAYS if getattr(runner, way)]
    for way in ways:
        setattr(runner, way, False)
    plain = {rows: against_reading(runner, rows) for rows in _ROWS}
    for rows, found in plain.items():
        if found.difference > _BROKEN:
            raise CannotBatch(f"writing {rows} rows differs from reading the same by {found.difference:.4f}")
    taken_back: list[str] = []
    joined = {_ROWS[0]: plain[_ROWS[0]]}
    problem = _problem(runner, joined, joined_against_reading)
    if problem:
        runner.is_joined = False
        taken_back.append(f"reading and writing in one pass is off: {problem}")
    for way in ways:
        # Matrices are unpacked in the fused step alone
        if way == "is_unpacking" and not runner.is_fused:
            continue
        setattr(runner, way, True)
        problem = _problem(runner, plain, against_reading)
        if not problem and runner.is_joined:
            problem = _problem(runner, joined, joined_against_reading)
        if problem:
            setattr(runner, way, False)
            taken_back.append(f"{_WAYS[way]} is off: {problem}")
    return taken_back


def _problem(runner: Runner, plain: Mapping[int, Comparison], compare: Callable[..., Comparison]) -> str:
    for rows, rounding in plain.items():
        try:
            found = compare(runner, rows, rounding.largest)
        except Exception as error:
            if runner.is_lost():
                raise
            return said_by(error)
        most = max(_LEAST, _MORE * rounding.difference)
        if found.difference > most or found.flipped:
            return (
                f"with {rows} rows it differs by {found.difference:.4f} ({most:.4f} is rounding), "
                f"{found.flipped} of {found.tokens} tokens lost"
            )
    return ""


def said_by(error: Exception) -> str:
    """What kind of error it is, and what it says, in a line."""
    return f"{type(error).__name__}: {first_line(error)}"
