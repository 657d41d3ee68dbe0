"""The files of a model in a folder: are they there, whole, and of one model? The first that is not is named.

Knows no torch: a safetensors file begins with a JSON header that has each tensor's shape and place.
"""

import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from app.errors import ModelUnavailable

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    INDEX,
)
_TEMPLATE = "chat_template.jinja"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a safetensors file has it."""

    file: Path
    shape: tuple[int, ...]
    size_bytes: int


def check_folder(source: str) -> None:
    """The files in a folder can be read and are whole; Hub ids are checked by the Hub.

    Raises:
        ModelUnavailable: one is not; names it.
    """
    folder = Path(source)
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")):
            raise ModelUnavailable(
                f"There is no folder {source}.", remedy="Set PONDER_MODEL to a folder that exists, or to a Hub id."
            )
        return
    if not (folder / "config.json").exists():
        raise ModelUnavailable(
            f"{folder} has no config.json, so it is no model.", remedy="Set PONDER_MODEL to the folder that holds it."
        )
    for name in _JSON_FILES:
        if (folder / name).exists():
            _read_json(folder / name)
    if (folder / _TEMPLATE).exists():
        _refuse_pointer(folder / _TEMPLATE)
    for file in weight_files(folder):
        tensors_in(file)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers will read; beside these may lie the same weights in another layout.

    Raises:
        ModelUnavailable: there are none, or not all that the index names.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise _no_weights(folder)
    names = sorted(set(_places(folder).values()))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelUnavailable(
                f"The file {folder / INDEX} names {name}, which is outside of its folder.",
                remedy="Use the index file that belongs to the model.",
            )
        if not (folder / name).exists():
            raise _broken(folder / name, "is missing")
    return [folder / name for name in names]


def tensors_in(file: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds by its header.

    Raises:
        ModelUnavailable: it is no such file, or not as long as its header says.
    """
    size = file.stat().st_size
    tensors: dict[str, StoredTensor] = {}
    with file.open("rb") as opened:
        head = opened.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            _refuse_pointer(file)
            raise _broken(file, "is no safetensors file, or is cut off")
        header = opened.read(length)
    end = 0
    try:
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                tensors[name] = StoredTensor(file, tuple(entry["shape"]), stop - start)
                end = max(end, stop)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(file, "is no safetensors file") from error
    if 8 + length + end != size:
        raise _broken(file, "is cut off")
    return tensors


def require_tensors(folder: Path, needed: Mapping[str, tuple[int, ...]], may_lack: Collection[str]) -> None:
    """The files hold the tensors that the model needs, in its shapes. `may_lack` are not missed.

    transformers fills what is missing with random numbers, and quantizes a linear layer of any shape.

    Raises:
        ModelUnavailable: one is missing or has another shape; names it and its file.
    """
    found = {name: tensor for file in weight_files(folder) for name, tensor in tensors_in(file).items()}
    for name, shape in needed.items():
        stored = found.get(name)
        if stored is None or stored.shape == shape or _is_packed(name, found, prod(shape)):
            continue
        raise ModelUnavailable(
            f"The file {stored.file} is of another model than {folder / 'config.json'}: its tensor {name} has the "
            f"shape {stored.shape} and {shape} is needed.",
            remedy="Put the files of one model into a folder of their own.",
        )
    missing = [name for name in needed if name not in found and name not in may_lack]
    # With names of its own a checkpoint may be one that transformers renames; what it then misses is told after loading
    if missing and not any(_is_foreign(name, needed) for name in found):
        raise lacking(str(folder), missing, _places(folder) if (folder / INDEX).exists() else {})


def lacking(source: str, names: Collection[str], places: Mapping[str, str] | None = None) -> ModelUnavailable:
    """The error for tensors that no file has."""
    first = min(names)
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    place = (places or {}).get(first)
    where = f"The file {source}/{place}, where the index has it," if place else source
    return ModelUnavailable(
        f"{where} lacks the tensor {first}{more}, so the model would answer at random.",
        remedy="Download or copy all of the model's files again, then start Ponder again.",
    )


def _is_packed(name: str, found: Mapping[str, StoredTensor], weights: int) -> bool:
    """Two weights a byte, as bitsandbytes saves a linear layer."""
    is_four_bit = any(f"{name}.quant_state.bitsandbytes__{kind}" in found for kind in ("nf4", "fp4"))
    return is_four_bit and found[name].size_bytes == (weights + 1) // 2


def _is_foreign(name: str, needed: Mapping[str, tuple[int, ...]]) -> bool:
    weight, dot, _ = name.rpartition(".weight.")
    return name not in needed and not (dot and f"{weight}.weight" in needed)


def _places(folder: Path) -> dict[str, str]:
    """Which file has which tensor, by the index."""
    index = _read_json(folder / INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise _broken(folder / INDEX, "does not say which file has which tensor")
    return places


def _read_json(file: Path) -> dict[str, object]:
    text = file.read_bytes()
    try:
        read = json.loads(text)
    except ValueError as error:
        _refuse_pointer(file)
        raise _broken(file, "is no JSON, or is cut off") from error
    if not isinstance(read, dict):
        raise _broken(file, "holds no JSON object")
    return read


def _refuse_pointer(file: Path) -> None:
    with file.open("rb") as opened:
        is_pointer = opened.read(len(_LFS_POINTER)) == _LFS_POINTER
    if is_pointer:
        raise ModelUnavailable(
            f"The file {file} is a git-lfs pointer: git fetched the file's name and not what is in it.",
            remedy=f"Run git lfs install and git lfs pull in {file.parent}, then start Ponder again.",
        )


def _no_weights(folder: Path) -> ModelUnavailable:
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards:
        return ModelUnavailable(
            f"{folder} has {shards[0].name} and no {INDEX}, which says what is in it.",
            remedy=f"Download {INDEX} of the same model into that folder.",
        )
    pickles = sorted(file for pattern in _PICKLES for file in folder.glob(pattern))
    if pickles:
        return ModelUnavailable(
            f"{folder} has its weights as {pickles[0].name} only, a pickle, which can hold a program; Ponder reads "
            "safetensors.",
            remedy="Download the model's safetensors files; most models on the Hub have them.",
        )
    return ModelUnavailable(
        f"{folder} has no weights: neither {WEIGHTS} nor {INDEX}.",
        remedy="Download all of the model's files into that folder.",
    )


def _broken(file: Path, what: str) -> ModelUnavailable:
    return ModelUnavailable(f"The file {file} {what}.", remedy="Download or copy it again, then start Ponder again.")
