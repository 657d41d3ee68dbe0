"""The next token of every row at once, without waiting for the GPU.

What a row gets depends on its own logits, sampling, seed and position alone: the noise is a hash of seed, position and
token, so the same seed gives the same text whoever else is in the batch. Candidates are cut to the `most` likeliest
before anything else, as sorting a vocabulary of 152,064 costs more than the whole rest.
"""

from dataclasses import dataclass

import torch

from app.engine.base import Sampling

# Rows with a larger top_k are cut here; beyond it nothing of any weight is left
MOST = 1024
FEW = 64
_GREEDY = 1e-4


@dataclass(slots=True)
class SamplingRows:
    """The sampling of all rows, on the device. Each of shape (rows,), written in place so that graphs see it."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    seed: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, rows: int) -> "SamplingRows":
        """Rows that are greedy."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((rows,), value, dtype=dtype, device=device)

        return cls(
            full(0.0, torch.float32),
            full(1, torch.int32),
            full(1.0, torch.float32),
            full(0.0, torch.float32),
            full(0, torch.int64),
        )

    def put(self, rows: list[int], samplings: list[Sampling], seeds: list[int]) -> None:
        """Set some rows."""
        device = self.seed.device
        at = torch.tensor(rows, device=device)
        for name, values, dtype in (
            ("temperature", [sampling.temperature for sampling in samplings], torch.float32),
            ("top_k", [min(sampling.top_k, MOST) for sampling in samplings], torch.int32),
            ("top_p", [sampling.top_p for sampling in samplings], torch.float32),
            ("min_p", [sampling.min_p for sampling in samplings], torch.float32),
            ("seed", seeds, torch.int64),
        ):
            getattr(self, name)[at] = torch.tensor(values, dtype=dtype, device=device)

    def first(self, rows: int) -> "SamplingRows":
        """The first rows, as views."""
        return SamplingRows(
            self.temperature[:rows], self.top_k[:rows], self.top_p[:rows], self.min_p[:rows], self.seed[:rows]
        )


def sample(
    logits: torch.Tensor, rows: SamplingRows, positions: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The token of each row, its log-probability under the unchanged logits, and whether the row's logits are numbers.

    `logits` has shape (rows, vocabulary), `positions` (rows,) counts the tokens before. `most` is FEW or MOST and no
    less than any row's top_k. No value is read back: the call can be captured in a CUDA graph.
    """
    logits = logits.float()
    is_sound = torch.isfinite(logits.amax(-1))
    values, ids = logits.topk(min(most, logits.shape[-1]), dim=-1)
    log_total = logits.logsumexp(-1)
    is_greedy = rows.temperature < _GREEDY
    scaled = values / torch.where(is_greedy, 1.0, rows.temperature)[:, None]
    rank = torch.arange(values.shape[-1], device=values.device)
    scaled = scaled.masked_fill(rank[None] >= rows.top_k[:, None], float("-inf"))
    probabilities = scaled.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    is_out = (before >= rows.top_p[:, None]) | (probabilities < rows.min_p[:, None] * probabilities[:, :1])
    is_out[:, 0] = False
    noisy = scaled.masked_fill(is_out, float("-inf")) + _gumbel(rows.seed, positions, ids)
    chosen = torch.where(is_greedy, 0, noisy.argmax(-1))[:, None]
    tokens = ids.gather(-1, chosen)[:, 0]
    return tokens, values.gather(-1, chosen)[:, 0] - log_total, is_sound


def _gumbel(seed: torch.Tensor, positions: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Noise of shape (rows, candidates) that depends on seed, position and token id only."""
    key = _mixed(seed + positions.to(torch.int64) * 0x9E3779B97F4A7C1)
    bits = _mixed(key[:, None] ^ (ids.to(torch.int64) * 0x5851F42D4C957F2))
    # 24 bits fill a float's mantissa; a half more keeps the logarithm from zero
    uniform = ((bits >> 16 & 0xFFFFFF).to(torch.float32) + 0.5) / (1 << 24)
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
