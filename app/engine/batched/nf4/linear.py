"""One 4-bit matrix as a layer: few rows by our kernels, more by unpacking it for cuBLAS."""

import ctypes
import threading
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.functional import linear

from app.engine.batched.nf4.compiling import Kernel, compiled
from app.engine.batched.nf4.layout import Matrix
from app.engine.batched.nf4.variants import Few, Variant, candidates
from app.engine.batched.nf4.wide import COUNTERS, WORK_FLOATS, Wide

MOST_ROWS = 128
_UNPACK = ("UNPACK", "MODES=0", "DQS=1")


def tiles_for(rows: int) -> int:
    """How many groups of 8 input rows a launch for so many computes: 1, 2, 4, 8 or 16. One to 8 rows cost the same, and
    take the same sums in the same order."""
    return next(tiles for tiles in (1, 2, 4, 8, 16) if rows <= 8 * tiles)


@dataclass(slots=True)
class Kernels:
    """The kernels of one GPU: built when first asked for, and what all launches share."""

    device: torch.device
    folder: Path | None = None
    architecture: str = field(init=False)
    processors: int = field(init=False)
    most_shared: int = field(init=False)
    work: torch.Tensor = field(init=False)
    counters: torch.Tensor = field(init=False)
    is_early: bool = True
    _loaded: dict[tuple[str, ...], Kernel] = field(default_factory=dict)
    _chosen: dict[tuple[int, int, int], Variant | None] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        found = torch.cuda.get_device_properties(self.device)
        self.architecture = f"sm_{found.major}{found.minor}"
        self.processors = found.multi_processor_count
        self.most_shared = getattr(found, "shared_memory_per_block_optin", 0)
        self.work = torch.empty(WORK_FLOATS, dtype=torch.float32, device=self.device)
        self.counters = torch.zeros(COUNTERS, dtype=torch.int32, device=self.device)

    def choose(self, rows: int, columns: int, tiles: int, variant: Variant | None) -> None:
        """Multiply that shape with so many input rows by this variant; None is by unpacking."""
        self._chosen[rows, columns, tiles] = variant

    def chosen(self, rows: int, columns: int, tiles: int) -> Variant | None:
        """The variant for a shape; the likeliest one until something was chosen."""
        key = (rows, columns, tiles)
        if key not in self._chosen:
            self._chosen[key] = next(iter(self.candidates(rows, columns, tiles)), None)
        return self._chosen[key]

    def candidates(self, rows: int, columns: int, tiles: int) -> list[Variant]:
        """What may multiply that shape on this card, the likeliest first."""
        return candidates(rows, columns, tiles, self.processors, self.most_shared, self.architecture)

    def loaded(self, defines: tuple[str, ...]) -> Kernel:
        """A variant's kernel, built and loaded if it is not yet.

        Raises:
            CannotCompile, RuntimeError: it cannot be.
        """
        with self._lock:
            if defines not in self._loaded:
                # What unpacks has its shared memory by itself
                shared = 0 if defines == _UNPACK else self.most_shared
                self._loaded[defines] = Kernel(compiled(defines, self.architecture, self.folder), shared)
            return self._loaded[defines]

    def multiply(self, told: torch.Tensor, matrix: Matrix, out: torch.Tensor, variant: Variant) -> None:
        """out (rows, N) = told (rows, K) @ matrix.T + bias; all bf16 and contiguous."""
        rows, stream = told.shape[0], torch.cuda.current_stream(self.device).cuda_stream
        if isinstance(variant, Wide):
            given = (told.data_ptr(), out.data_ptr(), self.work.data_ptr(), self.counters.data_ptr())
            self.loaded(variant.defines).launch(
                variant.grid(matrix.rows), variant.threads, variant.shared(matrix.columns), stream,
                variant.arguments(matrix, *given, rows), is_early=self.is_early,
            )  # fmt: skip
            return
        pointers = (
            matrix.records, told, out, self.work, self.counters, matrix.code, matrix.group_scales, matrix.offsets,
        )  # fmt: skip
        bias = ctypes.c_void_p(matrix.bias.data_ptr() if matrix.bias is not None else None)
        sizes = (matrix.rows, matrix.columns // 64, rows)
        if isinstance(variant, Few):
            of_variant: tuple[int, ...] = (
                variant.splits, variant.slices(matrix.columns), variant.pieces, variant.depth, variant.reducers,
            )  # fmt: skip
            grid = self.processors // variant.splits * variant.splits
            threads = (variant.warps + variant.reducers) * 32
            shared = variant.shared(matrix.rows, matrix.columns, self.processors)
        else:
            of_variant = (variant.splits, variant.depth, variant.chunks)
            grid, threads, shared = variant.grid(matrix.rows), variant.warps * 32, variant.shared()
        arguments = [
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in pointers),
            bias,
            *(ctypes.c_int(value) for value in (*sizes, *of_variant)),
        ]
        self.loaded(variant.defines).launch(grid, threads, shared, stream, arguments, is_early=self.is_early)

    def unpack(self, matrix: Matrix, out: torch.Tensor) -> None:
        """The whole matrix as bf16, out (rows, columns)."""
        records = matrix.records.shape[0] * matrix.records.shape[1]
        pointers = (matrix.records, out, matrix.code, matrix.group_scales, matrix.offsets)
        arguments = [
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in pointers),
            ctypes.c_int(records),
            ctypes.c_int(matrix.records.shape[1]),
        ]
        stream = torch.cuda.current_stream(self.device).cuda_stream
        grid = min(-(-records // 8), 8 * self.processors)
        self.loaded(_UNPACK).launch(grid, 256, 0, stream, arguments, is_early=False)


class Nf4Linear(torch.nn.Module):
    """A linear layer over a packed matrix; in place of bitsandbytes' `Linear4bit`, or of several with one input."""

    def __init__(self, matrix: Matrix, kernels: Kernels) -> None:
        super().__init__()
        self.matrix = matrix
        self.kernels = kernels
        self.in_features, self.out_features = matrix.columns, matrix.rows

    def forward(self, told: torch.Tensor) -> torch.Tensor:
        """`told` (..., in features) in bf16; the result (..., out features)."""
        flat = told.reshape(-1, self.in_features)
        rows = flat.shape[0]
        if rows <= MOST_ROWS:
            variant = self.kernels.chosen(self.out_features, self.in_features, tiles_for(rows))
            if variant is not None:
                out = torch.empty((rows, self.out_features), dtype=flat.dtype, device=flat.device)
                self.kernels.multiply(flat.contiguous(), self.matrix, out, variant)
                return out.view(*told.shape[:-1], self.out_features)
        return self.by_unpacking(told)

    def multiplies(self, rows: int) -> bool:
        """Whether so many rows are multiplied without unpacking."""
        return rows <= MOST_ROWS and (
            self.kernels.chosen(self.out_features, self.in_features, tiles_for(rows)) is not None
        )

    def by_unpacking(self, told: torch.Tensor) -> torch.Tensor:
        """The plain way: unpack, then multiply."""
        return linear(told, self.dequantized(), self.matrix.bias)

    def dequantized(self) -> torch.Tensor:
        """The matrix as bf16, (out features, in features)."""
        whole = torch.empty(
            (self.out_features, self.in_features), dtype=torch.bfloat16, device=self.matrix.records.device
        )
        self.kernels.unpack(self.matrix, whole)
        return whole


@dataclass(frozen=True, slots=True)
class Joined:
    """What is multiplied with one input, in one launch: q, k and v; gate and up."""

    layer: Nf4Linear
    rows: tuple[int, ...]

    def multiplies(self, rows: int) -> bool:
        """Whether so many input rows are multiplied without unpacking."""
        return self.layer.multiplies(rows)

    def __call__(self, told: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts: tuple[torch.Tensor, ...] = self.layer(told).split(self.rows, -1)
        return parts
