"""What this machine gives a model: the GPU's memory, RAM for pages of KV cache, and with them which engine it is."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from app.engine.batched.attention import PagedCache
from app.engine.batched.offload import HostPages
from app.engine.batched.start import shape_of, unsuitable
from app.engine.model.loading import bytes_in_four_bits, empty_model, has_gpu, leave_gpu, used_gpu_gib, why_no_gpu
from app.engine.model.memory import DRIVER, GIB, LEAST_TOKENS, LEFT_FREE, MemoryPlan, capped, plan
from app.engine.profiles import QWQ, ModelSpec
from app.errors import BadSetting, ModelUnavailable, first_line

# For the batched engine on a CPU, where memory is the computer's own
_CPU_BYTES = 3 * GIB
_MOST_RAM_GIB = 16.0
_log = logging.getLogger(__name__)


def free_gpu_bytes(cap_gib: float) -> int:
    """Free memory of the first CUDA GPU, taken as one of `cap_gib` if that is not 0; 0 where there is none."""
    if not has_gpu():
        return 0
    free, total = torch.cuda.mem_get_info()
    return max(0, capped(free, total, cap_gib))


def cap_gpu(cap_gib: float, left_bytes: int = 0) -> None:
    """Have this process take no more of the GPU than a card of `cap_gib` has, and leave so much of it free.

    What torch keeps for later is given back before anything fails. 0 GiB is the card as it is.
    """
    if has_gpu():
        _, total = torch.cuda.mem_get_info()
        most = free_gpu_bytes(cap_gib) + torch.cuda.memory_reserved() - left_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.01, most / total)))


def take_gpu(cap_gib: float, *, is_optional: bool) -> float:
    """Have this process stay within a card of `cap_gib`; GiB that are free, 0 where there is no GPU.

    One that cannot be used, because other programs have all of its memory, is left alone where it `is_optional`.
    """
    try:
        cap_gpu(cap_gib)
        return free_gpu_bytes(cap_gib) / GIB
    except RuntimeError as error:
        if not is_optional:
            raise
        leave_unusable_gpu(error)
        return 0.0


def leave_unusable_gpu(error: Exception) -> None:
    """Go on without the GPU that gave this error."""
    leave_gpu(f"the one here cannot be used ({first_line(error).rstrip('.')})")


def window_alone(spec: ModelSpec, config: PretrainedConfig, window: int, cap_gib: float) -> int:
    """The most tokens of a sequence that is written alone on this machine; at most `window`."""
    if not has_gpu() or unsuitable(config):
        return window
    try:
        return expected_plan(spec, config, window, cap_gib).window
    except ModelUnavailable:
        # The plan for many has reserves that one does not need
        return min(LEAST_TOKENS, window)


def why_not_batched(config: PretrainedConfig, setting: str) -> str:
    """Why this model is written for one person at a time here; empty if it is not.

    Raises:
        BadSetting: it cannot be batched and the setting wants it to be.
    """
    if setting == "local":
        return "PONDER_ENGINE says so"
    if setting == "careful":
        return "the process before this one ended while it prepared"
    problem = unsuitable(config)
    if problem and setting == "batched":
        raise BadSetting(f"PONDER_ENGINE=batched cannot be used with this model: {problem}. Use auto.")
    if not problem and setting == "auto" and not has_gpu():
        return f"no CUDA GPU is used: {why_no_gpu()[0]}"
    return problem


def why_demo(free_gib: float) -> str:
    """Why PONDER_MODEL=auto is the demo model here."""
    if not has_gpu():
        return f"{QWQ.title} needs a CUDA GPU"
    return f"{QWQ.title} needs {QWQ.least_gpu_gib:g} GiB of free GPU memory and {free_gib:.1f} GiB are free"


def explained(error: Exception) -> ModelUnavailable:
    """What went wrong while loading, as a sentence with a remedy, where no better one was found on the way."""
    said = first_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        used, whole = used_gpu_gib()
        return ModelUnavailable(
            f"The GPU's memory is full: {used:.1f} of {whole:.1f} GiB are in use.",
            remedy="End other programs on the GPU (nvidia-smi lists them), or choose a smaller model.",
        )
    if "CUDA error" in said:
        return ModelUnavailable(
            f"The GPU cannot be used: {said}.",
            remedy=(
                'nvidia-smi shows whether another program holds it; "no kernel image" means that torch is not built '
                "for a card of its age. CUDA_VISIBLE_DEVICES= with PONDER_MODEL=demo goes without it."
            ),
        )
    return ModelUnavailable(
        f"The model could not be loaded ({type(error).__name__}: {said}).",
        remedy="The log says more. PONDER_MODEL chooses another model.",
    )


def expected_plan(spec: ModelSpec, config: PretrainedConfig, window: int, cap_gib: float) -> MemoryPlan:
    """The plan before anything is loaded.

    Raises:
        ModelUnavailable: it will not fit.
    """
    is_four_bit = spec.is_four_bit or getattr(config, "quantization_config", None) is not None
    model = empty_model(config, torch.bfloat16 if has_gpu() else torch.float32)
    weight_bytes = bytes_in_four_bits(model) if is_four_bit else None
    shape = shape_of(model, weight_bytes=weight_bytes, is_four_bit=is_four_bit)
    free = free_gpu_bytes(cap_gib) if has_gpu() else _CPU_BYTES + shape.weight_bytes
    return plan(shape, free_bytes=free, window=window, title=spec.title)


def plan_for(spec: ModelSpec, model: PreTrainedModel, window: int, cap_gib: float) -> MemoryPlan:
    """The plan with the weights in their place, from what is free beside them.

    Raises:
        ModelUnavailable: nothing is left to work with.
    """
    shape = shape_of(model)
    if model.device.type != "cuda":
        return plan(shape, free_bytes=_CPU_BYTES + shape.weight_bytes, window=window, title=spec.title)
    torch.cuda.empty_cache()
    shape = replace(shape, weight_bytes=torch.cuda.memory_reserved())
    cap_gpu(cap_gib, LEFT_FREE + DRIVER)
    return plan(shape, free_bytes=free_gpu_bytes(cap_gib) + shape.weight_bytes, window=window, title=spec.title)


def pages_in_ram(cache: PagedCache, setting: str) -> HostPages | None:
    """Room in RAM for pages of KV cache: so many GiB, or a quarter of what is free, 16 GiB at most; None for none."""
    if setting == "auto":
        gib = min(_MOST_RAM_GIB, free_ram_bytes() / 4 / GIB) if cache.keys[0].is_cuda else 0.0
    else:
        gib = float(setting)
    store = HostPages(cache, int(gib * GIB))
    if not store.total:
        return None
    _log.info("%.1f GiB of RAM for pages of KV cache", store.total * store.page_bytes / GIB)
    return store


def free_ram_bytes() -> int:
    """What programs may still take of this machine's memory, or of this container's."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 0
    try:
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        return max(0, min(free, most - int((group / "memory.current").read_text())))
    except (OSError, ValueError):
        return free  # no container, or none with a limit
