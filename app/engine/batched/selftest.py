"""Whether the quick ways of the step compute what the plain ones do, on this GPU, with this model. Runs at the start.

Rounding differs with the shape of a batch, and random or quantized weights have near ties: tokens are compared only
where the gap between the two likeliest is larger than the difference that was seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from app.engine.base import Sampling
from app.engine.batched.runner import Runner

_TOKENS = 48
_ROWS = 4
# bf16 has eight bits of mantissa; sums over 64 layers differ by a few steps of the last of them
_TOLERANCE = 0.08


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two ways to compute the same logits: the largest difference, over their own spread, and clear tokens lost."""

    name: str
    difference: float
    flipped: int
    tokens: int

    @property
    def is_sound(self) -> bool:
        """Whether the ways agree to bf16's rounding."""
        return self.difference < _TOLERANCE and self.flipped == 0


@torch.inference_mode()
def self_test(runner: Runner, ids: Sequence[int] | None = None) -> list[Comparison]:
    """Compare a decode of several rows with reading the same tokens at once. Uses the cache's first pages and rows.

    Afterwards the cache holds nothing of use: begin with a fresh pool.
    """
    length = _TOKENS
    generator = torch.Generator().manual_seed(0)
    told = list(ids or torch.randint(0, runner.vocabulary, (length * _ROWS,), generator=generator).tolist())
    pages = -(-(length + 1) // runner.page_tokens)
    expected = []
    prompts = [told[number * length : (number + 1) * length] for number in range(_ROWS)]
    for number, prompt in enumerate(prompts):
        table = list(range(1 + number * pages, 1 + (number + 1) * pages))
        expected.append(runner.logits_of(table, prompt))
    found: list[list[torch.Tensor]] = [[] for _ in prompts]
    half = length // 2
    for number, prompt in enumerate(prompts):
        table = list(range(1 + number * pages, 1 + (number + 1) * pages))
        runner.put(number, Sampling(temperature=0.0), 0)
        runner.extend(table, prompt[:half], 0, row=number)
        runner.place(number, table)
        runner.set_next(number, prompt[half], half)
    for at in range(half, length):
        logits = runner.decode_logits(_ROWS)
        for number, prompt in enumerate(prompts):
            found[number].append(logits[number])
            runner.set_next(number, prompt[min(at + 1, length - 1)], at + 1)
    return [_compared("decode against reading", expected, found, half)]


def _compared(name: str, expected: list[torch.Tensor], found: list[list[torch.Tensor]], first: int) -> Comparison:
    difference, flipped, count = 0.0, 0, 0
    for whole, rows in zip(expected, found, strict=True):
        for plain, quick in zip(whole[first:], rows, strict=True):
            apart = (plain - quick).abs().max()
            difference = max(difference, float(apart / plain.std()))
            best = plain.topk(2)
            if best.values[0] - best.values[1] > 2 * apart and int(quick.argmax()) != int(best.indices[0]):
                flipped += 1
            count += 1
    return Comparison(name, difference, flipped, count)


def choose(runner: Runner, test: Callable[[Runner], list[Comparison]] = self_test) -> list[str]:
    """Take back the quick ways that compute something else, one after the other; a sentence for each that went."""
    taken_back: list[str] = []
    for way, name in (("the fused step", "is_fused"), ("the attention kernel", "has_kernels")):
        problem = _problem(runner, test) if getattr(runner, name) else ""
        if problem:
            setattr(runner, name, False)
            taken_back.append(f"{way} is off: {problem}")
    return taken_back


def _problem(runner: Runner, test: Callable[[Runner], list[Comparison]]) -> str:
    try:
        bad = [one for one in test(runner) if not one.is_sound]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no word'}"
    return "; ".join(f"{one.name} differs by {one.difference:.3f}, {one.flipped} of {one.tokens} tokens" for one in bad)
