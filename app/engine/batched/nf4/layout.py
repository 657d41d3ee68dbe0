"""The bytes of a 4-bit matrix in the order in which the kernels' registers want them. Pure torch, any device.

bitsandbytes keeps a matrix of N rows and K columns row by row, two weights a byte (the first in the high nibble), one
8-bit scale for 64 weights (`absmax`), and for 256 of these one fp32 scale (`state2.absmax`):

    scale of block i = code[absmax[i]] * state2.absmax[i // 256] + offset        weight = NF4[nibble] * scale

Here one RECORD of 528 bytes holds 16 rows x 64 columns, and records stand in the order [N / 16][K / 64]:

    byte 0 ................................................ 511 | 512 ............................. 527
    lane 0: 16 bytes | lane 1: 16 bytes | ... | lane 31: 16 bytes | scale of row 0 | of row 8 | of row 1 | of row 9 ...

    lane = 4 g + q (g = 0..7, q = 0..3); its bytes are 4 words, word s is the A fragment of step s of mma.m16n8k16:

        byte 0: row g,     columns k, k + 1        k = 32 (s // 2) + 8 q + 4 (s % 2)
        byte 1: row g + 8, columns k, k + 1        low nibble = k, high nibble = k + 1
        byte 2: row g,     columns k + 2, k + 3
        byte 3: row g + 8, columns k + 2, k + 3

As many bytes as before, and matrices that are multiplied with the same input are joined by putting their records one
behind the other. The 8-bit scales keep their values; the fp32 ones and `code` stay as they are.
"""

from dataclasses import dataclass

import torch

ROWS, COLUMNS, RECORD_BYTES = 16, 64, 528
_WEIGHT_BYTES = ROWS * COLUMNS // 2
_ROWS_AT_ONCE = 2048


def fits(rows: int, columns: int) -> bool:
    """Whether a matrix can be kept so: whole records, and no fp32 scale that stands across two matrices."""
    return rows % ROWS == 0 and columns % COLUMNS == 0 and (rows * columns // COLUMNS) % 256 == 0


def packed(weight: torch.Tensor, absmax: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """bitsandbytes' bytes as records, (rows / 16, columns / 64, 528) uint8; a few rows at a time, to save memory.

    `weight` has rows * columns / 2 bytes, `absmax` a byte for each 64 weights.
    """
    out = torch.empty((rows // ROWS, columns // COLUMNS, RECORD_BYTES), dtype=torch.uint8, device=weight.device)
    bytes_of, scales = weight.view(rows, columns // 2), absmax.view(rows, columns // COLUMNS)
    for first in range(0, rows, _ROWS_AT_ONCE):
        last = min(rows, first + _ROWS_AT_ONCE)
        out[first // ROWS : last // ROWS] = _records(bytes_of[first:last], scales[first:last])
    return out


def unpacked(records: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The way back: bitsandbytes' `weight` (bytes, 1) and `absmax` (blocks,)."""
    tiles, blocks, _ = records.shape
    # tile, block, g, q, s // 2, s % 2, two columns, two rows
    found = records[..., :_WEIGHT_BYTES].reshape(tiles, blocks, 8, 4, 2, 2, 2, 2)
    weight = _turned(found.permute(0, 7, 2, 1, 4, 3, 5, 6).reshape(-1, 1))
    scales = records[..., _WEIGHT_BYTES:].reshape(tiles, blocks, 8, 2).permute(0, 3, 2, 1)
    return weight, scales.reshape(-1).contiguous()


def _records(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    rows, half = weight.shape
    tiles, blocks = rows // ROWS, half * 2 // COLUMNS
    # tile, two rows, g, block, s // 2, q, s % 2, two columns
    found = _turned(weight).view(tiles, 2, 8, blocks, 2, 4, 2, 2)
    lanes = found.permute(0, 3, 2, 5, 4, 6, 7, 1).reshape(tiles, blocks, _WEIGHT_BYTES)
    of_rows = scales.view(tiles, 2, 8, blocks).permute(0, 3, 2, 1).reshape(tiles, blocks, ROWS)
    return torch.cat((lanes, of_rows), -1)


def _turned(weight: torch.Tensor) -> torch.Tensor:
    """The two nibbles of each byte the other way round."""
    return (weight << 4) | (weight >> 4)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A packed matrix, or several that are multiplied with the same input, one below the other.

    records (rows / 16, columns / 64, 528) uint8; group_scales fp32, one for 256 blocks; offsets (rows / 16,) fp32; code
    (256,) fp32; bias (rows,) bf16 or None.
    """

    records: torch.Tensor
    group_scales: torch.Tensor
    offsets: torch.Tensor
    code: torch.Tensor
    bias: torch.Tensor | None

    @property
    def rows(self) -> int:
        return self.records.shape[0] * ROWS

    @property
    def columns(self) -> int:
        return self.records.shape[1] * COLUMNS

    def part(self, first: int, rows: int) -> "Matrix":
        """Some of the rows, in the same memory."""
        groups = self.columns // COLUMNS
        return Matrix(
            self.records[first // ROWS : (first + rows) // ROWS],
            self.group_scales[first * groups // 256 : (first + rows) * groups // 256],
            self.offsets[first // ROWS : (first + rows) // ROWS],
            self.code,
            None if self.bias is None else self.bias[first : first + rows],
        )
