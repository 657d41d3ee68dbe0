"""How many tokens a pass has that reads a piece of a prompt while others write: as many as they do not notice.

Knows nothing of models: seconds in, tokens out. Tokens are the piece's and one of each who writes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIRST_TOKENS = 256
# What a pass shall take that others wait for; a single one may take a third more
MOST_STALL_S = 0.11
_LEAST_TOKENS = 128
# Matrix kernels work in tiles: a token more costs a tile
_ROUND = 64
# A pass costs something however few they are, on slow computers more than others should wait: then they are as many as
# make it a quarter more
_OVER_FLOOR = 1.25
# How much the newest pass counts
_NEW = 0.25


@dataclass(slots=True)
class Pace:
    """Learns from each pass what a pass takes with no tokens in it (`floor_s`); `tokens` is what the next may have.

    What a token adds (`cost_s`) is the GPU's and hardly changes: it is measured while warming up, or taken
    from the first pass. What else there is to wait for, such as a processor that others use too, is in the floor.
    """

    tokens: int = FIRST_TOKENS
    floor_s: float = 0.0
    largest: int = 8192
    cost_s: float = 0.0
    sizes: tuple[int, ...] = ()

    @classmethod
    def of(cls, took_s: Mapping[int, float], largest: int, sizes: Sequence[int] = ()) -> "Pace":
        """From measured passes: seconds by tokens. `sizes` are those that passes come in, if not in any."""
        first = max((size for size in sizes if size <= FIRST_TOKENS), default=min(sizes, default=FIRST_TOKENS))
        found = cls(min(first, largest), largest=largest, sizes=tuple(sorted(sizes)))
        if len(took_s) > 1:
            shortest, longest = min(took_s), max(took_s)
            found.cost_s = max(0.0, (took_s[longest] - took_s[shortest]) / (longest - shortest))
            found.floor_s = max(0.0, took_s[shortest] - found.cost_s * shortest)
            found._choose()
        return found

    @property
    def most_s(self) -> float:
        """What a pass shall take."""
        return max(MOST_STALL_S, _OVER_FLOOR * self.floor_s)

    def learn(self, tokens: int, took_s: float) -> None:
        """A pass with so many tokens took so long."""
        if not self.cost_s:
            self.cost_s = took_s / tokens / 2
            self.floor_s = took_s / 2
        self.floor_s += _NEW * (took_s - self.cost_s * tokens - self.floor_s)
        self.floor_s = max(0.0, self.floor_s)
        self._choose()

    def _choose(self) -> None:
        wanted = int((self.most_s - self.floor_s) / self.cost_s) if self.cost_s > 0 else self.largest
        if self.sizes:
            wanted = max((size for size in self.sizes if size <= wanted), default=self.sizes[0])
        else:
            wanted = max(wanted // _ROUND * _ROUND, _LEAST_TOKENS)
        self.tokens = max(1, min(wanted, self.largest))
