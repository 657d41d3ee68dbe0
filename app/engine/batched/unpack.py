"""4-bit linear layers for many tokens: unpack the matrix, multiply, with little Python between.

bitsandbytes does just that for so many tokens, by a function behind its module, an autograd function, a registered
operator and the guards of `torch.library`. In a pass of 64 layers these take longer than the GPU needs, and whoever
writes meanwhile waits for them. So that function is called itself; where a version does not have it, nothing changes.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

# Up to so many tokens bitsandbytes may multiply without unpacking, which is quicker
MANY = 129


class UnpackedLinear:
    """One `Linear4bit`. `multiply` is bitsandbytes' own way to unpack a matrix and multiply with it."""

    def __init__(self, layer: Any, multiply: Callable[..., torch.Tensor]) -> None:
        state = layer.weight.quant_state
        scales: dict[str, Any] = {"absmax": state.absmax}
        if state.nested:
            scales = {
                "absmax": state.state2.absmax,
                "absmax_8bit": state.absmax,
                "absmax_code": state.state2.code,
                "absmax_offset": state.offset,
            }
        self._multiply = multiply
        self._told = {
            "B": layer.weight.view(-1, 1),
            "shapeB": state.shape,
            "blocksize": state.blocksize,
            "quant_type": state.quant_type,
            "bias": layer.bias,
            **scales,
        }

    def __call__(self, told: torch.Tensor) -> torch.Tensor:
        """`told` of shape (tokens, in features); the result (tokens, out features)."""
        return self._multiply(told, **self._told)


def unpacked_layers(model: PreTrainedModel) -> dict[torch.nn.Module, UnpackedLinear]:
    """The model's 4-bit layers that can be taken this way; none where there is no CUDA GPU."""
    if model.device.type != "cuda":
        return {}
    try:
        from bitsandbytes.backends.cuda.ops import _dequant_linear_fallback as multiply
        from bitsandbytes.nn.modules import Linear4bit
    except (ImportError, AttributeError):
        return {}
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, Linear4bit)]
    # Nested scales come in blocks of 256 there
    return {
        layer: UnpackedLinear(layer, multiply)
        for layer in layers
        if not layer.weight.quant_state.nested or layer.weight.quant_state.state2.blocksize == 256
    }
