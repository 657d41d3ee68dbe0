"""Which variant is quickest on this card, for shapes and cards that `variants` does not know; found once, then kept.

Each is timed against unpacking and multiplying, which stays where nothing of ours is quicker.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from app.engine.batched.nf4.compiling import compiled, sources
from app.engine.batched.nf4.layout import Matrix
from app.engine.batched.nf4.linear import Kernels, Nf4Linear
from app.engine.batched.nf4.variants import Variant, is_known

TILES = (1, 2, 4, 8, 16)
# Building one takes a second or two; the likeliest come first
_MOST_TRIED = 4
_REPEATS = 5
_log = logging.getLogger(__name__)


def tune(kernels: Kernels, matrices: list[Matrix]) -> None:
    """Choose a variant for each shape and number of input rows; what was found before on this card is read."""
    unknown = {
        (matrix.rows, matrix.columns, tiles): matrix
        for matrix in matrices
        for tiles in TILES
        if not is_known(matrix.rows, matrix.columns, tiles, kernels.architecture)
    }
    if not unknown:
        return
    kept = _kept_in(kernels)
    chosen = _read(kept)
    missing = {key: matrix for key, matrix in unknown.items() if _name(key) not in chosen}
    if missing:
        _log.info("finding the quickest kernels for %d shapes on this GPU (once)", len(missing))
        _build(kernels, missing)
        chosen |= {_name(key): _quickest(kernels, matrix, key[2]) for key, matrix in missing.items()}
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(chosen))
    for key in unknown:
        tried, index = _tried(kernels, *key), chosen[_name(key)]
        kernels.choose(*key, tried[index] if 0 <= index < len(tried) else None)


def _tried(kernels: Kernels, rows: int, columns: int, tiles: int) -> list[Variant]:
    return kernels.candidates(rows, columns, tiles)[:_MOST_TRIED]


def _build(kernels: Kernels, missing: dict[tuple[int, int, int], Matrix]) -> None:
    """Compile what will be timed, on all cores; what does not compile is met again when it is timed."""
    defines = {variant.defines for key in missing for variant in _tried(kernels, *key)}

    def build(one: tuple[str, ...]) -> None:
        try:
            compiled(one, kernels.architecture, kernels.folder)
        except Exception as error:
            _log.info("%s does not compile for %s: %s", one, kernels.architecture, error)

    if kernels.folder is not None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(build, defines))


@torch.inference_mode()
def _quickest(kernels: Kernels, matrix: Matrix, tiles: int) -> int:
    """The number of the quickest variant among those tried, -1 where unpacking is quicker."""
    rows, device = 8 * tiles, matrix.records.device
    told = torch.randn((rows, matrix.columns), dtype=torch.bfloat16, device=device)
    out = torch.empty((rows, matrix.rows), dtype=torch.bfloat16, device=device)
    best, best_s = -1, _seconds(partial(Nf4Linear(matrix, kernels).by_unpacking, told))
    for index, variant in enumerate(_tried(kernels, matrix.rows, matrix.columns, tiles)):
        try:
            took_s = _seconds(partial(kernels.multiply, told, matrix, out, variant))
        except Exception as error:  # what does not run here is not chosen
            _log.info("%s does not run here: %s", variant, error)
            continue
        if took_s < best_s:
            best, best_s = index, took_s
    return best


def _seconds(work: Callable[[], object]) -> float:
    work()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(_REPEATS):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / 1e3 / _REPEATS


def _kept_in(kernels: Kernels) -> Path | None:
    if kernels.folder is None:
        return None
    card = f"{torch.cuda.get_device_name(kernels.device)} {torch.version.cuda} {_MOST_TRIED} {sources()}"
    return kernels.folder / f"quickest-{hashlib.sha256(card.encode()).hexdigest()[:16]}.json"


def _read(kept: Path | None) -> dict[str, int]:
    try:
        found = json.loads(kept.read_text()) if kept is not None else {}
    except (OSError, ValueError):
        return {}
    return (
        {str(key): value for key, value in found.items() if isinstance(value, int)} if isinstance(found, dict) else {}
    )


def _name(key: tuple[int, int, int]) -> str:
    return "x".join(map(str, key))
