"""Puts our layers into a loaded model: layer by layer, so that no second copy of it is ever there.

q, k and v, and gate and up, are joined where a layer has them; each of them stays a layer of its own too, over its part
of the same memory, so that the model's own forward works as before.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from app.engine.batched.nf4.layout import ROWS, Matrix, fits, packed
from app.engine.batched.nf4.linear import MOST_ROWS, Joined, Kernels, Nf4Linear, tiles_for
from app.engine.batched.nf4.tuning import tune

_JOINED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# A bf16 output rounds by 1.7e-3; the table's own values are bf16 too
_MOST_ERROR = 4e-3
_TESTED_ROWS = (1, 3, 8, 11, 16, 25, 32, 50, 64, 100, 128)
_log = logging.getLogger(__name__)


def repack(model: PreTrainedModel, folder: Path | None, tell: Callable[[float], None]) -> tuple[dict[Any, Joined], str]:
    """Replace the model's 4-bit layers; what is joined by the module that has it, and why nothing was (or "").

    The first layer of each shape is compared with bitsandbytes before anything is replaced.
    """
    why = _unsuitable(model)
    if why:
        return {}, why
    from bitsandbytes.nn.modules import Linear4bit

    try:
        kernels = Kernels(model.device, folder)
        problem = _compared(model, kernels)
    except Exception as error:  # NVRTC, the driver, a launch: the model is as it was
        problem = f"{type(error).__name__}: {error}"
    if problem:
        return {}, problem
    joined: dict[Any, Joined] = {}
    parents = [module for module in model.modules() if any(isinstance(one, Linear4bit) for one in module.children())]
    for number, parent in enumerate(parents):
        names = [name for name, child in parent.named_children() if isinstance(child, Linear4bit)]
        for group in _JOINED:
            if all(name in names for name in group):
                joined[parent] = _join(parent, group, kernels)
                names = [name for name in names if name not in group]
        for name in names:
            layer = getattr(parent, name)
            setattr(parent, name, Nf4Linear(_matrix_of([layer]), kernels))
            _release(layer)
        tell((number + 1) / len(parents))
    torch.cuda.empty_cache()
    return joined, ""


def _unsuitable(model: PreTrainedModel) -> str:
    """Why the model's 4-bit layers are left to bitsandbytes; "" for no reason."""
    if model.device.type != "cuda":
        return "there is no CUDA GPU"
    try:
        from bitsandbytes.nn.modules import Linear4bit
    except ImportError:
        return "there are no 4-bit layers"
    layers: list[Any] = [module for module in model.modules() if isinstance(module, Linear4bit)]
    if not layers:
        return "there are no 4-bit layers"
    if torch.cuda.get_device_capability(model.device) < (9, 0):
        return "our kernels were not built for this generation of GPU"
    if any(layer.weight.quant_state.quant_type != "nf4" for layer in layers):
        return "the weights are not in NF4"
    if any(not layer.weight.quant_state.nested for layer in layers):
        return "the scales are not quantized twice"
    states = [layer.weight.quant_state for layer in layers]
    if any(state.blocksize != 64 or state.state2.blocksize != 256 or state.dtype != torch.bfloat16 for state in states):
        return "the blocks have another size, or the layers another type"
    if any(not fits(*state.shape) for state in states):
        return "a matrix has an odd shape"
    return ""


def _matrix_of(layers: Sequence[Any]) -> Matrix:
    """bitsandbytes' layers with one input as one matrix; they must share `code`, which all of its matrices do."""
    states = [layer.weight.quant_state for layer in layers]
    records = torch.cat(
        [
            packed(layer.weight.data.view(-1), state.absmax, *state.shape)
            for layer, state in zip(layers, states, strict=True)
        ]
    )
    offsets = torch.cat(
        [
            torch.full((state.shape[0] // ROWS,), float(state.offset), dtype=torch.float32, device=records.device)
            for state in states
        ]
    )
    biases = [layer.bias for layer in layers]
    bias = None
    if any(one is not None for one in biases):
        bias = torch.cat(
            [
                torch.zeros(state.shape[0], dtype=torch.bfloat16, device=records.device)
                if one is None
                else one.data.bfloat16()
                for one, state in zip(biases, states, strict=True)
            ]
        )
    scales = torch.cat([state.state2.absmax.float() for state in states])
    return Matrix(records, scales, offsets, states[0].state2.code.float(), bias)


def _join(parent: Any, names: Sequence[str], kernels: Kernels) -> Joined:
    layers = [getattr(parent, name) for name in names]
    sizes = tuple(int(layer.weight.quant_state.shape[0]) for layer in layers)
    matrix = _matrix_of(layers)
    first = 0
    for name, size in zip(names, sizes, strict=True):
        setattr(parent, name, Nf4Linear(matrix.part(first, size), kernels))
        first += size
    for layer in layers:
        _release(layer)
    return Joined(Nf4Linear(matrix, kernels), sizes)


def _release(layer: Any) -> None:
    """Give the memory of a replaced layer back at once: bitsandbytes' layers and weights refer to each other."""
    layer.weight.data = torch.empty(0, dtype=torch.uint8, device=layer.weight.device)
    layer.weight.quant_state = layer.quant_state = layer.bias = None


@torch.inference_mode()
def _compared(model: PreTrainedModel, kernels: Kernels) -> str:
    """Hold our kernels against bitsandbytes on the first layer of each shape; what is wrong, or ""."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    tested: dict[tuple[int, int], tuple[Matrix, torch.Tensor, str]] = {}
    for parent in model.modules():
        children: dict[str, Any] = {name: one for name, one in parent.named_children() if isinstance(one, Linear4bit)}
        groups = [group for group in _JOINED if all(name in children for name in group)]
        for names in (*groups, *((name,) for name in children)):
            layers = [children[name] for name in names]
            shapes = [layer.weight.quant_state.shape for layer in layers]
            if (sum(shape[0] for shape in shapes), shapes[0][1]) in tested:
                continue
            matrix = _matrix_of(layers)
            truth = torch.cat([dequantize_4bit(one.weight.data, one.weight.quant_state) for one in layers])
            tested[matrix.rows, matrix.columns] = (matrix, truth, " and ".join(names))
    tune(kernels, [matrix for matrix, _, _ in tested.values()])
    for matrix, truth, name in tested.values():
        if problem := _against(Nf4Linear(matrix, kernels), truth):
            return f"{name}: {problem}"
    return ""


def _against(layer: Nf4Linear, truth: torch.Tensor) -> str:
    """Compare a layer with its matrix as bitsandbytes unpacks it."""
    found = layer.dequantized()
    if not torch.equal(found, truth):
        return "unpacking gives other weights than bitsandbytes"
    generator = torch.Generator(truth.device).manual_seed(0)
    told = torch.randn((MOST_ROWS, layer.in_features), device=truth.device, generator=generator).bfloat16()
    exact = told.float() @ truth.float().T
    if layer.matrix.bias is not None:
        exact += layer.matrix.bias.float()
    for rows in _TESTED_ROWS:
        if layer.kernels.chosen(layer.out_features, layer.in_features, tiles_for(rows)) is None:
            continue
        ours = layer(told[:rows]).float()
        error = float((ours - exact[:rows]).norm() / exact[:rows].norm())
        if not error <= _MOST_ERROR:
            return f"with {rows} rows our kernel differs by {error:.1e}"
    return ""
