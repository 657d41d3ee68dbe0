"""Whether the quick ways of the step compute what the plain ones do, on this GPU, with this model. Runs at the start.

Rounding differs with the shape of a batch, and much more in 4 bits: how far the plain decode is from reading the same
tokens at once is measured first, and a quick way may not be noticeably further. Random or quantized weights have near
ties, so tokens are compared only where the gap between the two likeliest is larger than the difference that was seen.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.engine.base import Sampling
from app.engine.batched.runner import Runner

_TOKENS = 32
_ROWS = 4
_MORE = 1.5
# A few of bf16's last bits, for models that are exact otherwise
_LEAST = 0.02
_LEAST_LOGPROB = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to the same logits: how far apart on the whole, over the logits' own spread, and clear tokens lost."""

    difference: float
    flipped: int
    tokens: int


@torch.inference_mode()
def against_reading(runner: Runner, ids: Sequence[int] | None = None) -> Comparison:
    """Compare a decode of several rows, taken as the runner takes it now, with reading the same tokens at once.

    Uses the cache's first pages and rows. Afterwards the cache holds nothing of use: begin with a fresh pool.
    """
    generator = torch.Generator().manual_seed(0)
    count = _TOKENS * _ROWS
    told = list(ids or torch.randint(0, runner.vocabulary, (count,), generator=generator).tolist())
    pages = -(-(_TOKENS + 1) // runner.page_tokens)
    prompts = [told[row * _TOKENS : (row + 1) * _TOKENS] for row in range(_ROWS)]
    tables = [list(range(1 + row * pages, 1 + (row + 1) * pages)) for row in range(_ROWS)]
    read = [runner.logits_of(table, prompt) for table, prompt in zip(tables, prompts, strict=True)]
    half = _TOKENS // 2
    for row, (table, prompt) in enumerate(zip(tables, prompts, strict=True)):
        runner.put(row, Sampling(temperature=0.0), 0)
        runner.extend(table, prompt[:half], 0, row=row)
        runner.place(row, table)
        runner.set_next(row, prompt[half], half)
    squares, spread, flipped = 0.0, 0.0, 0
    for at in range(half, _TOKENS):
        written = runner.decode_logits(_ROWS)
        for row, prompt in enumerate(prompts):
            plain, quick = read[row][at], written[row]
            squares += float((plain - quick).square().mean())
            spread += float(plain.var())
            best = plain.topk(2)
            is_clear = best.values[0] - best.values[1] > 2 * (plain - quick).abs().max()
            flipped += int(is_clear) * int(quick.argmax() != best.indices[0])
            runner.set_next(row, prompt[min(at + 1, _TOKENS - 1)], at + 1)
    return Comparison(math.sqrt(squares / spread) if spread else math.inf, flipped, half * _ROWS)


@torch.inference_mode()
def joined_against_reading(runner: Runner) -> Comparison:
    """Compare a pass of a piece and several rows with reading the same tokens at once; the rest as above."""
    generator = torch.Generator().manual_seed(1)
    pages = -(-(_TOKENS + 1) // runner.page_tokens)
    told = torch.randint(0, runner.vocabulary, (_ROWS + 1, _TOKENS), generator=generator).tolist()
    tables = [list(range(1 + row * pages, 1 + (row + 1) * pages)) for row in range(_ROWS + 1)]
    read = [runner.logits_of(table, prompt) for table, prompt in zip(tables, told, strict=True)]
    half = _TOKENS // 2
    for row, (table, prompt) in enumerate(zip(tables, told, strict=True)):
        runner.extend(table, prompt[:half], 0, row=None)
        if row < _ROWS:
            runner.put(row, Sampling(temperature=0.0), 0)
            runner.place(row, table)
            runner.set_next(row, prompt[half], half)
    quick = runner.both_logits(_ROWS, tables[-1], told[-1][half:], half)
    plain = torch.cat([read[-1][half:], torch.stack([one[half] for one in read[:-1]])])
    best = plain.topk(2)
    is_clear = best.values[:, 0] - best.values[:, 1] > 2 * (plain - quick).abs().amax(-1)
    flipped = int((is_clear & (quick.argmax(-1) != best.indices[:, 0])).sum())
    spread = float(plain.var(-1).mean())
    difference = math.sqrt(float((plain - quick).square().mean()) / spread) if spread else math.inf
    return Comparison(difference, flipped, len(plain))


@torch.inference_mode()
def against_model(runner: Runner) -> str:
    """What is wrong with reading through our pages, compared with the model's own forward; empty for nothing."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, runner.vocabulary, (_TOKENS,), generator=generator).tolist()
    pages = list(range(1, 1 + -(-_TOKENS // runner.page_tokens)))
    plain, ours = runner.own_logits(ids), runner.logits_of(pages, ids)
    difference = _difference(plain, ours)
    most = max(_LEAST, _MORE * _rounding(runner, ids, plain))
    if difference <= most:
        return ""
    return f"reading in pages differs from the model's own way by {difference:.4f} ({most:.4f} is rounding)"


def _rounding(runner: Runner, ids: Sequence[int], plain: torch.Tensor) -> float:
    """How far the model's own forward is from itself when the same tokens come in a batch of another shape."""
    half = runner.own_logits(ids[: _TOKENS // 2])
    return _difference(plain[: _TOKENS // 2], half)


def _difference(plain: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square, over the logits' own spread; infinite where there are no numbers."""
    spread = float(plain.var(-1).mean())
    found = math.sqrt(float((plain - other).square().mean()) / spread) if spread > 0 else math.inf
    return found if math.isfinite(found) else math.inf


def set_rows(runner: Runner, rows: int, tokens: int = 0) -> None:
    """Rows that stand behind so many tokens, all of them in one page that is shared; for tests and warm-up only."""
    for row in range(rows):
        runner.put(row, Sampling(temperature=0.0), row)
        runner.place(row, [1] * (1 + tokens // runner.page_tokens))
        runner.set_next(row, 7 % runner.vocabulary, tokens)


@torch.inference_mode()
def graphs_against_eager(runner: Runner, sizes: Sequence[int]) -> str:
    """What is wrong with the recorded steps, compared with those they were recorded from; empty for nothing.

    The likeliest token's log-probability is compared: near ties may fall either way, and have the same one.
    """
    worst = 0.0
    for size in sizes:
        found = []
        for way in (contextlib.nullcontext, runner.eager):
            _set_apart(runner, size)
            with way():
                found.append(runner.decode(size))
        for graphed, eager in zip(*found, strict=True):
            if not graphed.is_sound or not eager.is_sound:
                return f"at {size} rows a step gives numbers that are none"
            worst = max(worst, abs(graphed.logprob - eager.logprob))
    return "" if worst <= _LEAST_LOGPROB else f"log-probabilities differ by {worst:.4f}"


def _set_apart(runner: Runner, rows: int) -> None:
    """Rows with a token each and a page each, as far as there are pages."""
    last = runner.cache.keys[0].shape[0] - 1
    for row in range(rows):
        runner.put(row, Sampling(temperature=0.0), row)
        runner.place(row, [1 + row % last])
        runner.set_next(row, (7 * row + 1) % runner.vocabulary, 0)


def choose(runner: Runner, compare: Callable[[Runner], Comparison] = against_reading) -> list[str]:
    """Take back the quick ways that compute something else, one after the other; a sentence for each that went."""
    wanted = {name: getattr(runner, name) for name in ("is_fused", "has_kernels")}
    runner.is_fused = runner.has_kernels = False
    most = max(_LEAST, _MORE * compare(runner).difference)
    for name, value in wanted.items():
        setattr(runner, name, value)
    taken_back: list[str] = []
    for way, name in (("the fused step", "is_fused"), ("the attention kernel", "has_kernels")):
        problem = _problem(runner, most, compare) if getattr(runner, name) else ""
        if problem:
            setattr(runner, name, False)
            taken_back.append(f"{way} is off: {problem}")
    problem = _problem(runner, most, joined_against_reading)
    if problem:
        runner.is_joined = False
        taken_back.append(f"reading and writing in one pass is off: {problem}")
    return taken_back


def _problem(runner: Runner, most: float, compare: Callable[[Runner], Comparison]) -> str:
    try:
        found = compare(runner)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error) or 'no word').splitlines()[0]}"
    if math.isfinite(found.difference) and found.difference <= most and not found.flipped:
        return ""
    return f"differs by {found.difference:.4f} ({most:.4f} is rounding), {found.flipped} of {found.tokens} tokens lost"
