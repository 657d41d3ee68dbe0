"""Which pages of the KV cache belong to whom. Knows nothing of tensors: a page is a number.

A page holds the keys and values of `page_tokens` tokens. A full page is known by a digest of the tokens in it and all
before it, so that whoever reads the same beginning takes it over instead of reading again. Pages that nobody holds stay
until others need the room; those used longest ago go first, into a `PageStore` if there is one.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

_ROOT = b""


class OutOfPages(Exception):
    """Every page is held by somebody."""


class PageStore(Protocol):
    """Somewhere beside the cache where pages go that had to make room."""

    def save(self, key: bytes, page: int) -> None:
        """Keep what is in the page, if there is room and time; it is written over afterwards."""

    def load(self, key: bytes, page: int) -> bool:
        """Put what was saved under this key into the page; False if it is not there."""

    def forget(self) -> None:
        """Nothing that was saved can be relied on any more."""


@dataclass(slots=True)
class Held:
    """The pages of one sequence, in order, and how many of its tokens are in them.

    `ids` are the tokens whose keys and values are in the cache. The first `known` pages are full and shareable; `key`
    is the last one's.
    """

    pages: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    known: int = 0
    key: bytes = _ROOT
    age: int = 0


class PagePool:
    """All pages of one cache. Use it from one thread.

    Page 0 is nobody's: rows of a batch that stand for nothing write there.
    """

    def __init__(self, pages: int, page_tokens: int, store: PageStore | None = None) -> None:
        if pages < 2:
            raise ValueError("a pool needs a page to write to and one to spare")
        self.page_tokens = page_tokens
        self.total = pages - 1
        self._store = store
        self._free = list(range(pages - 1, 0, -1))
        self._holders = [0] * pages
        self._by_key: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        # How many known pages come directly behind one: it must not be given away before them
        self._followers = [0] * pages
        self._parents: dict[int, int | None] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()
        # Sequences that began before everything was forgotten may hold damaged pages: what they write is not shared
        self._age = 0

    @property
    def available(self) -> int:
        """How many pages could be handed out now."""
        return len(self._free) + len(self._unheld)

    def pages_for(self, tokens: int) -> int:
        """How many pages so many tokens take."""
        return -(-tokens // self.page_tokens)

    def begin(self, prompt: Sequence[int]) -> Held:
        """A new sequence with whatever pages of its beginning are known; `ids` says how much of the prompt that is.

        At least the prompt's last token is left to be read: its logits are what the first new token is drawn from.
        """
        held = Held(age=self._age)
        while (tokens := self._next_page_of(held, prompt)) is not None:
            key = _key_of(held.key, tokens)
            page = self._by_key.get(key)
            if page is None:
                break
            self._hold(page)
            held.pages.append(page)
            self._go_on(held, tokens, key)
        return held

    def catch_up(self, held: Held, prompt: Sequence[int], most_loaded: int) -> bool:
        """Take over what of the prompt is known by now: pages that others have read meanwhile, and saved ones.

        Between `extend` and the first piece, and before each further one. At most so many pages are loaded from the
        store, as that takes time; returns whether there may be more of them.
        """
        loaded = 0
        while len(held.ids) == held.known * self.page_tokens and held.age == self._age:
            tokens = self._next_page_of(held, prompt)
            if tokens is None or held.known >= len(held.pages):
                break
            key, page = _key_of(held.key, tokens), held.pages[held.known]
            twin = self._by_key.get(key)
            if twin is not None:
                self._hold(twin)
                self._let_go(page)
                held.pages[held.known] = twin
                self._go_on(held, tokens, key)
                continue
            if self._store is None:
                break
            if loaded == most_loaded:
                return True
            if not self._store.load(key, page):
                break
            loaded += 1
            self._know(held, page, key)
            self._go_on(held, tokens, key)
        return False

    def extend(self, held: Held, tokens: int) -> None:
        """Give a sequence pages for so many tokens in all.

        Raises:
            OutOfPages: there are not so many; nothing was given.
        """
        missing = self.pages_for(tokens) - len(held.pages)
        if missing > self.available:
            raise OutOfPages
        made_room: list[tuple[bytes, int]] = []
        for _ in range(missing):
            page = self._take(made_room)
            self._holders[page] = 1
            held.pages.append(page)
        if self._store is not None:
            # There may be time for a few: the beginnings first, as an end without its beginning is of no use
            for key, page in reversed(made_room):
                self._store.save(key, page)

    def wrote(self, held: Held, ids: Sequence[int]) -> None:
        """The keys and values of these tokens are in the sequence's pages now; pages that are full become known."""
        held.ids.extend(ids)
        size = self.page_tokens
        while (held.known + 1) * size <= len(held.ids):
            key = _key_of(held.key, held.ids[held.known * size : (held.known + 1) * size])
            if held.age == self._age:
                self._share(held, key)
            held.known += 1
            held.key = key

    def end(self, held: Held) -> None:
        """The sequence needs its pages no more. Known ones stay while there is room."""
        for page in reversed(held.pages):
            self._let_go(page)
        held.pages.clear()
        held.ids.clear()
        held.known, held.key = 0, _ROOT

    def forget(self) -> None:
        """Nothing that was read is known any more: what is in the pages may be damaged."""
        self._age += 1
        self._free.extend(self._unheld)
        self._unheld.clear()
        self._by_key.clear()
        self._keys.clear()
        self._parents.clear()
        self._followers = [0] * len(self._followers)
        if self._store is not None:
            self._store.forget()

    def _next_page_of(self, held: Held, prompt: Sequence[int]) -> Sequence[int] | None:
        """The tokens of the first page of the prompt that is not known yet; None where only its end is left."""
        start = held.known * self.page_tokens
        return prompt[start : start + self.page_tokens] if start + self.page_tokens < len(prompt) else None

    def _go_on(self, held: Held, tokens: Sequence[int], key: bytes) -> None:
        held.ids.extend(tokens)
        held.known += 1
        held.key = key

    def _share(self, held: Held, key: bytes) -> None:
        page, twin = held.pages[held.known], self._by_key.get(key)
        if twin is None:
            self._know(held, page, key)
        else:
            # Somebody wrote the same meanwhile: theirs serves both
            self._hold(twin)
            self._let_go(page)
            held.pages[held.known] = twin

    def _know(self, held: Held, page: int, key: bytes) -> None:
        parent = held.pages[held.known - 1] if held.known else None
        self._by_key[key], self._keys[page] = page, key
        self._parents[page] = parent
        if parent is not None:
            self._followers[parent] += 1

    def _hold(self, page: int) -> None:
        self._unheld.pop(page, None)
        self._holders[page] += 1

    def _let_go(self, page: int) -> None:
        self._holders[page] -= 1
        if self._holders[page]:
            return
        if page in self._keys:
            self._unheld[page] = None
        else:
            self._free.append(page)

    def _take(self, made_room: list[tuple[bytes, int]]) -> int:
        if self._free:
            return self._free.pop()
        # Of those used longest ago, the first that no known page builds on: a sequence ends from its last page on, so
        # the end of what was read goes before its beginning
        page = next((page for page in self._unheld if not self._followers[page]), None)
        if page is None:
            raise OutOfPages
        del self._unheld[page]
        key = self._keys.pop(page)
        del self._by_key[key]
        parent = self._parents.pop(page)
        if parent is not None:
            self._followers[parent] -= 1
        made_room.append((key, page))
        return page


def _key_of(parent: bytes, tokens: Sequence[int]) -> bytes:
    """What a page is known by: the digest of its tokens and, through its parent's, of all before it."""
    return blake2b(array("I", tokens).tobytes(), digest_size=32, key=parent).digest()
