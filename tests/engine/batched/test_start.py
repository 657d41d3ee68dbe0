import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from app.engine.batched import selftest, start
from app.engine.batched.graphs import joined_shapes
from app.engine.batched.pace import FIRST_TOKENS, MOST_STALL_S, Pace
from app.engine.batched.selftest import CannotBatch
from app.engine.batched.start import make_ready, runner_for, shape_of, unsuitable
from app.engine.host.hosting import (
    expected_plan,
    free_ram_bytes,
    take_gpu,
    why_demo,
    why_not_batched,
    window_alone,
)
from app.engine.model.loading import bytes_in_four_bits, empty_model
from app.engine.model.memory import LEAST_TOKENS, MemoryPlan
from app.engine.profiles import QWQ
from app.errors import BadSetting, ModelUnavailable
from tests.engine.tiny import pretend_gpu, tiny_model

PLAN = MemoryPlan(0, 0, 0, 40, 8, 512, 512, 16)
QWQ_CONFIG = Qwen2Config(
    vocab_size=152064,
    hidden_size=5120,
    intermediate_size=27648,
    num_hidden_layers=64,
    num_attention_heads=40,
    num_key_value_heads=8,
    max_position_embeddings=40960,
    tie_word_embeddings=False,
)


def told(*_: Any) -> None:
    """Nobody listens."""


def test_the_plain_way_is_ready_on_a_cpu_and_says_so() -> None:
    stages: list[str] = []
    runner = runner_for(tiny_model(), PLAN)
    ready = make_ready(runner, PLAN, lambda stage, _: stages.append(stage))
    assert ready.taken_back == []
    assert ready.way == (
        "8 at once, 624 tokens of KV cache, 512 for one; eager steps, the model's own modules, sdpa over gathered pages"
    )
    assert set(stages) == {"Testing the engine"}


def test_a_model_that_reads_something_else_our_way_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(tiny_model(), PLAN)
    read = runner.logits_of
    monkeypatch.setattr(runner, "logits_of", lambda pages, ids, last: read(pages, ids[::-1], last))
    with pytest.raises(CannotBatch, match="differs from the model's own way"):
        make_ready(runner, PLAN, told)


def test_a_model_that_raises_on_our_way_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(tiny_model(), PLAN)

    def raising(*_: Any) -> torch.Tensor:
        raise TypeError("unexpected keyword argument 'step'")

    monkeypatch.setattr(runner, "logits_of", raising)
    with pytest.raises(CannotBatch, match="unexpected keyword"):
        make_ready(runner, PLAN, told)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("gptj", {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512}),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_a_model_with_attention_of_its_own_is_not_batched(kind: str, shape: dict[str, int]) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](vocab_size=320, bos_token_id=1, eos_token_id=2, initializer_range=0.5, **shape)
    assert unsuitable(config) == ""
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(CannotBatch, match="2 of its 2 layers do not keep their keys in our pages"):
        make_ready(runner_for(model, PLAN), PLAN, told)


def test_a_decode_that_does_not_write_what_is_read_is_not_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """However far the plain way is off: nothing is held against it then."""
    runner = runner_for(tiny_model(), PLAN)
    decode = runner.decode_logits

    def forgetting(rows: int) -> torch.Tensor:
        runner.set_all_lengths(3)
        return decode(rows)

    monkeypatch.setattr(runner, "decode_logits", forgetting)
    with pytest.raises(CannotBatch, match="writing 4 rows differs from reading the same by"):
        make_ready(runner, PLAN, told)


def test_the_models_own_forward_is_compared_and_left_as_it_was() -> None:
    runner = runner_for(tiny_model(), PLAN)
    ours = runner.model.config._attn_implementation
    assert selftest.against_model(runner) == ""
    assert runner.model.config._attn_implementation == ours
    runner.give_back()
    assert runner.model.config._attn_implementation == "sdpa"
    runner.model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)  # type: ignore[operator]


def test_steps_that_were_recorded_wrong_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(tiny_model(), PLAN)
    plain = selftest.steps_of(runner, [1, 2, 8], [])
    assert selftest.recorded_problem(runner, [1, 2, 8], [], plain) == ""
    decode = runner.decode

    def wrong(rows: int) -> Any:
        if rows == 8:
            runner.set_next(7, 200, 3)
        return decode(rows)

    monkeypatch.setattr(runner, "decode", wrong)
    assert "log-probabilities differ" in selftest.recorded_problem(runner, [1, 2, 8], [], plain)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (MistralConfig(sliding_window=4096), "sees a window only"),
        (Qwen2Config(layer_types=["full_attention", "sliding_attention"], num_hidden_layers=2), "sliding_attention"),
        (QWQ_CONFIG, ""),
        (LlamaConfig(), ""),
    ],
)
def test_models_whose_attention_is_not_ours_are_told_by_their_configuration(config: Any, why: str) -> None:
    found = unsuitable(config)
    assert why in found
    assert bool(found) == bool(why)


def test_the_setting_decides_where_both_ways_can_be_gone() -> None:
    assert "PONDER_ENGINE says so" in why_not_batched(QWQ_CONFIG, "local")
    assert "no CUDA GPU" in why_not_batched(QWQ_CONFIG, "auto")
    assert why_not_batched(QWQ_CONFIG, "batched") == ""
    with pytest.raises(BadSetting, match="PONDER_ENGINE=batched"):
        why_not_batched(MistralConfig(sliding_window=4096), "batched")


def test_qwq_is_known_to_take_18_gib_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        from transformers import Qwen2ForCausalLM

        model = Qwen2ForCausalLM(QWQ_CONFIG)
    assert 17.8 < bytes_in_four_bits(model) / 2**30 < 18.0
    shape = shape_of(model)
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_width) == (64, 40, 8, 128)
    pretend_gpu(monkeypatch, 139.3, 139.8)
    assert expected_plan(QWQ, QWQ_CONFIG, 32768, 0).rows == 64
    assert expected_plan(QWQ, QWQ_CONFIG, 32768, 24).kv_tokens >= 12_000
    with pytest.raises(ModelUnavailable, match=r"QwQ-32B needs 2[01]\.\d GiB of free GPU memory"):
        expected_plan(QWQ, QWQ_CONFIG, 32768, 16)


def test_planning_leaves_the_configuration_as_it_was() -> None:
    config = Qwen2Config(vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, dtype="bfloat16")
    before = config.to_dict()
    assert empty_model(config, torch.float16).dtype == torch.float16
    assert config.to_dict() == before


def test_a_model_with_tied_embeddings_and_no_groups_is_planned_too() -> None:
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    shape = shape_of(LlamaForCausalLM(config))
    assert (shape.kv_heads, shape.element_bytes, shape.is_four_bit) == (4, 4, False)


def test_why_auto_is_the_demo_model_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_demo(0.0) == "QwQ-32B needs a CUDA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_demo(8.0) == "QwQ-32B needs 21 GiB of free GPU memory and 8.0 GiB are free"
    # Why it is the demo model says nothing of how that is written
    assert why_not_batched(LlamaConfig(), "auto") == ""


def test_a_gpu_that_cannot_be_used_is_left_alone_where_the_model_can_do_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full() -> object:
        raise torch.OutOfMemoryError("CUDA error: out of memory\nmore of it")

    pretend_gpu(monkeypatch, 22.5)
    assert take_gpu(0.0, is_optional=True) == 22.5
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    with pytest.raises(torch.OutOfMemoryError):
        take_gpu(0.0, is_optional=False)
    assert take_gpu(0.0, is_optional=True) == 0.0
    assert "the one here cannot be used (CUDA error: out of memory)" in why_not_batched(QWQ_CONFIG, "auto")


def test_who_is_written_alone_is_promised_no_more_than_the_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, 22.9)
    alone = window_alone(QWQ, QWQ_CONFIG, 32768, 0.0)
    assert 8192 < alone < 16384
    assert alone == expected_plan(QWQ, QWQ_CONFIG, 32768, 0.0).window
    pretend_gpu(monkeypatch, 20.8)
    assert window_alone(QWQ, QWQ_CONFIG, 32768, 0.0) == LEAST_TOKENS
    # What of its cache slides is not known here
    assert window_alone(QWQ, MistralConfig(sliding_window=4096), 32768, 0.0) == 32768


def test_this_machine_has_some_memory() -> None:
    assert free_ram_bytes() > 1 << 26


def test_what_triton_lacks_is_said_with_the_command_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "find_spec", lambda _: None)
    assert "not installed" in start.why_no_kernels()
    monkeypatch.setattr(start, "find_spec", lambda _: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda _: {"include": str(tmp_path)})
    assert start.why_no_kernels() == ""
    (tmp_path / "Python.h").unlink()
    assert "apt-get install gcc python3-dev" in start.why_no_kernels()
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "apt-get install gcc python3-dev" in start.why_no_kernels()


def test_pieces_are_as_long_as_others_can_wait() -> None:
    took_s = {1: 0.06, 128: 0.07, 256: 0.08, 512: 0.098, 1024: 0.16, 2048: 0.27}
    pace = Pace.of(took_s, 8192)
    assert 0.06 + 0.0001 * pace.tokens == pytest.approx(MOST_STALL_S, abs=0.01)
    for _ in range(30):
        pace.learn(pace.tokens, 0.03 + 0.0001 * pace.tokens)
    assert 0.8 * MOST_STALL_S < 0.03 + 0.0001 * pace.tokens <= MOST_STALL_S


def test_short_pieces_tell_as_much_as_long_ones() -> None:
    pace = Pace.of({1: 0.06, 1000: 0.16}, 8192)
    for _ in range(30):
        pace.learn(10, 0.091)
    assert pace.tokens == 192


def test_one_slow_pass_changes_little() -> None:
    pace = Pace.of({1: 0.076, 384: 0.098, 512: 0.105}, 8192)
    first = pace.tokens
    pace.learn(first, 0.145)
    assert pace.tokens >= 0.6 * first
    for _ in range(10):
        pace.learn(pace.tokens, 0.076 + 0.00006 * pace.tokens)
    assert pace.tokens >= 0.8 * first


def test_what_there_is_no_memory_for_is_found_out_while_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(tiny_model(), PLAN)
    extend = runner.extend

    def greedy(pages: Any, ids: Any, start: int, *, row: int | None) -> Any:
        if len(ids) > 192:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return extend(pages, ids, start, row=row)

    monkeypatch.setattr(runner, "extend", greedy)
    pace = start._warm_up(runner, PLAN, told)
    assert pace.largest == 192
    assert pace.tokens <= 192


@pytest.mark.parametrize(("largest_piece", "is_short_from", "expected"), [(8192, 1100, 1023), (1024, 9000, 1023)])
def test_beside_recorded_passes_no_piece_is_longer_than_what_was_tried(
    monkeypatch: pytest.MonkeyPatch, largest_piece: int, is_short_from: int, expected: int
) -> None:
    runner = runner_for(tiny_model(), PLAN)
    taken: list[int] = []

    def extend(_pages: Any, ids: Any, *_: Any, **__: Any) -> None:
        taken.append(len(ids))
        if len(ids) > is_short_from:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "_joined_graphs", dict.fromkeys(joined_shapes(8, 8192)))
    monkeypatch.setattr(runner, "extend", extend)
    monkeypatch.setattr(runner, "decode_and_extend", lambda *_, **__: None)
    pace = start._warm_up(runner, MemoryPlan(0, 0, 0, 2000, 8, 16384, largest_piece, 16), told)
    assert pace.largest == expected
    assert expected in taken
    assert pace.sizes == (192, 384, 512, 768, 1024)
    # What is not recorded is tried as it will be read
    assert (2048 in taken) == (largest_piece > 1024)


def test_recorded_passes_decide_how_many_tokens_a_pass_has() -> None:
    sizes = (192, 384, 512, 768, 1024)
    took_s = {192: 0.066, 384: 0.08, 512: 0.096, 768: 0.116, 1024: 0.142}
    pace = Pace.of(took_s, 8192, sizes)
    assert pace.tokens == 512
    for _ in range(20):
        pace.learn(pace.tokens, took_s[pace.tokens] + 0.07)
    assert pace.tokens == 192
    for _ in range(20):
        pace.learn(pace.tokens, took_s[pace.tokens])
    assert pace.tokens == 512
    assert Pace.of({192: 0.07}, 8192, (192,)).tokens == 192
    assert Pace.of({}, 8192, (384, 512)).tokens == 384


def test_on_a_slow_computer_pieces_are_not_shorter_than_what_a_pass_costs_anyway() -> None:
    pace = Pace.of({1: 0.2, 128: 0.2, 512: 0.22}, 8192)
    assert pace.tokens > 1000
    for _ in range(30):
        pace.learn(pace.tokens, 0.3 + 0.00004 * pace.tokens)
    assert pace.tokens > 1500


def test_what_is_not_measured_is_learnt_from_the_passes() -> None:
    pace = Pace.of({}, 8192)
    for _ in range(60):
        pace.learn(pace.tokens, 0.05 + 0.0001 * pace.tokens)
    assert 0.05 + 0.0001 * pace.tokens == pytest.approx(MOST_STALL_S, rel=0.2)


@pytest.mark.parametrize("largest", [48, 128, 512])
def test_no_piece_is_longer_than_there_is_room_for(largest: int) -> None:
    pace = Pace.of({1: 0.01, 32: 0.01}, largest)
    for _ in range(10):
        pace.learn(pace.tokens, 0.01)
        assert 0 < pace.tokens <= largest


def test_without_a_measurement_the_first_piece_is_small() -> None:
    assert Pace.of({}, 8192).tokens == FIRST_TOKENS
