"""Pages of the KV cache that had to make room, kept in the computer's own memory.

A page of QwQ has 64 MiB: fetching it takes 1 to 3 ms, reading its 256 tokens again 36 ms. Copies go through the stream
that the passes go through, so that each page is saved before it is written over and there before it is read.
"""

import logging
from collections import OrderedDict

import torch

from app.engine.batched.attention import PagedCache
from app.errors import first_line

# Copies hold up those who write: so many pages a step at most, about 30 ms
MOST_A_STEP = 12
_BLOCK_BYTES = 1 << 30
_log = logging.getLogger(__name__)


class HostPages:
    """A `pages.PageStore` in RAM, page-locked where there is a GPU, for `most_bytes` at most.

    All memory is taken at once: page-locking it later would stop everybody. Use it from one thread.
    """

    def __init__(self, cache: PagedCache, most_bytes: int) -> None:
        self._cache = cache
        one = cache.keys[0][0]
        self.page_bytes = 2 * len(cache.keys) * one.numel() * one.element_size()
        shape = (2 * len(cache.keys), *one.shape)
        in_block = max(1, _BLOCK_BYTES // self.page_bytes)
        left = most_bytes // self.page_bytes
        self._free: list[torch.Tensor] = []
        while left > 0:
            count = min(left, in_block)
            try:
                block = torch.empty((count, *shape), dtype=one.dtype, pin_memory=one.is_cuda)
            except RuntimeError as error:
                # Some systems lock little: what there is serves too
                _log.warning("no more RAM can be page-locked (%s)", first_line(error))
                break
            self._free.extend(block)
            left -= count
        self.total = len(self._free)
        self._saved: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._left = MOST_A_STEP

    def begin_step(self, most: int) -> None:
        """There is time again for saving so many pages."""
        self._left = most

    def save(self, key: bytes, page: int) -> None:
        if key in self._saved:
            self._saved.move_to_end(key)
            return
        if not self.total or self._left == 0:
            return
        self._left -= 1
        place = self._free.pop() if self._free else self._saved.popitem(last=False)[1]
        for layer, (keys, values) in enumerate(zip(self._cache.keys, self._cache.values, strict=True)):
            place[2 * layer].copy_(keys[page], non_blocking=True)
            place[2 * layer + 1].copy_(values[page], non_blocking=True)
        self._saved[key] = place

    def load(self, key: bytes, page: int) -> bool:
        place = self._saved.get(key)
        if place is None:
            return False
        self._saved.move_to_end(key)
        for layer, (keys, values) in enumerate(zip(self._cache.keys, self._cache.values, strict=True)):
            keys[page].copy_(place[2 * layer], non_blocking=True)
            values[page].copy_(place[2 * layer + 1], non_blocking=True)
        return True

    def give_back(self) -> None:
        """Its memory is free, and nothing is kept any more."""
        self._free.clear()
        self._saved.clear()
        self.total = 0
        if self._cache.keys and self._cache.keys[0].is_cuda and hasattr(torch.accelerator, "empty_host_cache"):
            torch.accelerator.empty_host_cache()

    def forget(self) -> None:
        self._free.extend(self._saved.values())
        self._saved.clear()
