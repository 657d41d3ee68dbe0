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
    """Learns from each pass. `floor_s` is what a pass takes with next to nothing of a prompt in it.

    `cost_s` is what a token of a prompt adds to that, on the whole: 0 while nothing is known.
    """

    piece: int = FIRST_PIECE
    floor_s: float = 0.0
    largest: int = 8192
    cost_s: float = 0.0

    @classmethod
    def of(cls, took_s: Mapping[int, float], largest: int) -> "Pace":
        """From measured passes: seconds by tokens of a piece. The longest piece that is short enough comes first."""
        if not took_s:
            return cls(largest=largest)
        floor_s = min(took_s.values())
        found = cls(min(FIRST_PIECE, largest), floor_s, largest)
        fitting = [size for size, seconds in took_s.items() if seconds <= 0.9 * found.most_s and size <= largest]
        found.piece = min(largest, max([_LEAST_PIECE, *fitting]))
        longest = max(took_s)
        found.cost_s = max(0.0, (took_s[longest] - floor_s) / longest)
        return found

    @property
    def most_s(self) -> float:
        """What a pass shall take."""
        return max(MOST_STALL_S, _OVER_FLOOR * self.floor_s)

    def learn(self, tokens: int, took_s: float) -> None:
        """A pass with so many tokens of a prompt took so long. Short ones, such as a prompt's last, tell nothing."""
        if tokens < self.piece:
            return
        base_s = min(self.floor_s, 0.9 * took_s)
        cost_s = (took_s - base_s) / tokens
        # The first pass after a while is slow, whatever is in it: one must not shrink all that follow
        self.cost_s = cost_s if not self.cost_s else self.cost_s + _NEW * (cost_s - self.cost_s)
        wanted = min(int((self.most_s - base_s) / self.cost_s), self.piece * 3 // 2, self.largest)
        wanted = max(wanted, self.piece // 2, min(_LEAST_PIECE, self.largest))
        self.piece = max(1, wanted // _ROUND * _ROUND) if wanted >= _ROUND else wanted
