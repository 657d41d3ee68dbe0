"""Passes recorded as CUDA graphs: which are worth it, and how they share their memory.

Knows nothing of models: a pass is a function without arguments that looks for its tensors in the same places each time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from app.engine.model.memory import MOST_RECORDED

# Passes with a piece of a prompt are recorded for so many tokens in all, and so many rows among them, and as many rows
# as there are; what is less is filled up. Matrices are multiplied in tiles of 128 tokens: one more costs another tile
JOINED_TOKENS = (192, 384, 512, 768, MOST_RECORDED)
_JOINED_ROWS = (1, 16)


def joined_shapes(rows: int, most_tokens: int) -> list[tuple[int, int]]:
    """The passes with a piece that are worth recording: tokens in all, and rows among them.

    `rows` is how many there are, `most_tokens` what a pass can have.
    """
    places = [*(some for some in _JOINED_ROWS if some < rows), rows]
    return [(tokens, some) for tokens in JOINED_TOKENS for some in places if some < tokens <= most_tokens]


@dataclass(slots=True)
class Graph:
    """One recorded pass: `given` is what comes of it, in the same place each time."""

    graph: torch.cuda.CUDAGraph
    given: tuple[torch.Tensor, ...]

    def replay(self) -> None:
        """Take the pass."""
        self.graph.replay()


class Recorder:
    """Records passes. All share their memory, as only one is taken at a time, and one stream: cuBLAS has a workspace
    for each stream it was ever called on."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._pool: Any = None

    def record(self, step: Callable[[], tuple[torch.Tensor, ...]]) -> Graph:
        """Record a step whose kernels are loaded already."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            given = step()
        self._pool = graph.pool()
        return Graph(graph, given)
