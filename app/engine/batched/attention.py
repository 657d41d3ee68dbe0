"""Attention over paged keys and values, registered with transformers, so that the model's own modules call it.

Two ways: `extend` reads one piece of one prompt, `decode` one token of each row. The new keys and values are
written into their pages first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

NAME = "ponder_paged"


@dataclass(slots=True)
class PagedCache:
    """Keys and values of every layer: each of shape (pages, page_tokens, key/value heads, head width)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    page_tokens: int


@dataclass(slots=True)
class Step:
    """What one forward pass needs to know of where its tokens stand.

    slots: (tokens,) int64, where each token's keys and values go: page * page_tokens + place in the page.
    block_table: (rows, pages) int32, the pages of each row; 0 where there is none.
    lengths: (rows,) int32, tokens of each row with the new ones.
    context: tokens of the one row of an `extend`, a plain number; None in a `decode`.
    """

    cache: PagedCache
    slots: torch.Tensor
    block_table: torch.Tensor
    lengths: torch.Tensor
    context: int | None
    has_kernels: bool = False


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _mask: torch.Tensor | None,
    *,
    scaling: float,
    step: Step,
    **_others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query (batch, heads, tokens, width), key and value (batch, kv heads, ...)."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    keys, values = step.cache.keys[layer], step.cache.values[layer]
    heads = key.shape[1]
    for pages, new in ((keys, key), (values, value)):
        flat = pages.view(-1, heads, pages.shape[-1])
        flat.index_copy_(0, step.slots, new.transpose(1, 2).reshape(-1, heads, new.shape[-1]))
    if step.context is not None:
        return extend(query, keys, values, step, scaling), None
    if step.has_kernels:
        from app.engine.batched.kernels import paged_decode

        out = paged_decode(query[:, :, 0], keys, values, step.block_table, step.lengths, scaling)
        return out[:, None], None
    return decode(query, keys, values, step, scaling), None


def extend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scaling: float) -> torch.Tensor:
    """A piece of one prompt over all of its tokens so far; (1, tokens, heads, width)."""
    assert step.context is not None
    pages = -(-step.context // step.cache.page_tokens)
    row = step.block_table[0, :pages]
    read, seen = (pages_of[row].flatten(0, 1)[: step.context].transpose(0, 1)[None] for pages_of in (keys, values))
    groups = query.shape[1] // read.shape[1]
    if groups > 1:
        read, seen = read.repeat_interleave(groups, 1), seen.repeat_interleave(groups, 1)
    mask = causal_lower_right(query.shape[2], step.context)
    out = scaled_dot_product_attention(query, read, seen, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2)


def decode(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scaling: float) -> torch.Tensor:
    """One token of each row over gathered pages; (rows, 1, heads, width). Reads the whole table: the last resort."""
    rows = step.block_table.long()
    read, seen = (pages_of[rows].flatten(1, 2).transpose(1, 2) for pages_of in (keys, values))
    places = torch.arange(read.shape[2], device=query.device)
    mask = (places[None] < step.lengths[:, None])[:, None, None]
    # What is left over in a page may be no number, and nought times that is none either
    read, seen = (taken.masked_fill(~mask.transpose(2, 3), 0.0) for taken in (read, seen))
    out = scaled_dot_product_attention(query, read, seen, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)


def register() -> None:
    """Have transformers know it."""
    AttentionInterface.register(NAME, attend)
