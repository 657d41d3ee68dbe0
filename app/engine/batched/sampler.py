"""The next token of every row at once, without waiting for the GPU.

What a row gets depends on its own logits, sampling, seed and position alone: the noise is a hash of seed, position and
token, so the same seed gives the same text whoever else is in the batch. Candidates are cut to the `most` likeliest
early, as sorting a vocabulary of 152,064 costs more than the whole rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from app.engine.base import LEAST_TEMPERATURE, Sampling

# Rows with a larger top_k are cut here; beyond it nothing of any weight is left
MOST = 1024
FEW = 64


@dataclass(slots=True)
class SamplingRows:
    """The sampling of all rows, on the device, written in place so that graphs see it.

    Each of shape (rows,), but for `seen`, (rows, vocabulary) bool: the tokens of a row's prompt and of what it wrote,
    kept for rows with a repetition penalty. `masks`, (K, vocabulary) bool, are the vocabularies that a row may be kept
    to, chosen by its `mask`; None where there is but the whole one.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor
    penalty: torch.Tensor
    mask: torch.Tensor
    seen: torch.Tensor
    masks: torch.Tensor | None = None

    @classmethod
    def on(cls, device: torch.device, rows: int, vocabulary: int, masks: torch.Tensor | None = None) -> "SamplingRows":
        """Rows that are greedy."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        return cls(
            full(0.0, torch.float32),
            full(1, torch.int32),
            full(1.0, torch.float32),
            full(0.0, torch.float32),
            full(0, torch.int64),
            full(1.0, torch.float32),
            full(0, torch.int64),
            torch.zeros((rows, vocabulary), dtype=torch.bool, device=device),
            masks,
        )

    def put(self, row: int, sampling: Sampling, seed: int, seen: Sequence[int] = (), mask: int = 0) -> None:
        """Set one row; `seen` are the tokens that its repetition penalty counts so far.

        Raises:
            ValueError: there is no such mask; on a GPU it would be found out only when all is lost.
        """
        if not 0 <= mask < (1 if self.masks is None else len(self.masks)):
            raise ValueError(f"there is no vocabulary mask {mask}")
        self.temperature[row] = sampling.temperature
        self.top_k[row] = min(sampling.top_k, MOST)
        self.top_p[row] = sampling.top_p
        self.min_p[row] = sampling.min_p
        self.seed[row] = seed
        self.penalty[row] = sampling.repetition_penalty
        self.mask[row] = mask
        if has_penalty(sampling):
            self.seen[row] = False
            self.seen[row, torch.tensor(seen, dtype=torch.int64, device=self.seen.device)] = True

    def move(self, source: int, target: int) -> None:
        """What is in one row goes on in another."""
        for tensor in self._of_rows():
            tensor[target] = tensor[source]

    def at(self, rows: slice) -> "SamplingRows":
        """Some rows, as views."""
        return SamplingRows(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.seed[rows],
            self.penalty[rows],
            self.mask[rows],
            self.seen[rows],
            self.masks,
        )

    def _of_rows(self) -> tuple[torch.Tensor, ...]:
        plain = (self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.penalty, self.mask)
        return (*plain, self.seen)


def has_penalty(sampling: Sampling) -> bool:
    """Whether what was written already counts for what is drawn next."""
    return sampling.repetition_penalty != 1.0


def sample(
    logits: torch.Tensor, rows: SamplingRows, positions: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The token of each row, its log-probability under the unchanged logits, and whether the row's logits are numbers.

    `logits` has shape (rows, vocabulary), `positions` (rows,) counts the tokens before. `most` is FEW or MOST and no
    less than any row's top_k. The tokens are marked as seen. No value is read back: the call can be captured in a CUDA
    graph. Source of the penalty: transformers' RepetitionPenaltyLogitsProcessor.
    """
    logits = logits.float()
    is_sound = torch.isfinite(logits.amax(-1))
    log_total = logits.logsumexp(-1)
    penalty = rows.penalty[:, None]
    wanted = torch.where(rows.seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if rows.masks is not None:
        wanted = wanted.masked_fill(~rows.masks[rows.mask], float("-inf"))
    values, ids = wanted.topk(min(most, logits.shape[-1]), dim=-1)
    is_greedy = rows.temperature < LEAST_TEMPERATURE
    scaled = values / torch.where(is_greedy, 1.0, rows.temperature)[:, None]
    rank = torch.arange(values.shape[-1], device=values.device)
    scaled = scaled.masked_fill(rank[None] >= rows.top_k[:, None], float("-inf"))
    probabilities = scaled.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    is_out = (before >= rows.top_p[:, None]) | (probabilities < rows.min_p[:, None] * probabilities[:, :1])
    is_out[:, 0] = False
    noisy = scaled.masked_fill(is_out, float("-inf")) + _gumbel(rows.seed, positions, ids)
    chosen = torch.where(is_greedy, 0, noisy.argmax(-1))[:, None]
    tokens = ids.gather(-1, chosen)
    rows.seen.scatter_(-1, tokens, rows.seen.gather(-1, tokens) | (penalty != 1.0))
    return tokens[:, 0], logits.gather(-1, tokens)[:, 0] - log_total, is_sound


def _gumbel(seed: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Noise of shape (rows, candidates) that depends on seed, position and token id only."""
    key = _mixed(seed + positions.to(torch.int64) * 0x9E3779B97F4A7C1)
    bits = _mixed(key[:, None] ^ (ids.to(torch.int64) * 0x5851F42D4C957F2))
    # With a half more no number is 0, and with 23 bits the last one is not rounded to 1: both have no logarithm of use
    uniform = ((bits >> 16 & 0x7FFFFF).to(torch.float32) + 0.5) / (1 << 23)
    return -torch.log(-torch.log(uniform))


def _mixed(value: torch.Tensor) -> torch.Tensor:
    """Every bit of the result depends on every bit of the value. Source: MurmurHash3's 64-bit finalizer."""
    value = value ^ _shifted(value, 33)
    value = value * -0xAE502812AA7333
    value = value ^ _shifted(value, 33)
    value = value * -0x3B314601E57A13AD
    return value ^ _shifted(value, 33)


def _shifted(value: torch.Tensor, bits: int) -> torch.Tensor:
    """A logical shift to the right; int64's own would drag its sign along."""
    return value >> bits & ((1 << (64 - bits)) - 1)
