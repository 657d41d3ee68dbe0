"""Whether the quick ways of the step compute what the plain ones do, on this GPU, with this model. Runs at the start.

Rounding differs with the shape of a batch, and much more in 4 bits: how far the plain decode is from reading the same
tokens at once is measured first, and a quick way may not be noticeably further. Random or quantized weights have near
ties, so tokens are compared only where the gap between the two likeliest is larger than the difference that was seen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.engine.base import Sampling
from app.engine.batched.runner import Runner

_TOKENS = 48
_ROWS = 4
_MORE = 1.5
# A few of bf16's last bits, for models that are exact otherwise
_LEAST = 0.02


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
