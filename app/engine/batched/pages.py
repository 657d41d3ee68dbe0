"""Which pages of the KV cache belong to whom. Knows nothing of tensors: a page is a number.

A page holds the keys and values of `page_tokens` tokens. A full page is known by the tokens in it and all before it, so
that whoever reads the same beginning takes it over instead of reading again. Pages that nobody holds stay until others
need the room; those used longest ago go first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

_Key = tuple[int, tuple[int, ...]]
_ROOT = -1


class OutOfPages(Exception):
    """Every page is held by somebody."""


@dataclass(slots=True)
class Held:
    """The pages of one sequence, in order, and how many of its tokens are in them.

    `ids` are the tokens whose keys and values are in the cache. The first `known` pages are full and shareable.
    """

    pages: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    known: int = 0


class PagePool:
    """All pages of one cache. Use it from one thread.

    Page 0 is nobody's: rows of a batch that stand for nothing write there.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        if pages < 2:
            raise ValueError("a pool needs a page to write to and one to spare")
        self.page_tokens = page_tokens
        self.total = pages - 1
        self._free = list(range(pages - 1, 0, -1))
        self._holders = [0] * pages
        # A page's key: the serial of the page before it, and its own tokens. A page that is known has a serial, which
        # is never given twice, so that a number that is used again is not taken for what it was
        self._by_key: dict[_Key, int] = {}
        self._keys: dict[int, _Key] = {}
        self._serials = [0] * pages
        self._last_serial = 0
        # How many known pages come directly behind one: it must not be given away before them
        self._followers = [0] * pages
        self._parents: dict[int, int | None] = {}
        self._unheld: OrderedDict[int, None] = OrderedDict()

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
        held, serial = Held(), _ROOT
        for start in range(0, (len(prompt) - 1) // self.page_tokens * self.page_tokens, self.page_tokens):
            tokens = tuple(prompt[start : start + self.page_tokens])
            page = self._by_key.get((serial, tokens))
            if page is None:
                break
            self._hold(page)
            held.pages.append(page)
            held.ids.extend(tokens)
            serial = self._serials[page]
        held.known = len(held.pages)
        return held

    def extend(self, held: Held, tokens: int) -> None:
        """Give a sequence pages for so many tokens in all.

        Raises:
            OutOfPages: there are not so many; nothing was given.
        """
        missing = self.pages_for(tokens) - len(held.pages)
        if missing > self.available:
            raise OutOfPages
        for _ in range(missing):
            page = self._take()
            self._holders[page] = 1
            held.pages.append(page)

    def wrote(self, held: Held, ids: Sequence[int]) -> None:
        """The keys and values of these tokens are in the sequence's pages now; pages that are full become known."""
        held.ids.extend(ids)
        size = self.page_tokens
        while (held.known + 1) * size <= len(held.ids):
            self._know(held, held.known)
            held.known += 1

    def _know(self, held: Held, at: int) -> None:
        parent = held.pages[at - 1] if at else None
        if parent is not None and not self._serials[parent]:
            return  # what comes before was forgotten, so nobody could find this
        serial = self._serials[parent] if parent is not None else _ROOT
        key = (serial, tuple(held.ids[at * self.page_tokens : (at + 1) * self.page_tokens]))
        page, twin = held.pages[at], self._by_key.get(key)
        if twin is not None:
            # Somebody wrote the same meanwhile: theirs serves both
            self._hold(twin)
            self._let_go(page)
            held.pages[at] = twin
            return
        self._last_serial += 1
        self._serials[page] = self._last_serial
        self._by_key[key], self._keys[page] = page, key
        self._parents[page] = parent
        if parent is not None:
            self._followers[parent] += 1

    def end(self, held: Held) -> None:
        """The sequence needs its pages no more. Known ones stay while there is room."""
        for page in reversed(held.pages):
            self._let_go(page)
        held.pages.clear()
        held.ids.clear()
        held.known = 0

    def forget(self) -> None:
        """Nothing that was read is known any more: what is in the pages may be damaged."""
        for page in list(self._unheld):
            self._free.append(page)
        self._unheld.clear()
        self._by_key.clear()
        self._keys.clear()
        self._parents.clear()
        self._serials = [0] * len(self._serials)
        self._followers = [0] * len(self._followers)

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

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        # Of those used longest ago, the first that no known page builds on: a sequence ends from its last page on, so
        # the end of what was read goes before its beginning
        page = next((page for page in self._unheld if not self._followers[page]), None)
        if page is None:
            raise OutOfPages
        del self._unheld[page]
        del self._by_key[self._keys.pop(page)]
        self._serials[page] = 0
        parent = self._parents.pop(page)
        if parent is not None:
            self._followers[parent] -= 1
        return page
