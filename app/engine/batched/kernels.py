"""Triton kernels of a pass: what lies between the linear layers, and attention that reads pages in place.

Imports triton, so only where there is a GPU. Every kernel has static shapes and waits for nothing, so that the pass can
be recorded in a CUDA graph. `attention.extend`, `attention.decode` and the model's own modules are what they are
checked against.
"""

import functools

import torch
import triton
import triton.language as tl

from app.engine.model.memory import ALIKE_ROWS

_LOG2_E = 1.4426950408889634
_BLOCK = 64
_MOST_SPLITS = 32
_PROGRAMS = 528
# Tokens of a piece that a program looks after
_QUERIES = 64
# Shared memory of a multiprocessor that so many blocks of keys and values in flight need
_STAGES = ((160 << 10, 3), (96 << 10, 2))


@functools.cache
def _stages(device: torch.device) -> int:
    """How many blocks of keys and values are fetched ahead: what the GPU has room for."""
    # Not in torch's stubs
    room = getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", 0)
    return next((stages for least, stages in _STAGES if room >= least), 1)


@functools.cache
def _is_early(device: torch.device) -> bool:
    """Whether a kernel may begin while the one before it ends (programmatic dependent launch)."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def _with_block(score, value, peak, total, gathered):  # type: ignore[no-untyped-def]
    """The softmax so far, and what was gathered by it, with the scores and values of another block of tokens."""
    new_peak = tl.maximum(peak, tl.max(score, 1))
    weight = tl.exp2(score - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    gathered = tl.dot(weight.to(value.dtype), value, gathered * shrink[:, None])
    return new_peak, total * shrink + tl.sum(weight, 1), gathered


@triton.jit
def _partial_attention(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    table,
    lengths,
    peaks,
    sums,
    partials,
    scale,
    stride_query_row,
    stride_query_head,
    stride_page,
    stride_slot,
    stride_head,
    stride_table,
    heads: tl.constexpr,
    groups: tl.constexpr,
    groups_padded: tl.constexpr,
    width: tl.constexpr,
    page_tokens: tl.constexpr,
    block: tl.constexpr,
    splits: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, splits), block) * block
    start = split * share
    end = tl.minimum(start + share, length)
    group, place = tl.arange(0, groups_padded), tl.arange(0, width)
    is_group = group < groups
    at = row * stride_query_row + (head * groups + group)[:, None] * stride_query_head + place[None, :]
    asked = tl.load(query + at, mask=is_group[:, None], other=0.0)
    peak = tl.full([groups_padded], float("-inf"), tl.float32)
    total = tl.zeros([groups_padded], tl.float32)
    gathered = tl.zeros([groups_padded, width], tl.float32)
    for first in range(start, end, block):
        tokens = first + tl.arange(0, block)
        is_there = tokens < end
        page = tl.load(table + row * stride_table + first // page_tokens).to(tl.int64)
        base = page * stride_page + head * stride_head
        slots = (first % page_tokens + tl.arange(0, block)) * stride_slot
        key = tl.load(keys + base + slots[None, :] + place[:, None], mask=is_there[None, :], other=0.0)
        score = tl.dot(asked, key) * scale
        score = tl.where(is_there[None, :], score, float("-inf"))
        value = tl.load(values + base + slots[:, None] + place[None, :], mask=is_there[:, None], other=0.0)
        peak, total, gathered = _with_block(score, value, peak, total, gathered)
    out = (row * heads * groups + head * groups + group) * splits + split
    tl.store(peaks + out, peak, mask=is_group)
    tl.store(sums + out, total, mask=is_group)
    tl.store(partials + out[:, None] * width + place[None, :], gathered, mask=is_group[:, None])


@triton.jit
def _joined_attention(  # type: ignore[no-untyped-def]
    peaks, sums, partials, out, width: tl.constexpr, splits: tl.constexpr, early: tl.constexpr
):
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = tl.program_id(0)
    split, place = tl.arange(0, splits), tl.arange(0, width)
    peak = tl.load(peaks + at * splits + split)
    total = tl.load(sums + at * splits + split)
    share = tl.exp2(peak - tl.max(peak, 0))
    partial = tl.load(partials + (at * splits + split)[:, None] * width + place[None, :])
    joined = tl.sum(partial * share[:, None], 0) / tl.sum(total * share, 0)
    tl.store(out + at * width + place, joined.to(out.dtype.element_ty))


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention of one token of each row over its pages.

    query (rows, heads, width), keys and values (pages, page_tokens, kv heads, width), block_table (rows, pages),
    lengths (rows,) with the new token. Each row's tokens are split over programs, and the parts joined.
    """
    rows, heads, width = query.shape
    kv_heads, page_tokens = keys.shape[2], keys.shape[1]
    groups = heads // kv_heads
    assert page_tokens % min(_BLOCK, page_tokens) == 0, "a block must not lie across two pages"
    # Few rows are split as one is: then the sums of a row do not depend on how many others there are
    splits = triton.next_power_of_2(max(1, _PROGRAMS // ((1 if rows <= ALIKE_ROWS else rows) * kv_heads)))
    splits = min(_MOST_SPLITS, splits)
    is_early = _is_early(query.device)
    peaks = torch.empty((rows, heads, splits), dtype=torch.float32, device=query.device)
    sums = torch.empty_like(peaks)
    partials = torch.empty((rows, heads, splits, width), dtype=torch.float32, device=query.device)
    out = torch.empty((rows, heads, width), dtype=query.dtype, device=query.device)
    _partial_attention[(rows, kv_heads, splits)](
        query,
        keys,
        values,
        block_table,
        lengths,
        peaks,
        sums,
        partials,
        scaling * _LOG2_E,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        block_table.stride(0),
        heads=kv_heads,
        groups=groups,
        groups_padded=max(16, triton.next_power_of_2(groups)),
        width=width,
        page_tokens=page_tokens,
        block=min(_BLOCK, page_tokens),
        splits=splits,
        early=is_early,
        num_warps=4,
        num_stages=_stages(query.device),
        launch_pdl=is_early,
    )
    _joined_attention[(rows * heads,)](
        peaks, sums, partials, out, width=width, splits=splits, early=is_early, num_warps=4, launch_pdl=is_early
    )
    return out


@triton.jit
def _piece_attention(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    pages,
    bounds,
    out,
    scale,
    stride_query_token,
    stride_query_head,
    stride_page,
    stride_slot,
    stride_head,
    count,
    heads: tl.constexpr,
    groups: tl.constexpr,
    width: tl.constexpr,
    page_tokens: tl.constexpr,
    queries: tl.constexpr,
    block: tl.constexpr,
):
    # The last parts see most: they begin first
    part, head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    before, behind = tl.load(bounds).to(tl.int32), tl.load(bounds + 1).to(tl.int32)
    at, place, slot = part * queries + tl.arange(0, queries), tl.arange(0, width), tl.arange(0, block)
    is_asked = at < count
    source = query + at[:, None] * stride_query_token + head * stride_query_head + place[None, :]
    asked = tl.load(source, mask=is_asked[:, None], other=0.0)
    peak = tl.full([queries], float("-inf"), tl.float32)
    total = tl.zeros([queries], tl.float32)
    gathered = tl.zeros([queries, width], tl.float32)
    # Behind the piece's real tokens there is nothing to be looked after
    end = tl.where(before + part * queries < behind, tl.minimum(before + (part + 1) * queries, behind), 0)
    whole = tl.minimum((before + part * queries) // block * block, end)
    of_head = (head // groups) * stride_head
    # Blocks that all of them see, then those that some see a part of
    for first in range(0, whole, block):
        page = tl.load(pages + first // page_tokens).to(tl.int64)
        base = page * stride_page + of_head + (first % page_tokens) * stride_slot
        key = tl.load(keys + base + slot[None, :] * stride_slot + place[:, None])
        value = tl.load(values + base + slot[:, None] * stride_slot + place[None, :])
        peak, total, gathered = _with_block(tl.dot(asked, key) * scale, value, peak, total, gathered)
    for first in range(whole, end, block):
        tokens = first + slot
        is_there = tokens < end
        page = tl.load(pages + first // page_tokens).to(tl.int64)
        base = page * stride_page + of_head + (first % page_tokens) * stride_slot
        key = tl.load(keys + base + slot[None, :] * stride_slot + place[:, None], mask=is_there[None, :], other=0.0)
        value = tl.load(values + base + slot[:, None] * stride_slot + place[None, :], mask=is_there[:, None], other=0.0)
        is_seen = is_there[None, :] & (tokens[None, :] <= (before + at)[:, None])
        score = tl.where(is_seen, tl.dot(asked, key) * scale, float("-inf"))
        peak, total, gathered = _with_block(score, value, peak, total, gathered)
    gathered = gathered / tl.where(total > 0, total, 1.0)[:, None]
    target = out + (at[:, None] * heads + head) * width + place[None, :]
    tl.store(target, gathered.to(out.dtype.element_ty), mask=is_asked[:, None])


def paged_extend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    pages: torch.Tensor,
    bounds: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention of a piece of one sequence over its pages.

    query (tokens, heads, width), keys and values (pages, page_tokens, kv heads, width), pages (pages,) the sequence's,
    bounds (2,) how many of its tokens come before the piece and how many there are with it. Queries behind that stand
    for nothing and get noughts or what the last one could see.
    """
    tokens, heads, width = query.shape
    kv_heads, page_tokens = keys.shape[2], keys.shape[1]
    assert page_tokens % min(_BLOCK, page_tokens) == 0, "a block must not lie across two pages"
    out = torch.empty((tokens, heads, width), dtype=query.dtype, device=query.device)
    _piece_attention[(triton.cdiv(tokens, _QUERIES), heads)](
        query,
        keys,
        values,
        pages,
        bounds,
        out,
        scaling * _LOG2_E,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        tokens,
        heads=heads,
        groups=heads // kv_heads,
        width=width,
        page_tokens=page_tokens,
        queries=_QUERIES,
        block=min(_BLOCK, page_tokens),
        num_warps=4,
        num_stages=_stages(query.device),
    )
    return out


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    hidden, added, weight, out, eps, width, has_added: tl.constexpr, block: tl.constexpr, early: tl.constexpr
):
    row, place = tl.program_id(0), tl.arange(0, block)
    is_there = place < width
    # What no kernel writes is read before the one that ends is waited for
    factor = tl.load(weight + place, mask=is_there, other=0.0)
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    value = tl.load(hidden + row * width + place, mask=is_there, other=0.0)
    if has_added:
        value = value + tl.load(added + row * width + place, mask=is_there, other=0.0)
        tl.store(hidden + row * width + place, value, mask=is_there)
    wide = value.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(wide * wide, 0) / width + eps)
    scaled = (wide * scale).to(value.dtype)
    tl.store(out + row * width + place, factor * scaled, mask=is_there)


def add_norm(hidden: torch.Tensor, added: torch.Tensor | None, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm of `hidden` + `added`, which `hidden` becomes; all of shape (rows, width)."""
    rows, width = hidden.shape
    out = torch.empty_like(hidden)
    has_added = added is not None
    _add_norm[(rows,)](
        hidden,
        added if has_added else hidden,
        weight,
        out,
        eps,
        width,
        has_added=has_added,
        block=triton.next_power_of_2(width),
        early=_is_early(hidden.device),
        num_warps=8,
        launch_pdl=_is_early(hidden.device),
    )
    return out


@triton.jit
def _rotate_and_write(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    cosines,
    sines,
    slots,
    keys,
    values,
    stride_query,
    stride_key,
    stride_value,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    half: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, head = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, half)
    if head < heads + kv_heads:
        cos = tl.load(cosines + row * 2 * half + place)
        sin = tl.load(sines + row * 2 * half + place)
        if head < heads:
            source = query + row * stride_query + head * 2 * half
            target = source
        else:
            source = key + row * stride_key + (head - heads) * 2 * half
            target = keys + (tl.load(slots + row) * kv_heads + head - heads) * 2 * half
        first, second = tl.load(source + place), tl.load(source + half + place)
        tl.store(target + place, (first * cos - second * sin).to(first.dtype))
        tl.store(target + half + place, (second * cos + first * sin).to(first.dtype))
    else:
        source = value + row * stride_value + (head - heads - kv_heads) * 2 * half
        target = values + (tl.load(slots + row) * kv_heads + head - heads - kv_heads) * 2 * half
        tl.store(target + place, tl.load(source + place))
        tl.store(target + half + place, tl.load(source + half + place))


def rotate_and_write(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Rotate `query` (rows, heads, width) in place; rotate `key` and write it and `value` into their slots."""
    rows, heads, width = query.shape
    kv_heads = keys.shape[2]
    _rotate_and_write[(rows, heads + 2 * kv_heads)](
        query, key, value, cosines, sines, slots, keys, values, query.stride(0), key.stride(0), value.stride(0),
        heads=heads, kv_heads=kv_heads, half=width // 2, early=_is_early(query.device), num_warps=1,
        launch_pdl=_is_early(query.device),
    )  # fmt: skip


@triton.jit
def _silu_mul(gate, up, out, stride, width, block: tl.constexpr, early: tl.constexpr):  # type: ignore[no-untyped-def]
    if early:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    row, place = tl.program_id(1).to(tl.int64), tl.program_id(0) * block + tl.arange(0, block)
    is_there = place < width
    raw = tl.load(gate + row * stride + place, mask=is_there, other=0.0)
    wide = raw.to(tl.float32)
    active = (wide * tl.sigmoid(wide)).to(raw.dtype)
    other = tl.load(up + row * stride + place, mask=is_there, other=0.0)
    tl.store(out + row * width + place, active * other, mask=is_there)


def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, elementwise; both (rows, width) with the same stride between rows."""
    rows, width = gate.shape
    out = torch.empty((rows, width), dtype=gate.dtype, device=gate.device)
    block = 1024
    is_early = _is_early(gate.device)
    _silu_mul[(triton.cdiv(width, block), rows)](
        gate, up, out, gate.stride(0), width, block=block, early=is_early, num_warps=4, launch_pdl=is_early
    )
    return out
