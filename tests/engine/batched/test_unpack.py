from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from app.engine.batched.unpack import UnpackedLinear, unpacked_layers
from tests.engine.tiny import tiny_model


def multiply(
    A: torch.Tensor,
    B: torch.Tensor,
    shapeB: Any,
    absmax: torch.Tensor,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """What bitsandbytes' own function is told on a GPU, by its public operators."""
    if absmax_8bit is not None:
        told = (absmax_8bit, absmax, absmax_code, 256, torch.float32)
        absmax = torch.ops.bitsandbytes.dequantize_blockwise.default(*told) + absmax_offset
    unpacked = torch.ops.bitsandbytes.dequantize_4bit.default(B, absmax, blocksize, quant_type, shapeB, A.dtype)
    return torch.nn.functional.linear(A, unpacked, bias)


@pytest.mark.parametrize("is_nested", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_layer_is_told_as_bitsandbytes_tells_it(is_nested: bool, has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(192, 320, bias=has_bias, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(
        torch.randn(320, 192), requires_grad=False, quant_type="nf4", compress_statistics=is_nested, module=layer
    ).to("cpu")
    assert layer.weight.quant_state.nested == is_nested
    told = torch.randn(150, 192)
    with torch.inference_mode():
        torch.testing.assert_close(UnpackedLinear(layer, multiply)(told), layer(told), atol=1e-4, rtol=1e-4)


def test_without_a_gpu_everything_stays_as_it_is() -> None:
    assert unpacked_layers(tiny_model()) == {}
