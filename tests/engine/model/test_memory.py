import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.model.memory import CARDS_GIB, GIB, LEFT_FREE, PAGE_TOKENS, ModelShape, capped, plan
from app.errors import ModelUnavailable

QWQ = ModelShape(
    layers=64,
    hidden=5120,
    intermediate=27648,
    heads=40,
    kv_heads=8,
    head_width=128,
    vocabulary=152064,
    weight_bytes=int(17.91 * GIB),
    is_four_bit=True,
)


@given(free=st.floats(16, 200), window=st.sampled_from([2048, 32768, 131072]))
def test_a_plan_never_gives_out_more_than_there_is(free: float, window: int) -> None:
    try:
        found = plan(QWQ, free_bytes=int(free * GIB), window=window)
    except ModelUnavailable:
        assert free < 22
        return
    assert found.weight_bytes + found.scratch_bytes + found.kv_bytes <= free * GIB - LEFT_FREE
    assert found.kv_bytes == found.pages * PAGE_TOKENS * QWQ.token_bytes
    assert found.window <= min(window, found.kv_tokens)
    assert found.rows & (found.rows - 1) == 0
    assert found.rows == 1 or found.rows * 2048 <= found.kv_tokens


def test_more_memory_is_never_worse() -> None:
    plans = [plan(QWQ, free_bytes=gib * GIB, window=32768) for gib in range(22, 140, 2)]
    for smaller, larger in itertools.pairwise(plans):
        assert smaller.rows <= larger.rows
        assert smaller.window <= larger.window


def test_a_card_of_24_gib_holds_12_thousand_tokens_and_stays_below_23() -> None:
    found = plan(QWQ, free_bytes=int(CARDS_GIB["24 GB"] * GIB) - GIB // 2, window=32768)
    assert found.kv_tokens >= 12_288
    assert found.rows >= 4
    assert GIB // 2 + found.weight_bytes + found.scratch_bytes + found.kv_bytes <= 23 * GIB


def test_what_cannot_fit_is_refused_with_what_would() -> None:
    with pytest.raises(ModelUnavailable) as refused:
        plan(QWQ, free_bytes=18 * GIB, window=32768, title="QwQ-32B")
    assert "QwQ-32B needs 21.0 GiB" in refused.value.message
    assert "18.0 GiB are free" in refused.value.message
    remedy = str(refused.value.details["remedy"])
    for card in ("24 GB", "32 GB", "48 GB", "80 GB", "141 GB"):
        assert card in remedy
    assert "PONDER_MODEL=demo" in remedy


def test_what_fits_no_card_says_so() -> None:
    giant = ModelShape(80, 8192, 28672, 64, 8, 128, 128256, 800 * GIB)
    with pytest.raises(ModelUnavailable) as refused:
        plan(giant, free_bytes=24 * GIB, window=32768)
    assert "none of up to 141 GB" in str(refused.value.details["remedy"])


def test_a_capped_card_has_what_a_smaller_one_would_have() -> None:
    assert capped(100 * GIB, 140 * GIB, 0) == 100 * GIB
    assert capped(139 * GIB, 140 * GIB, 24) == 23 * GIB
    assert capped(20 * GIB, 24 * GIB, 48) == 20 * GIB
