"""A model's weights as a folder in 4 bits: each start then reads a quarter of the bytes and quantizes nothing.

What is written is what the server would have made of the same weights: NF4 with double quantization, the embeddings
and the output head as they are.
"""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from app.engine.model import loading
from app.engine.model.memory import GIB
from app.engine.profiles import KNOWN, spec_for
from app.errors import BadSetting, ModelUnavailable

_SHARD_BYTES = "5GB"


def quantize(model: str, target: Path, tell: loading.Tell) -> int:
    """Load `model` (a known name, a Hub id or a folder) in 4 bits and write it to `target`; the bytes written.

    Nothing is left behind where it fails: the files are written beside `target` and take its place in one rename.

    Raises:
        BadSetting: the model or the target is not one for this.
        ModelUnavailable: it cannot be loaded, or there is no room for it; with what to do.
    """
    if model in ("auto", "demo"):
        raise BadSetting(f"--model cannot be {model}: name {_qwqs()}, a Hub id or a folder.")
    target = target.expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadSetting(f"{target} is there already. Name a folder that is not, or an empty one.")
    spec = replace(spec_for(model, 0.0), is_four_bit=True)
    config = loading.load_config(spec.source)
    if getattr(config, "quantization_config", None) is not None:
        raise BadSetting(f"{spec.source} is quantized already: start Ponder with PONDER_MODEL={model}.")
    tokenizer = loading.load_tokenizer(spec.source)
    _require_disk(target, loading.bytes_in_four_bits(loading.empty_model(config)))
    weights = loading.load_model(spec, spec.source, config, tell)
    tell("Writing", None)
    with _in_one_piece(target) as making:
        weights.save_pretrained(making, max_shard_size=_SHARD_BYTES)
        tokenizer.save_pretrained(making)
        return sum(file.stat().st_size for file in making.iterdir())


def _qwqs() -> str:
    return " or ".join(name for name, spec in KNOWN.items() if spec.is_four_bit)


def _require_disk(target: Path, needed: int) -> None:
    place = next(folder for folder in target.parents if folder.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ModelUnavailable(
            f"The weights in 4 bits need {needed / GIB:.1f} GiB, and {free / GIB:.1f} GiB are free in {place}.",
            remedy="Make room there, or name a folder on another disk.",
        )


class _in_one_piece:
    """A folder beside the target that becomes it at the end, or goes away."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> Path:
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._making = Path(tempfile.mkdtemp(prefix=f".{self._target.name}-", dir=self._target.parent))
        return self._making

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            shutil.rmtree(self._making, ignore_errors=True)
            # safetensors says a full disk with an error of its own, which is no OSError
            if isinstance(error, OSError) or "os error" in str(error):
                raise ModelUnavailable(
                    f"{self._target} could not be written: {error}",
                    remedy="Make room there, or name a folder on another disk.",
                ) from error
            return
        # mkdtemp makes folders for their owner alone; others may serve this one
        umask = os.umask(0)
        os.umask(umask)
        self._making.chmod(0o777 & ~umask)
        self._making.rename(self._target)
