"""CUDA source to a loaded kernel: NVRTC, which torch brings, a cache of what it built, and the driver.

Everything goes through ctypes beside torch's own context. A build is kept under a name made of source, options and
architecture.
"""

import ctypes
import glob
import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent
_CODE_FLOATS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_SHARED_MEMORY_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_DEPENDENT_LAUNCH = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class CannotCompile(Exception):
    """There is no NVRTC, or it refuses the source; the message says what it said."""


def sources() -> str:
    """All there is to compile."""
    return _source("kernels.cu") + _source("wide.cu")


@cache
def _source(name: str) -> str:
    """A file of kernels with the values of NF4 in it."""
    bits = ", ".join(str(_bf16_bits(value)) for value in _CODE_FLOATS)
    floats = ", ".join(f"{value!r}f" for value in _CODE_FLOATS)
    return (_FOLDER / name).read_text().replace("{CODES}", f"{{{bits}}}").replace("{FLOATS}", f"{{{floats}}}")


def compiled(defines: Sequence[str], architecture: str, folder: Path | None = None) -> bytes:
    """The machine code of one variant for an architecture such as "sm_90"; from `folder` if it is there.

    Raises:
        CannotCompile: NVRTC is missing or refuses.
    """
    # wgmma is of one generation alone, which the "a" says
    name, suffix = ("wide.cu", "a") if "WIDE" in defines else ("kernels.cu", "")
    options = [
        f"--gpu-architecture={architecture}{suffix}",
        "--std=c++17",
        "--device-as-default-execution-space",
        *(f"-D{define}" for define in defines),
    ]
    key = hashlib.sha256("\0".join((_source(name), *options)).encode()).hexdigest()[:24]
    kept = folder / f"nf4-{key}.cubin" if folder is not None else None
    if kept is not None and kept.exists():
        return kept.read_bytes()
    made = _compile(name, options)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(dir=kept.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(made)
        os.replace(half, kept)
    return made


def _compile(name: str, options: Sequence[str]) -> bytes:
    library = _nvrtc()
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), _source(name).encode(), name.encode(), 0, None, None)
    given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    try:
        failed = library.nvrtcCompileProgram(program, len(options), given)
        if failed:
            raise CannotCompile(_read(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace"))
        return _read(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(program: ctypes.c_void_p, size_of: str, content_of: str) -> bytes:
    library, size = _nvrtc(), ctypes.c_size_t()
    getattr(library, size_of)(program, ctypes.byref(size))
    content = ctypes.create_string_buffer(size.value)
    getattr(library, content_of)(program, content)
    return content.raw


@cache
def _nvrtc() -> Any:
    found = [
        path
        for folder in sys.path
        for path in sorted(glob.glob(os.path.join(folder, "nvidia", "*", "lib", "libnvrtc.so.1*")))
        if "alt" not in path and "builtins" not in path
    ]
    for path in [*found, "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            for builtins in glob.glob(os.path.join(os.path.dirname(path), "libnvrtc-builtins.so*")):
                ctypes.CDLL(builtins, ctypes.RTLD_GLOBAL)  # opened by its name later on
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise CannotCompile("NVRTC, which comes with torch for CUDA, is not installed")


class _Attribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int * 16))


class _Launch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint) for name in ("gx", "gy", "gz", "bx", "by", "bz", "shared")),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


class Kernel:
    """One loaded variant. Launches go to torch's current stream, and may be recorded in a CUDA graph."""

    def __init__(self, code: bytes, shared_bytes: int) -> None:
        self._code = code  # the driver reads it while the module lives
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(_driver().cuModuleLoadData(ctypes.byref(module), code))
        _check(_driver().cuModuleGetFunction(ctypes.byref(self._function), module, b"nf4"))
        _check(_driver().cuFuncSetAttribute(self._function, _SHARED_MEMORY_BYTES, shared_bytes))
        self._attribute = _Attribute(_DEPENDENT_LAUNCH, 0)
        self._attribute.value[0] = 1

    def launch(
        self, grid: int, threads: int, shared: int, stream: int, arguments: Sequence[Any], *, is_early: bool
    ) -> None:
        """Launch with ctypes values; `is_early` lets it begin while the kernel before it ends."""
        pointers = (ctypes.c_void_p * len(arguments))(
            *(ctypes.cast(ctypes.pointer(argument), ctypes.c_void_p) for argument in arguments)
        )
        attributes = ctypes.pointer(self._attribute)
        how = _Launch(grid, 1, 1, threads, 1, 1, shared, stream, attributes, int(is_early))
        _check(_driver().cuLaunchKernelEx(ctypes.byref(how), self._function, pointers, None))


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA driver error {code}")


def _bf16_bits(value: float) -> int:
    import struct

    bits = int(struct.unpack("<I", struct.pack("<f", value))[0])
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
