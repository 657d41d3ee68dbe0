"""What only a CUDA GPU can show: graphs, kernels, page-locked memory, a GPU that fails.

Needs nothing of the other tests' fixtures: `pytest --noconftest -m gpu tests/engine/batched/test_gpu.py`.
"""

import queue
import subprocess
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from app.engine.base import Delta, Finished, Request, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
    pytest.mark.filterwarnings("default"),
]

GREEDY = Sampling(temperature=0.0)
PAGE = 64
WAIT_S = 100


def made(layers: int = 2) -> Any:
    from bench.gpu import built
    from bench.gpu_smoke import TINY_SHAPE

    torch.manual_seed(0)
    return built(TINY_SHAPE, layers)


class Desk:
    """A batched engine on the GPU, ready as the worker makes it ready, and what it gave."""

    def __init__(self, pages: int = 60, rows: int = 8, ram_bytes: int = 0) -> None:
        from app.engine.batched.engine import BatchedEngine
        from app.engine.batched.offload import HostPages
        from app.engine.batched.pages import PagePool
        from app.engine.batched.start import make_ready, runner_for
        from app.engine.model.memory import MemoryPlan
        from tests.engine.tiny import tiny_tokenizer

        plan = MemoryPlan(0, 0, 0, pages, rows, 2048, 2048, PAGE)
        self.runner = runner_for(made(), plan)
        self.ready = make_ready(self.runner, plan, lambda *_: None)
        self.store = HostPages(self.runner.cache, ram_bytes)
        self.pool = PagePool(pages, PAGE, self.store)
        self.given: queue.Queue[Delta | Finished] = queue.Queue()
        self.engine = BatchedEngine(
            self.runner,
            self.pool,
            tiny_tokenizer(),
            self.given.put,
            prepare=lambda _: self.ready.pace,
            store=self.store,
        )
        self.ids: dict[str, list[int]] = defaultdict(list)

    def add(self, name: str, prompt: tuple[int, ...], tokens: int = 20, sampling: Sampling = GREEDY) -> None:
        self.ids.pop(name, None)
        self.engine.add(Request(name, prompt, sampling, (), tokens))

    def read(self, count: int = 1) -> dict[str, Finished]:
        ended: dict[str, Finished] = {}
        while len(ended) < count:
            event = self.given.get(timeout=WAIT_S)
            if isinstance(event, Finished):
                ended[event.request_id] = event
            else:
                self.ids[event.request_id] += event.token_ids
        return ended


def prompt_of(number: int, tokens: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(0, 256, (tokens,), generator=generator).tolist())


def test_grouped_heads_need_no_copies_of_keys_and_values() -> None:
    """What a pass over one prompt gathers: the plain way repeats keys and values for each group of heads."""
    from torch.nn.attention.bias import causal_lower_right
    from torch.nn.functional import scaled_dot_product_attention

    torch.manual_seed(0)
    query = torch.randn(1, 40, 512, 128, dtype=torch.bfloat16, device="cuda")
    key, value = (torch.randn(1, 8, 4096, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    mask = causal_lower_right(512, 4096)
    wide = [taken.repeat_interleave(5, 1) for taken in (key, value)]
    plain = scaled_dot_product_attention(query, *wide, attn_mask=mask)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grouped = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    assert torch.cuda.max_memory_allocated() - before < 4 * grouped.numel() * grouped.element_size()
    torch.testing.assert_close(plain, grouped, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("tokens", [1, 150, 2000])
def test_unpacking_by_ourselves_gives_what_bitsandbytes_gives(tokens: int) -> None:
    from app.engine.batched.unpack import unpacked_layers

    found = unpacked_layers(made())
    assert len(found) == 2 * 7
    for layer, unpacked in found.items():
        told = torch.randn(tokens, layer.in_features, dtype=torch.bfloat16, device="cuda")
        # More than 1,536 tokens are unpacked by bitsandbytes too
        exact = {"atol": 0.0, "rtol": 0.0} if tokens > 1536 else {"atol": 0.02, "rtol": 0.02}
        torch.testing.assert_close(unpacked(told), layer(told), **exact)


def test_every_quick_way_passes_its_own_test() -> None:
    desk = Desk()
    assert desk.ready.taken_back == []
    assert "CUDA graphs, fused kernels, paged attention in Triton" in desk.ready.way
    assert desk.runner.is_unpacking
    assert desk.runner.joined_tokens == [192, 384, 512, 768, 1024]
    desk.add("one", prompt_of(1, 300), 100)
    assert desk.read()["one"].reason == "length"
    desk.engine.close()


@pytest.mark.parametrize(("tokens", "before", "filled"), [(1, 0, 0), (128, 0, 1), (512, 4000, 0), (300, 77, 90)])
def test_a_piece_attends_to_what_torch_attends_to(tokens: int, before: int, filled: int) -> None:
    from app.engine.batched.attention import PagedCache, Step, extend
    from app.engine.batched.kernels import paged_extend

    torch.manual_seed(0)
    keys, values = (torch.randn(100, PAGE, 8, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    pages = torch.randperm(99, device="cuda") + 1
    query = torch.randn(tokens + filled, 40, 128, dtype=torch.bfloat16, device="cuda")
    bounds = torch.tensor([before, before + tokens], device="cuda")
    nothing = torch.zeros(0, dtype=torch.int32, device="cuda")
    cache = PagedCache([keys], [values], PAGE)
    step = Step(cache, nothing, nothing, nothing, piece=tokens, piece_pages=pages, context=before + tokens)
    ours = paged_extend(query, keys, values, pages, bounds, 0.1)
    assert torch.isfinite(ours).all()
    torch.testing.assert_close(ours[:tokens], extend(query[:tokens], keys, values, step, 0.1), atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kernel", ["paged_decode", "paged_extend"])
def test_a_kernel_that_computes_something_else_is_taken_back(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engine.batched import kernels

    monkeypatch.setattr(kernels, kernel, lambda query, *_: torch.zeros_like(query))
    desk = Desk()
    assert "sdpa over gathered pages" in desk.ready.way
    assert any("attention kernel is off" in sentence for sentence in desk.ready.taken_back)
    desk.add("one", prompt_of(1, 300), 20)
    assert desk.read()["one"].reason == "length"
    desk.engine.close()


def test_unpacking_that_gives_something_else_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engine.batched.unpack import UnpackedLinear

    right = UnpackedLinear.__call__
    monkeypatch.setattr(UnpackedLinear, "__call__", lambda self, told: right(self, told).flip(0))
    desk = Desk()
    assert any("unpacking matrices by ourselves is off" in sentence for sentence in desk.ready.taken_back)
    assert desk.runner.is_joined
    desk.engine.close()


def test_the_same_seed_gives_the_same_text_in_graphs_of_one_size() -> None:
    desk = Desk()
    sampling = Sampling(temperature=1.0, top_p=0.95, top_k=40, seed=3)
    for _ in range(2):
        desk.add("one", prompt_of(1, 100), 60, sampling)
        desk.read()
        first = desk.ids["one"]
        desk.add("one", prompt_of(1, 100), 60, sampling)
        desk.read()
        assert desk.ids["one"] == first
    desk.engine.close()


def test_prompts_that_come_while_others_write_are_read_in_recorded_passes_as_without() -> None:
    """Of several pieces each, the last one not filled."""
    firsts: list[list[int]] = []
    desk = Desk(pages=200)
    for is_recorded in (True, False):
        if not is_recorded:
            assert desk.runner.forget_graphs()
        desk.ready.pace.tokens = 192
        for number in range(3):
            desk.add(f"w{number}", prompt_of(number, 50), 300)
        for number in range(3, 11):
            desk.add(f"late{number}", prompt_of(number, 700 + number), 1)
        desk.read(11)
        firsts.append([desk.ids[f"late{number}"][0] for number in range(3, 11)])
        desk.pool.forget()
    # Rounding may lose a near tie
    assert sum(one == other for one, other in zip(*firsts, strict=True)) >= 7
    desk.engine.close()


def test_pages_that_made_room_come_back_from_ram_as_they_were() -> None:
    desk = Desk(pages=20, ram_bytes=1 << 26)
    assert desk.store.total >= 20
    prompt = prompt_of(1, 600)
    desk.add("one", prompt, 30)
    assert desk.read()["one"].usage.cached_tokens == 0
    first = desk.ids["one"]
    for number in range(2, 6):
        desk.add(f"r{number}", prompt_of(number, 600), 30)
        desk.read()
    desk.add("one", prompt, 30)
    assert desk.read()["one"].usage.cached_tokens == 599 // PAGE * PAGE
    assert desk.ids["one"] == first
    desk.engine.close()


def test_numbers_that_are_none_fail_their_request_alone() -> None:
    desk = Desk()
    with torch.no_grad():
        desk.runner.model.get_input_embeddings().weight[300] = float("nan")
    desk.add("sound", prompt_of(1, 100), 200)
    desk.add("broken", (*prompt_of(2, 50), 300), 50)
    ended = desk.read(2)
    assert ended["sound"].reason == "length"
    assert "NaN" in ended["broken"].problem
    desk.engine.close()


def test_too_little_memory_fails_that_request_and_the_next_works(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    extend = desk.runner.extend

    def greedy(pages: Any, ids: Any, start: int, *, row: int | None) -> Any:
        if len(ids) in (700, 1500):
            torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
        return extend(pages, ids, start, row=row)

    monkeypatch.setattr(desk.runner, "extend", greedy)
    desk.add("long", prompt_of(1, 700))
    problem = desk.read()["long"].problem
    assert "too long for this GPU" in problem
    assert "700 tokens" in problem
    # Longer ones can be read in recorded passes, which have their memory
    desk.add("longer", prompt_of(3, 1500))
    assert desk.read()["longer"].reason == "length"
    desk.add("next", prompt_of(2, 100))
    assert desk.read()["next"].reason == "length"
    desk.engine.close()


def test_an_error_inside_a_kernel_ends_the_process_and_every_request_is_told() -> None:
    script = """
        import os, torch
        from tests.engine.batched.test_gpu import Desk, prompt_of
        desk = Desk()
        decode, calls = desk.runner.decode, [0]
        def failing(rows):
            calls[0] += 1
            if calls[0] == 9:
                torch.zeros(4, device="cuda")[torch.tensor([77], device="cuda")].cpu()
            return decode(rows)
        desk.runner.decode = failing
        def lost(is_gpu):
            told = []
            while not desk.given.empty():
                event = desk.given.get()
                if hasattr(event, "problem"):
                    told.append(event.problem)
            print("TOLD", told, flush=True)
            os._exit(70 if is_gpu else 72)
        desk.engine._on_lost = lost
        for number in range(2):
            desk.add(f"r{number}", prompt_of(number, 50), 100)
        import time
        time.sleep(60)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 70, ran.stderr[-2000:]
    assert ran.stdout.count("The GPU failed. The text so far is kept") == 2, ran.stdout


# The last one: torch's own random numbers cannot be drawn on this GPU any more after a recording that failed
def test_a_step_that_cannot_be_recorded_is_taken_without_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.engine.batched import runner

    drawn = runner.sample
    monkeypatch.setattr(runner, "sample", lambda logits, *rest: (logits.sum().item(), drawn(logits, *rest))[1])
    desk = Desk()
    assert "eager steps" in desk.ready.way
    assert any("CUDA graphs are off" in sentence for sentence in desk.ready.taken_back)
    desk.add("one", prompt_of(1, 30), 20)
    assert desk.read()["one"].reason == "length"
    desk.engine.close()
