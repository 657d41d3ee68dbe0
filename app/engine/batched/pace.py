"""How much of a prompt is read in one pass while others write: as much as they do not notice.

Knows nothing of models: seconds in, tokens out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PIECE = 256
# What a pass shall take that others wait for; a single one may take a third more
MOST_STALL_S = 0.11
_LEAST_PIECE = 128
# Matrix kernels work in tiles: a token more costs a tile
_ROUND = 64
# A pass costs something however short the piece is, on slow computers more than others should wait: then pieces are as
# long as makes it a quarter more
_OVER_FLOOR = 1.25
# How much the newest pass counts
_NEW = 0.25


@dataclass(slots=True)
class Pace:
    """Learns from each pass what a pass takes with nothing of a prompt in it (`floor_s`).

    What a token of a prompt adds (`cost_s`) is the GPU's and hardly changes: it is measured while warming up, or taken
    from the first pass. What else there is to wait for, such as a processor that others use too, is in the floor.
    """

    piece: int = FIRST_PIECE
    floor_s: float = 0.0
    largest: int = 8192
    cost_s: float = 0.0

    @classmethod
    def of(cls, took_s: Mapping[int, float], largest: int) -> "Pace":
        """From measured passes: seconds by tokens of a piece."""
        found = cls(min(FIRST_PIECE, largest), largest=largest)
        if len(took_s) > 1:
            longest, found.floor_s = max(took_s), min(took_s.values())
            found.cost_s = (took_s[longest] - found.floor_s) / longest
            found._choose()
        return found

    @property
    def most_s(self) -> float:
        """What a pass shall take."""
        return max(MOST_STALL_S, _OVER_FLOOR * self.floor_s)

    def learn(self, tokens: int, took_s: float) -> None:
        """A pass with so many tokens of a prompt took so long."""
        if not self.cost_s:
            self.cost_s = took_s / tokens / 2
            self.floor_s = took_s / 2
        self.floor_s += _NEW * (took_s - self.cost_s * tokens - self.floor_s)
        self.floor_s = max(0.0, self.floor_s)
        self._choose()

    def _choose(self) -> None:
        wanted = int((self.most_s - self.floor_s) / self.cost_s) if self.cost_s > 0 else self.largest
        wanted = min(max(wanted // _ROUND * _ROUND, _LEAST_PIECE), self.largest)
        self.piece = max(1, wanted)
