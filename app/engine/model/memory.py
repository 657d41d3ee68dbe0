"""What a GPU's memory is spent on: weights, scratch, graphs, and pages of KV cache for how many people.

Plain arithmetic on a model's shape; imports no torch.
"""

from dataclasses import dataclass

from app.errors import ModelUnavailable

GIB = 1 << 30
PAGE_TOKENS = 256
MOST_ROWS = 64
# What a person needs to get any good of a model: a question, some reasoning and an answer
LEAST_TOKENS = 4096
_TOKENS_A_ROW = 2048
_PIECES = (8192, 4096, 2048, 1024)  # the last one is recorded
# Left to what grows beside us, the desktop for one
LEFT_FREE = 5 * GIB // 8
# Kernels that the driver loads when they are first called: not torch's, so it must stay away from that much
DRIVER = 3 * GIB // 8
# Recorded steps, cuBLAS's workspaces, and what the allocator cannot use of its blocks
_GRAPHS = 7 * GIB // 16
# Passes with pieces of prompts are recorded up to so many tokens, with memory of their own
MOST_RECORDED = 1024
# Up to so many rows a step takes one order of sums, whatever their number: a row's tokens do not depend on the others
ALIKE_ROWS = 8
# Cards by the name they are sold under, and what CUDA finds of their memory
CARDS_GIB = {"24 GB": 23.6, "32 GB": 31.4, "48 GB": 44.5, "80 GB": 79.2, "141 GB": 139.8}
# The driver's own share of a card that a CUDA program runs on
_CONTEXT = GIB // 2


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory it takes. `weight_bytes` are those of its weights on the device."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    weight_bytes: int
    is_four_bit: bool = False
    element_bytes: int = 2

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width * self.element_bytes

    def scratch_bytes(self, piece: int, window: int, rows: int) -> int:
        """The most that a pass of so many tokens of one prompt and of `rows` rows has beside weights and cache."""
        wide = 3 * self.intermediate + 6 * self.hidden + 2 * self.heads * self.head_width
        # bitsandbytes unpacks one matrix at a time
        unpacked = self.hidden * self.intermediate * self.element_bytes if self.is_four_bit else 0
        recorded = unpacked + min(piece, MOST_RECORDED) * wide * self.element_bytes
        longer = unpacked + piece * wide * self.element_bytes if piece > MOST_RECORDED else 0
        gathered = window * 4 * self.kv_heads * self.head_width * self.element_bytes
        # The sampler holds the logits in 16 and, twice, in 32 bits
        return recorded + longer + gathered + (rows + 1) * self.vocabulary * 12


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How the memory is given out. Sizes in bytes; `window` is the most tokens that one sequence can have."""

    weight_bytes: int
    scratch_bytes: int
    kv_bytes: int
    pages: int
    rows: int
    window: int
    largest_piece: int
    page_tokens: int = PAGE_TOKENS

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache has room for; page 0 is nobody's."""
        return (self.pages - 1) * self.page_tokens

    def __str__(self) -> str:
        return (
            f"{self.weight_bytes / GIB:.1f} GiB of weights, {self.scratch_bytes / GIB:.1f} GiB of scratch and graphs, "
            f"{self.kv_bytes / GIB:.1f} GiB of KV cache: {self.kv_tokens:,} tokens, {self.rows} at once, "
            f"{self.window:,} for one"
        )


def plan(shape: ModelShape, *, free_bytes: int, window: int, title: str = "The model") -> MemoryPlan:
    """Give out `free_bytes`, the weights included; `window` is what a sequence should be able to have.

    Raises:
        ModelUnavailable: not even one person has room; says what would fit on which card.
    """
    found = _planned(shape, free_bytes - LEFT_FREE, window)
    if found is not None:
        return found
    least = shape.weight_bytes + _least_beside(shape, window) + LEFT_FREE
    fitting = {card: _planned(shape, int(gib * GIB) - _CONTEXT - LEFT_FREE, window) for card, gib in CARDS_GIB.items()}
    table = "; ".join(
        f"{card}: {one.kv_tokens:,} tokens for {one.rows} at once" for card, one in fitting.items() if one is not None
    )
    raise ModelUnavailable(
        f"{title} needs {least / GIB:.1f} GiB of free GPU memory ({shape.weight_bytes / GIB:.1f} GiB of weights, the "
        f"rest to work with) and {max(0, free_bytes) / GIB:.1f} GiB are free.",
        remedy=(
            "End other programs on the GPU (nvidia-smi lists them), or choose a smaller model, or set "
            f"PONDER_MODEL=demo. What cards hold of it: {table or 'none of up to 141 GB holds it'}."
        ),
    )


def capped(free_bytes: int, total_bytes: int, cap_gib: float) -> int:
    """Free bytes of a card that is treated as one of `cap_gib`; 0 for as large as it is."""
    return free_bytes if not cap_gib else free_bytes - max(0, total_bytes - int(cap_gib * GIB))


def _planned(shape: ModelShape, budget: int, window: int) -> MemoryPlan | None:
    left = budget - shape.weight_bytes - _GRAPHS - DRIVER
    wanted = min(LEAST_TOKENS, window)
    for piece in _PIECES:
        tokens, rows, scratch = left // shape.token_bytes, MOST_ROWS, 0
        # What attention gathers depends on the window, and that on what is left for the cache
        for _ in range(4):
            scratch = shape.scratch_bytes(piece, min(window, max(0, tokens)), rows)
            tokens = (left - scratch) // shape.token_bytes // PAGE_TOKENS * PAGE_TOKENS - PAGE_TOKENS
            tokens = min(tokens, MOST_ROWS * (window + PAGE_TOKENS) // PAGE_TOKENS * PAGE_TOKENS)
            rows = _rows_for(tokens, window)
        if tokens >= wanted and (scratch * 6 <= left or piece == _PIECES[-1]):
            pages = tokens // PAGE_TOKENS + 1
            return MemoryPlan(
                shape.weight_bytes,
                scratch + _GRAPHS + DRIVER,
                pages * PAGE_TOKENS * shape.token_bytes,
                pages,
                rows,
                min(window, tokens),
                piece,
            )
    return None


def _rows_for(tokens: int, window: int) -> int:
    """A power of two, so that each size of graph is used."""
    for_one = min(_TOKENS_A_ROW, window + PAGE_TOKENS)
    return 1 << max(0, min(MOST_ROWS, tokens // for_one).bit_length() - 1)


def _least_beside(shape: ModelShape, window: int) -> int:
    tokens = min(LEAST_TOKENS, window)
    scratch = shape.scratch_bytes(_PIECES[-1], tokens, _rows_for(tokens, window))
    return (tokens + 2 * PAGE_TOKENS) * shape.token_bytes + scratch + _GRAPHS + DRIVER
