"""Which build of the kernels multiplies a shape with so many rows quickest, and what a launch of it takes.

Three kernels over the same records. `Few` deals K out to warps, for up to 8 rows; `Own` gives weight rows to warps, for
16 and more; where there is `wgmma`, `Wide` is quicker than that and goes up to 128. The numbers are the quickest of a
sweep on an H100 (docs/performance.md); other shapes and cards take the first that fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.batched.nf4 import wide
from app.engine.batched.nf4.layout import RECORD_BYTES
from app.engine.batched.nf4.wide import Wide

_TABLE_BYTES = 65536
_SWEPT = "sm_90"
_MOST_OWN = 8  # groups of 8 input rows


@dataclass(frozen=True, slots=True)
class Few:
    """`warps` with `records` of k each; K over `splits` blocks, left-over tiles over `pieces`; rings of `depth`."""

    warps: int
    records: int
    splits: int
    pieces: int
    depth: int
    reducers: int

    tiles: int = 1  # of 8 input rows

    @property
    def defines(self) -> tuple[str, ...]:
        return (f"WARPS={self.warps}", f"RECS={self.records}", f"TILES={self.tiles}", "MODES=0", "DQS=1")

    def slices(self, columns: int) -> int:
        """Parts of K that a block goes through one after the other; 0 where it does not divide."""
        across = self.warps * self.records * self.splits
        return 0 if columns // 64 % across else columns // 64 // across

    def shared(self, rows: int, columns: int, processors: int) -> int:
        """Bytes of shared memory a block takes."""
        tiles = -(-(rows // 16) // (processors // self.splits))
        sums = tiles * self.tiles * 512 if self.slices(columns) > 1 else 0
        rings = self.warps * self.depth * self.records * RECORD_BYTES
        return (
            _TABLE_BYTES + rings + self.reducers * self.warps * self.tiles * 512
            + (self.warps * self.depth + 2 * self.reducers) * 8 + 16 + sums
        )  # fmt: skip

    def fits(self, rows: int, columns: int, processors: int, most_shared: int) -> bool:
        """Whether the shape and the card take it."""
        left_over = rows // 16 % (processors // self.splits) * self.pieces
        return (
            self.slices(columns) > 0
            and self.records % self.pieces == 0
            and (self.pieces == 1 or (self.slices(columns) == 1 and left_over <= processors // self.splits))
            and self.shared(rows, columns, processors) <= most_shared
        )


@dataclass(frozen=True, slots=True)
class Own:
    """`across` x `along` warps of `mine` tiles each, decoded `halves` times; `records` a step; K over `splits`."""

    across: int
    along: int
    mine: int
    halves: int
    records: int
    splits: int
    depth: int
    chunks: int
    tiles: int

    @property
    def warps(self) -> int:
        return self.across * self.along

    @property
    def defines(self) -> tuple[str, ...]:
        return (
            "OWN", f"OWN_WM={self.across}", f"OWN_WK={self.along}", f"OWN_MT={self.mine}", f"OWN_NS={self.halves}",
            f"OWN_KW={self.records}", f"TILES={self.tiles}", "MODES=0", "DQS=1",
        )  # fmt: skip

    def grid(self, rows: int) -> int:
        """Blocks of a launch."""
        return -(-(rows // 16) // (self.across * self.mine)) * self.splits

    def shared(self) -> int:
        """Bytes of shared memory a block takes."""
        across, step = self.across * self.mine, self.along * self.records
        ring = (
            _TABLE_BYTES + self.chunks * self.tiles * 8 * (step * 128 + 64)
            + self.warps * self.depth * (self.mine * self.records * RECORD_BYTES + 8) + self.chunks * 16
        )  # fmt: skip
        return max(ring, self.along * across * self.tiles * 512 + self.tiles * 8 * (across * 32 + 16))

    def fits(self, rows: int, columns: int, processors: int, most_shared: int) -> bool:
        """Whether the shape and the card take it."""
        blocks = columns // 64
        return (
            self.grid(rows) <= processors
            and blocks % (self.splits * self.along * self.records) == 0
            and blocks % 16 == 0
            and self.shared() <= most_shared
        )


Variant = Few | Own | Wide


def candidates(
    rows: int, columns: int, tiles: int, processors: int, most_shared: int, architecture: str
) -> list[Variant]:
    """What may multiply a matrix of so many rows and columns with 8 * `tiles` input rows, the likeliest first."""
    known: Sequence[Variant] = _KNOWN.get((rows, columns, tiles), ())
    rest: Sequence[Variant] = _few(tiles) if tiles == 1 else _own(tiles) if tiles <= _MOST_OWN else ()
    fitting = [one for one in (*known, *rest) if one.fits(rows, columns, processors, most_shared)]
    widest = wide.candidates(rows, columns, tiles, processors, most_shared) if architecture == wide.ARCHITECTURE else ()
    return list(dict.fromkeys((*widest, *fitting)))


def is_known(rows: int, columns: int, tiles: int, architecture: str) -> bool:
    """Whether the quickest was found by a sweep already."""
    return architecture == _SWEPT and ((rows, columns, tiles) in _KNOWN or (rows, columns, tiles) in wide.KNOWN)


def _few(tiles: int) -> list[Variant]:
    shapes = (
        (10, 8, 1),
        (20, 4, 1),
        (10, 4, 1),
        (8, 5, 1),
        (18, 6, 2),
        (12, 9, 2),
        (9, 8, 2),
        (8, 4, 1),
        (4, 4, 1),
        (2, 4, 1),
        (1, 4, 1),
        (1, 1, 1),
    )
    return [
        Few(warps, records, splits, 1, depth, reducers, tiles)
        for warps, records, splits in shapes
        for depth in (6, 4, 3, 2)
        for reducers in (1, 2)
        if reducers <= 4 - warps % 4
    ]


def _own(tiles: int) -> list[Variant]:
    shapes = (
        (7, 1, 4, 1, 2, 1),
        (4, 2, 7, 1, 2, 1),
        (1, 8, 4, 1, 1, 1),
        (1, 8, 3, 1, 1, 1),
        (2, 4, 2, 1, 1, 1),
        (1, 4, 2, 1, 1, 1),
        (5, 2, 2, 2, 2, 4),
        (1, 2, 2, 1, 1, 1),
        (1, 1, 2, 1, 1, 1),
    )
    return [Own(*shape, depth, chunks, tiles) for shape in shapes for depth in (4, 3, 2, 1) for chunks in (4, 3, 2)]


# QwQ-32B's shapes on an H100, joined (q, k and v; gate and up): the quickest of a sweep
_KNOWN: dict[tuple[int, int, int], tuple[Variant, ...]] = {
    (7168, 5120, 1): (Few(10, 8, 1, 1, 2, 2),),
    (5120, 5120, 1): (Few(10, 8, 1, 1, 2, 1),),
    (55296, 5120, 1): (Few(10, 8, 1, 1, 2, 1),),
    (5120, 27648, 1): (Few(9, 8, 2, 1, 2, 2),),
    (7168, 5120, 2): (Few(10, 4, 1, 1, 2, 1, 2),),
    (5120, 5120, 2): (Few(8, 5, 1, 1, 3, 1, 2),),
    (55296, 5120, 2): (Own(4, 2, 7, 1, 2, 1, 2, 4, 2),),
    (5120, 27648, 2): (Own(5, 3, 2, 1, 2, 4, 2, 6, 2),),
    (7168, 5120, 4): (Own(1, 8, 4, 1, 1, 1, 3, 3, 4),),
    (5120, 5120, 4): (Own(1, 8, 3, 1, 1, 1, 2, 4, 4),),
    (55296, 5120, 4): (Own(7, 1, 4, 1, 2, 1, 4, 4, 4),),
    (5120, 27648, 4): (Own(2, 6, 5, 1, 1, 4, 2, 3, 4),),
    (7168, 5120, 8): (Own(7, 1, 2, 1, 4, 4, 3, 2, 8),),
    (5120, 5120, 8): (Own(5, 2, 2, 2, 2, 4, 2, 3, 8),),
    (55296, 5120, 8): (Own(7, 1, 4, 1, 2, 1, 3, 3, 8),),
    (5120, 27648, 8): (Own(5, 2, 2, 2, 2, 4, 2, 3, 8),),
}
