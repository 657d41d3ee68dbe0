"""The builds of `wide.cu`: 9 to 128 rows by Hopper's `wgmma`.

Its numbers are drawn and named in `wide.cu`. Which is quickest for QwQ-32B's shapes was swept on an H100
(docs/performance.md); other shapes take one of a few forms, with K cut so that the card is full.
"""

import ctypes
import math
from collections.abc import Iterator
from dataclasses import dataclass

from app.engine.batched.nf4.layout import RECORD_BYTES, Matrix

ARCHITECTURE = "sm_90"
_TABLE_BYTES = 65536
# What two blocks may take of a multiprocessor's 228 KiB, each with 1 KiB for the system
_HALF_BYTES = 113 * 1024
_MOST_SPLITS, _MOST_STAGES = 16, 8
# Partial sums of a launch of any kernel here, and the counters of its tiles
WORK_FLOATS, COUNTERS = 4 << 20, 8192


class _Arguments(ctypes.Structure):
    """`Args` of `wide.cu`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("records", "x", "y", "partial", "counters")),
        *((name, ctypes.c_void_p) for name in ("code", "group_scales", "offsets", "bias")),
        *((name, ctypes.c_int) for name in ("N", "blocks", "rows", "T", "C", "D", "DX", "group_shift")),
        *((name, ctypes.c_int) for name in ("across", "chunks", "extra")),
        ("magic", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Form:
    """What is fixed when `wide.cu` is compiled, without ROWS: WM, WK, MT, KW, PRESCALE, REGS, BLOCKS and XAHEAD."""

    across: int
    along: int
    mine: int
    records: int
    is_prescaled: bool
    registers: int
    together: int
    ahead: int

    @property
    def loaders(self) -> int:
        """Warps that bring x."""
        return 4 if self.together == 1 else 2

    @property
    def warps(self) -> int:
        """Warps that multiply."""
        return 4 * self.across * self.along


@dataclass(frozen=True, slots=True)
class Wide:
    """A form for 8 * `tiles` rows of x: `features` tiles of 64 output features a block, K over `splits` blocks.

    The rings have `depth` stages of weights and `chunks` of x.
    """

    form: Form
    features: int
    splits: int
    depth: int
    chunks: int
    tiles: int

    @property
    def defines(self) -> tuple[str, ...]:
        form = self.form
        registers = (f"REGS={form.registers}",) if form.registers else ()
        return (
            "WIDE", f"ROWS={8 * self.tiles}", f"WM={form.across}", f"WK={form.along}", f"MT={form.mine}",
            f"KW={form.records}", f"LW={form.loaders}", f"XAHEAD={form.ahead}", f"PRESCALE={int(form.is_prescaled)}",
            f"BLOCKS={form.together}", *registers,
        )  # fmt: skip

    @property
    def threads(self) -> int:
        return 32 * (self.form.warps + self.form.loaders)

    def across(self, rows: int) -> int:
        """Blocks that share the output features out."""
        return -(-rows // 64 // self.features)

    def grid(self, rows: int) -> int:
        """Blocks of a launch."""
        return self.across(rows) * self.splits

    def shared(self, columns: int) -> int:
        """Bytes of shared memory a block takes."""
        form, x = self.form, 8 * self.tiles * 128 * self.form.along * self.form.records
        groups = -(-self.features * columns // 256) + 1
        rings = (
            _TABLE_BYTES + (self.chunks + form.ahead) * x
            + form.warps * self.depth * form.mine * form.records * RECORD_BYTES
            + groups * 4 + 16 + self.chunks * 16 + form.warps * self.depth * 8
        )  # fmt: skip
        sums = form.along * self.features * 4 * self.tiles * 512 if form.along > 1 else 0
        rows = 8 * self.tiles * (self.features * 64 + 8) * 2 if self.splits == 1 else 0
        return max(rings, sums + rows)

    def fits(self, rows: int, columns: int, processors: int, most_shared: int) -> bool:
        """Whether the shape and the card take it."""
        form, blocks = self.form, columns // 64
        step = form.along * form.records
        partial = self.grid(rows) * self.features * 4 * self.tiles * 128 if self.splits > 1 else 0
        return (
            rows % 64 == 0
            and blocks % step == 0
            and math.gcd(blocks, 256) % form.records == 0
            and self.features <= form.across * form.mine
            and self.splits <= min(_MOST_SPLITS, blocks // step)
            # Blocks that wait for each other must all be on the card
            and (self.splits == 1 or self.grid(rows) <= processors * form.together)
            and partial <= WORK_FLOATS
            and self.across(rows) <= COUNTERS
            and self.shared(columns) <= (most_shared if form.together == 1 else min(most_shared, _HALF_BYTES))
        )

    def arguments(
        self, matrix: Matrix, told: int, out: int, work: int, counters: int, rows: int
    ) -> list[ctypes.Structure]:
        """A launch's arguments, from the addresses of input (rows, K), output (rows, N), workspace and counters."""
        blocks = matrix.columns // 64
        parts, across = blocks // (self.form.along * self.form.records), self.across(matrix.rows)
        return [
            _Arguments(
                matrix.records.data_ptr(), told, out, work, counters, matrix.code.data_ptr(),
                matrix.group_scales.data_ptr(), matrix.offsets.data_ptr(),
                None if matrix.bias is None else matrix.bias.data_ptr(),
                matrix.rows, blocks, rows, self.features, self.splits, self.depth, self.chunks,
                math.gcd(blocks, 256).bit_length() - 1, across, parts // self.splits, parts % self.splits,
                -(-(1 << 32) // across) & 0xFFFFFFFF,
            )
        ]  # fmt: skip


# Forms by groups of 8 rows, and how many tiles of features a block takes
_FORMS: dict[int, tuple[tuple[Form, int], ...]] = {
    2: (
        (Form(2, 2, 2, 2, False, 0, 1, 5), 4),
        (Form(4, 1, 2, 2, False, 0, 1, 3), 7),
        (Form(2, 1, 1, 2, False, 0, 2, 3), 2),
        (Form(1, 4, 1, 2, False, 0, 1, 5), 1),
    ),
    4: (
        (Form(2, 2, 2, 2, False, 104, 1, 2), 4),
        (Form(4, 1, 2, 2, False, 104, 1, 2), 7),
        (Form(2, 2, 1, 2, False, 0, 1, 4), 2),
        (Form(2, 1, 1, 2, False, 0, 2, 2), 2),
    ),
    8: (
        (Form(4, 1, 1, 2, True, 0, 1, 2), 4),
        (Form(4, 1, 2, 2, True, 112, 1, 2), 8),
    ),
    16: ((Form(4, 1, 1, 1, True, 112, 1, 3), 4),),
}

# QwQ-32B's shapes on an H100, joined (q, k and v; gate and up)
KNOWN: dict[tuple[int, int, int], tuple[Wide, ...]] = {
    (7168, 5120, 2): (Wide(Form(2, 2, 2, 2, False, 0, 1, 5), 4, 4, 2, 3, 2),),
    (5120, 5120, 2): (Wide(Form(2, 2, 2, 2, False, 0, 1, 5), 3, 4, 2, 3, 2),),
    (55296, 5120, 2): (Wide(Form(4, 1, 2, 2, False, 0, 1, 5), 7, 1, 3, 3, 2),),
    (5120, 27648, 2): (Wide(Form(2, 2, 2, 2, False, 0, 1, 5), 4, 6, 2, 3, 2),),
    (7168, 5120, 4): (Wide(Form(4, 1, 1, 2, False, 0, 1, 4), 4, 4, 6, 3, 4),),
    (5120, 5120, 4): (Wide(Form(2, 2, 1, 2, False, 0, 1, 4), 2, 3, 3, 3, 4),),
    (55296, 5120, 4): (Wide(Form(4, 1, 2, 2, False, 104, 1, 2), 7, 1, 3, 3, 4),),
    (5120, 27648, 4): (Wide(Form(4, 1, 2, 2, False, 104, 1, 2), 7, 11, 3, 3, 4),),
    (7168, 5120, 8): (Wide(Form(4, 1, 1, 2, True, 0, 1, 3), 4, 4, 4, 2, 8),),
    (5120, 5120, 8): (Wide(Form(4, 1, 1, 2, True, 0, 1, 3), 4, 6, 4, 2, 8),),
    (55296, 5120, 8): (Wide(Form(4, 1, 2, 2, True, 112, 1, 2), 7, 1, 2, 3, 8),),
    (5120, 27648, 8): (Wide(Form(4, 1, 2, 2, True, 112, 1, 2), 7, 11, 2, 3, 8),),
    (7168, 5120, 16): (Wide(Form(4, 1, 1, 1, True, 112, 1, 3), 4, 4, 7, 3, 16),),
    (5120, 5120, 16): (Wide(Form(4, 1, 1, 1, True, 112, 1, 3), 4, 6, 7, 3, 16),),
    (55296, 5120, 16): (Wide(Form(4, 1, 1, 1, True, 112, 1, 3), 4, 1, 7, 3, 16),),
    (5120, 27648, 16): (Wide(Form(4, 1, 1, 1, True, 112, 1, 3), 4, 6, 7, 3, 16),),
}


def candidates(rows: int, columns: int, tiles: int, processors: int, most_shared: int) -> list[Wide]:
    """What may multiply a matrix of so many rows and columns with 8 * `tiles` input rows, the likeliest first."""
    rest = [
        found
        for form, features in _FORMS.get(tiles, ())
        if (found := _filled(form, features, rows, columns, tiles, processors, most_shared)) is not None
    ]
    known = [one for one in KNOWN.get((rows, columns, tiles), ()) if one.fits(rows, columns, processors, most_shared)]
    return list(dict.fromkeys([*known, *rest]))


def _filled(
    form: Form, features: int, rows: int, columns: int, tiles: int, processors: int, most_shared: int
) -> Wide | None:
    """The form with K cut into as many parts as the card has room for, and with the deepest rings that fit."""
    parts = columns // 64 // (form.along * form.records)
    across = max(1, -(-rows // 64 // features))
    splits = max(1, min(_MOST_SPLITS, parts // 2, processors * form.together // across))
    return next(_fitting(form, features, splits, rows, columns, tiles, processors, most_shared), None)


def _fitting(
    form: Form, features: int, splits: int, rows: int, columns: int, tiles: int, processors: int, most_shared: int
) -> Iterator[Wide]:
    for chunks in (3, 2):
        for depth in range(_MOST_STAGES, 1, -1):
            found = Wide(form, features, splits, depth, chunks, tiles)
            if found.fits(rows, columns, processors, most_shared):
                yield found
