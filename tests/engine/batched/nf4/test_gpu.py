"""Our NF4 kernels on a CUDA GPU: `pytest --noconftest -m gpu tests/engine/batched/nf4/test_gpu.py`."""

from typing import Any

import pytest
import torch

from app.engine.batched.nf4 import wide
from app.engine.batched.nf4.layout import Matrix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    pytest.mark.filterwarnings("default"),
]
QWQ = [(7168, 5120), (5120, 5120), (55296, 5120), (5120, 27648), (1024, 5120), (27648, 5120)]
RAGGED = [(256, 1024), (1024, 256), (2048, 2048), (272, 1024), (5120, 1280)]
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 50, 64, 65, 100, 127, 128]
MOST_ERROR = 4e-3


def layer_of(rows: int, columns: int, *, has_bias: bool) -> Any:
    """bitsandbytes' own layer with random weights."""
    import bitsandbytes as bnb

    weight = torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda") * 0.02
    made: Any = bnb.nn.Linear4bit(columns, rows, bias=has_bias, compute_dtype=torch.bfloat16, quant_type="nf4")
    made.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cuda")
    if has_bias:
        made.bias = torch.nn.Parameter(torch.randn(rows, dtype=torch.bfloat16, device="cuda"), requires_grad=False)
    return made


def packed_and_exact(rows: int, columns: int, *, has_bias: bool = False) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """Our layer, an input of 128 rows, and the exact result."""
    from bitsandbytes.functional import dequantize_4bit

    from app.engine.batched.nf4.linear import Kernels, Nf4Linear
    from app.engine.batched.nf4.repack import _matrix_of

    theirs = layer_of(rows, columns, has_bias=has_bias)
    matrix: Matrix = _matrix_of([theirs])
    told = torch.randn(128, columns, device="cuda").bfloat16()
    exact = told.double() @ dequantize_4bit(theirs.weight.data, theirs.weight.quant_state).double().T
    return (
        Nf4Linear(matrix, Kernels(torch.device("cuda", 0))),
        told,
        exact + theirs.bias.double() if has_bias else exact,
    )


@pytest.mark.parametrize(("rows", "columns"), QWQ + RAGGED)
@torch.inference_mode()
def test_every_shape_and_number_of_rows_is_right_and_gives_the_same_bits_again(rows: int, columns: int) -> None:
    torch.manual_seed(rows + columns)
    ours, told, exact = packed_and_exact(rows, columns, has_bias=rows % 1024 == 0)
    for count in ROWS:
        given = ours(told[:count])
        error = float((given.double() - exact[:count]).norm() / exact[:count].norm())
        assert error <= MOST_ERROR, (count, error)
        assert torch.equal(given, ours(told[:count]))


@pytest.mark.parametrize(("rows", "columns"), QWQ)
@torch.inference_mode()
def test_up_to_eight_rows_a_row_does_not_depend_on_the_others(rows: int, columns: int) -> None:
    ours, told, _ = packed_and_exact(rows, columns)
    together = ours(told[:8])
    for count in range(1, 9):
        assert torch.equal(ours(told[:count]), together[:count])
    assert torch.equal(ours(told[3:4])[0], together[3])


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="it is of Hopper alone"
)
@pytest.mark.parametrize(("rows", "columns"), QWQ + RAGGED)
@torch.inference_mode()
def test_every_form_for_many_rows_is_right_wherever_it_fits(rows: int, columns: int) -> None:
    ours, told, exact = packed_and_exact(rows, columns, has_bias=rows % 1024 == 0)
    kernels = ours.kernels
    for tiles in (2, 4, 8, 16):
        for variant in wide.candidates(rows, columns, tiles, kernels.processors, kernels.most_shared):
            for count in (8 * tiles, 8 * tiles - 5, 1):
                out = torch.full((count, rows), torch.nan, dtype=torch.bfloat16, device="cuda")
                kernels.multiply(told[:count], ours.matrix, out, variant)
                error = float((out.double() - exact[:count]).norm() / exact[:count].norm())
                assert error <= MOST_ERROR, (variant, count, error)
    assert int(kernels.counters.count_nonzero()) == 0


@torch.inference_mode()
def test_unpacking_gives_bitsandbytes_weights_bit_for_bit() -> None:
    from bitsandbytes.functional import dequantize_4bit

    from app.engine.batched.nf4.linear import Kernels, Nf4Linear
    from app.engine.batched.nf4.repack import _matrix_of

    theirs = layer_of(1024, 2048, has_bias=False)
    ours = Nf4Linear(_matrix_of([theirs]), Kernels(torch.device("cuda", 0)))
    assert torch.equal(ours.dequantized(), dequantize_4bit(theirs.weight.data, theirs.weight.quant_state))


@torch.inference_mode()
def test_a_model_is_repacked_in_its_own_memory_and_computes_what_it_did() -> None:
    from app.engine.batched.nf4.repack import repack
    from bench.gpu import built
    from bench.gpu_smoke import QWQ_SHAPE

    model = built(QWQ_SHAPE | {"vocab_size": 320}, 2)
    ids = torch.randint(0, 255, (1, 40), device="cuda")
    before = model(ids).logits.float()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    joined, why = repack(model, None, lambda _: None)
    assert why == ""
    assert len(joined) == 4
    # Beside the weights there are the kernels' workspace and offsets
    assert torch.cuda.memory_allocated() < 1.01 * held + (80 << 20)
    after = model(ids).logits.float()
    assert float((after - before).norm() / before.norm()) < 0.05


@torch.inference_mode()
def test_fp4_and_plain_scales_are_left_to_bitsandbytes() -> None:
    import bitsandbytes as bnb

    from app.engine.batched.nf4.repack import repack
    from bench.gpu import built
    from bench.gpu_smoke import TINY_SHAPE

    model = built(TINY_SHAPE, 1)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight.quant_state.quant_type = "fp4"
    joined, why = repack(model, None, lambda _: None)
    assert not joined
    assert "NF4" in why
