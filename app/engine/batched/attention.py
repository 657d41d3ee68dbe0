"""Attention over paged keys and values, registered with transformers, so that the model's own modules call it.

A pass has a piece of one prompt, one token of each of some rows, or both: the linear layers take all tokens together,
attention takes the two apart (`extend`, `decode`). The new keys and values are written into their pages first.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import AttentionInterface

from app.engine.model.memory import MOST_RECORDED

NAME = "ponder_paged"
# Longer pieces are quicker with torch's own attention, and copying what they look at is a small part then
MOST_IN_PLACE = MOST_RECORDED


@dataclass(slots=True)
class PagedCache:
    """Keys and values of every layer: each of shape (pages, page_tokens, key/value heads, head width)."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    page_tokens: int


@dataclass(slots=True)
class Step:
    """What one forward pass needs to know of where its tokens stand: first the piece's, then one of each row.

    slots: (tokens,) int64, where each token's keys and values go: page * page_tokens + place in the page.
    block_table: (rows, pages) int32, the pages of each row; 0 where there is none.
    lengths: (rows,) int32, tokens of each row with the new one.
    piece: how many of the tokens are the piece's; piece_pages: (pages,) int64, its sequence's; bounds: (2,) int64, that
    sequence's tokens before the piece and with it; context: the latter as a plain number, 0 where only the GPU knows
    it. gathered: tokens whose keys and values may be copied together at a time.
    """

    cache: PagedCache
    slots: torch.Tensor
    block_table: torch.Tensor
    lengths: torch.Tensor
    has_kernels: bool = False
    piece: int = 0
    piece_pages: torch.Tensor | None = None
    bounds: torch.Tensor | None = None
    context: int = 0
    gathered: int = 0


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
    asked = query.transpose(1, 2)
    return seen(asked.flatten(0, 1), keys, values, step, scaling).view(asked.shape), None


def seen(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scaling: float) -> torch.Tensor:
    """Attention of all tokens of a pass over what is in the pages; query and result (tokens, heads, width)."""
    parts = []
    if step.piece:
        piece = query[: step.piece]
        if step.has_kernels and step.piece <= MOST_IN_PLACE:
            from app.engine.batched.kernels import paged_extend

            assert step.piece_pages is not None
            assert step.bounds is not None
            parts.append(paged_extend(piece, keys, values, step.piece_pages, step.bounds, scaling))
        else:
            parts.append(extend(piece, keys, values, step, scaling))
    if step.piece < len(query):
        rows = query[step.piece :]
        if step.has_kernels:
            from app.engine.batched.kernels import paged_decode

            parts.append(paged_decode(rows, keys, values, step.block_table, step.lengths, scaling))
        else:
            parts.append(decode(rows, keys, values, step, scaling))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def extend(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scaling: float) -> torch.Tensor:
    """A piece of one prompt over all of its tokens so far; (tokens, heads, width).

    Raises:
        RuntimeError: only the GPU knows how many that are; `paged_extend` is for that.
    """
    assert step.piece_pages is not None
    if not step.context:
        raise RuntimeError("a pass is recorded whose attention would have to be told where its piece ends")
    pages = step.piece_pages[: -(-step.context // step.cache.page_tokens)]
    read, value = (pages_of[pages].flatten(0, 1)[: step.context].transpose(0, 1)[None] for pages_of in (keys, values))
    asked = query.transpose(0, 1)[None]
    mask = causal_lower_right(len(query), step.context)
    out = scaled_dot_product_attention(asked, read, value, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out[0].transpose(0, 1)


def decode(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, step: Step, scaling: float) -> torch.Tensor:
    """One token of each row over gathered pages, a few rows at a time; (rows, heads, width). The last resort."""
    in_table = step.block_table.shape[1] * step.cache.page_tokens
    at_once = max(1, step.gathered // in_table)
    parts = [
        _gathered(query[rows], keys, values, step.block_table[rows], step.lengths[rows], scaling)
        for rows in (slice(first, first + at_once) for first in range(0, len(query), at_once))
    ]
    return torch.cat(parts)


def _gathered(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    pages = block_table.long()
    read, value = (pages_of[pages].flatten(1, 2).transpose(1, 2) for pages_of in (keys, values))
    places = torch.arange(read.shape[2], device=query.device)
    is_there = (places[None] < lengths[:, None])[:, None, :, None]
    # What is left over in a page may be no number, and nought times that is none either
    for taken in (read, value):
        taken.masked_fill_(~is_there, 0.0)
    # The heads of a group are as many queries to one key: no way of torch's with a mask knows groups and copies nothing
    asked = query.view(len(query), read.shape[1], -1, query.shape[-1])
    mask = is_there.transpose(2, 3).expand(-1, -1, asked.shape[2], -1)
    return scaled_dot_product_attention(asked, read, value, attn_mask=mask, scale=scaling).flatten(1, 2)


def register() -> None:
    """Have transformers know it."""
    AttentionInterface.register(NAME, attend)
