"""What QwQ's shapes do on this GPU: `python -m bench.gpu [--tiny] [--layers 64] [--json FILE]`.

Random weights in NF4 with double quantization cost what trained ones cost. Prints the batched engine, the simplest way
(transformers' `generate`), and the limit that the GPU's own read rate sets, taken in one run, as Markdown.
"""

import argparse
import json
import queue
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from app.engine.base import Delta, Finished, Request, Sampling
from app.engine.batched.engine import BatchedEngine
from app.engine.batched.offload import MOST_A_STEP, HostPages
from app.engine.batched.pace import Pace
from app.engine.batched.pages import PagePool
from app.engine.batched.runner import Runner
from app.engine.batched.start import make_ready, quicker_layers
from app.engine.model.memory import MemoryPlan
from bench.gpu_smoke import QWQ_SHAPE, TINY_SHAPE
from tests.engine.tiny import tiny_tokenizer

DRAWN = Sampling(temperature=0.6, top_p=0.95, top_k=40)
IS_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if IS_CUDA else "cpu"


def wait() -> None:
    if IS_CUDA:
        torch.cuda.synchronize()


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of one call, the GPU's part included."""
    work()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - start) / repeats


def built(shape: dict[str, Any], layers: int) -> Qwen2ForCausalLM:
    """The model with random weights: linear layers in NF4, embeddings and head in bf16."""
    import bitsandbytes as bnb

    config = Qwen2Config(num_hidden_layers=layers, **shape)
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config).to(torch.bfloat16)

    def put(name: str, part: torch.nn.Module | torch.nn.Parameter) -> None:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, part)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.bfloat16, device=DEVICE) * 0.02

    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            size = (module.in_features, module.out_features)
            made = bnb.nn.Linear4bit(
                *size, bias=module.bias is not None, compute_dtype=torch.bfloat16, quant_type="nf4", device="meta"
            )
            weight = bnb.nn.Params4bit(
                random(size[1], size[0]), requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
            )
            made.weight = weight.to(DEVICE)
            if module.bias is not None:
                made.bias = torch.nn.Parameter(random(size[1]), requires_grad=False)
            made.compute_type_is_set = True
            put(name, made)
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type == "meta":
            value = (
                torch.ones(parameter.shape, dtype=torch.bfloat16, device=DEVICE)
                if "norm" in name
                else random(*parameter.shape)
            )
            put(name, torch.nn.Parameter(value, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(DEVICE)
    return model.eval()


class Desk:
    """An engine and what it gives, with its times."""

    def __init__(self, runner: Runner, pace: Pace, store: HostPages | None) -> None:
        self.runner = runner
        self.store = store
        self.pool = PagePool(runner.cache.keys[0].shape[0], runner.page_tokens, store)
        self.given: queue.Queue[tuple[float, Delta | Finished]] = queue.Queue()
        self.engine = BatchedEngine(
            runner,
            self.pool,
            tiny_tokenizer(),
            lambda event: self.given.put((time.perf_counter(), event)),
            prepare=lambda _: pace,
            store=store,
        )
        self.number = 0

    def prompt(self, tokens: int) -> tuple[int, ...]:
        self.number += 1
        generator = torch.Generator().manual_seed(self.number)
        return tuple(torch.randint(0, 255, (tokens,), generator=generator).tolist())

    def add(self, prompt_tokens: int, new_tokens: int, name: str = "") -> str:
        prompt = self.prompt(prompt_tokens)
        name = name or f"r{self.number}"
        self.engine.add(Request(name, prompt, DRAWN, (), new_tokens))
        return name

    def read(self, count: int) -> tuple[dict[str, list[float]], dict[str, Finished]]:
        """The moments of every request's tokens, until so many have ended."""
        times: dict[str, list[float]] = {}
        ended: dict[str, Finished] = {}
        while len(ended) < count:
            moment, event = self.given.get(timeout=300)
            if isinstance(event, Finished):
                ended[event.request_id] = event
            else:
                times.setdefault(event.request_id, []).extend([moment] * len(event.token_ids))
        return times, ended

    def again(self, prompt: tuple[int, ...]) -> tuple[float, Finished]:
        """Milliseconds to the first token of a prompt, alone."""
        self.number += 1
        began = time.perf_counter()
        self.engine.add(Request(f"r{self.number}", prompt, DRAWN, (), 2))
        times, ended = self.read(1)
        return 1e3 * (times[f"r{self.number}"][0] - began), ended[f"r{self.number}"]

    def rate(self, streams: int, prompt_tokens: int, new_tokens: int) -> float:
        """Tokens a second of all streams, from when all write until the first ends."""
        for _ in range(streams):
            self.add(prompt_tokens, new_tokens)
        times, ended = self.read(streams)
        assert all(one.reason == "length" for one in ended.values()), ended
        start = max(moments[0] for moments in times.values())
        end = min(moments[-1] for moments in times.values())
        inside = sum(start < moment <= end for moments in times.values() for moment in moments)
        return inside / (end - start)


def snippet(model: Qwen2ForCausalLM, streams: int, tokens: int) -> float:
    """Tokens a second of transformers' `generate`, eager, with its own cache."""
    implementation = model.config._attn_implementation
    model.config._attn_implementation = "sdpa"
    ids = torch.randint(0, 255, (streams, 64), device=DEVICE)

    def write(count: int) -> float:
        wait()
        start = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=DynamicCache(config=model.config),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
        wait()
        return time.perf_counter() - start

    with torch.inference_mode():
        write(2)
        short, long = write(2), write(tokens + 2)
    model.config._attn_implementation = implementation
    return streams * tokens / (long - short)


def read_rate() -> float:
    """Bytes a second that the GPU reads at."""
    data = torch.ones(1 << (30 if IS_CUDA else 24), dtype=torch.float32, device=DEVICE)
    return data.numel() * 4 / timed(data.sum, 10)


# A step's linear layers: what is called, and how wide its input is
Calls = list[tuple[Callable[[torch.Tensor], object], int]]
LINEAR_ROWS = (1, 2, 4, 8, 16, 32, 64)


def linear_calls(model: Qwen2ForCausalLM, joined: Mapping[torch.nn.Module, Any]) -> Calls:
    """The linear layers of a step in the order in which it calls them; those that are joined, at once."""
    calls: Calls = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for parent, names in ((attention, ("q_proj", "k_proj", "v_proj")), (mlp, ("gate_proj", "up_proj"))):
            apart: Any = [getattr(parent, name) for name in names]
            last: Any = attention.o_proj if parent is attention else mlp.down_proj
            calls += [(one, apart[0].in_features) for one in ([joined[parent]] if parent in joined else apart)]
            calls.append((last, last.in_features))
    return calls


@torch.inference_mode()
def linears_ms(calls: Calls, rows: int, repeats: int = 12) -> float:
    """Milliseconds of all linear layers of a step, recorded in a CUDA graph; the median of `repeats`."""
    told = {width: torch.randn(rows, width, dtype=torch.bfloat16, device=DEVICE) for width in {w for _, w in calls}}

    def work() -> None:
        for call, width in calls:
            call(told[width])

    if not IS_CUDA:
        return 1e3 * timed(work)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        work()
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    graph.replay()
    found = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        wait()
        found.append(start.elapsed_time(end))
    return statistics.median(found)


def bytes_of(model: Qwen2ForCausalLM) -> int:
    """Bytes of the 4-bit layers that a step reads, their scales counted."""
    import bitsandbytes as bnb

    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    states = [layer.weight.quant_state for layer in layers]
    return sum(layer.weight.numel() for layer in layers) + sum(
        state.absmax.numel() + 4 * state.state2.absmax.numel() for state in states
    )


def set_rows(runner: Runner, rows: int, context: int) -> None:
    """Rows that stand in the middle of a text of so many tokens."""
    pages = -(-(context + 64) // runner.page_tokens)
    for row in range(rows):
        runner.put(row, DRAWN, row)
        runner.place(row, list(range(1 + row * pages, 1 + (row + 1) * pages)))
        runner.set_next(row, 7, context)


# Kernels of ours and of torch by a part of their name; what is left over is the sampler and odds and ends
KINDS = {
    "attention, rotary, writing K/V": ("_partial_attention", "_joined_attention", "_rotate_and_write", "flash", "fmha"),
    "norm and activation": ("_add_norm", "_silu_mul"),
}
LINEAR = "NF4 layers, with what bitsandbytes unpacks for cuBLAS"
HEAD = "output head"
REST = "sampler and rest"


def kernels_of(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Milliseconds of GPU time of one call, by kernel."""
    work()
    activities = [torch.profiler.ProfilerActivity.CUDA if IS_CUDA else torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            work()
        wait()
    return {
        event.key: (event.self_device_time_total if IS_CUDA else event.self_cpu_time_total) / 1000 / repeats
        for event in profile.key_averages()
    }


@torch.inference_mode()
def split_of_step(runner: Runner, calls: Calls, rows: int, context: int) -> dict[str, float]:
    """Milliseconds of GPU time of one step, by kind; the linear layers and the head are profiled by themselves."""
    told = {width: torch.randn(rows, width, dtype=torch.bfloat16, device=DEVICE) for width in {w for _, w in calls}}
    head = runner.model.get_output_embeddings()
    alone = {
        LINEAR: sum(kernels_of(lambda: [call(told[width]) for call, width in calls], 2).values()),
        HEAD: sum(kernels_of(lambda: head(told[runner.model.config.hidden_size]), 4).values()),
    }
    set_rows(runner, rows, context)
    step = kernels_of(lambda: runner.decode(rows), 4)
    found = alone | {
        kind: sum(spent for name, spent in step.items() if any(word in name.lower() for word in words))
        for kind, words in KINDS.items()
    }
    whole = sum(step.values())
    found |= {REST: whole - sum(found.values()), "in all": whole, "all but the NF4 layers": whole - alone[LINEAR]}
    return found


def length_of_prefill(is_tiny: bool) -> int:
    """Tokens of the long prompt."""
    return 512 if is_tiny else 8192


def passes_with_a_piece(runner: Runner, is_tiny: bool, say: Callable[[str, object], None]) -> None:
    """How long passes take that read a piece of a prompt, beside 31 who write and alone."""
    rows, written = 31, 40 if is_tiny else 600
    page = runner.page_tokens
    set_rows(runner, rows, written)
    table = list(range(1 + rows * (1 + (written + 64) // page), runner.cache.keys[0].shape[0]))
    every = [64] if is_tiny else runner.joined_tokens
    for before in (0, 256) if is_tiny else (0, 8192, 30000):
        took = {}
        for tokens in every:
            ids = [5] * runner.longest_piece(tokens, rows)

            def read(ids: list[int] = ids, before: int = before) -> None:
                runner.set_all_lengths(written)
                runner.decode_and_extend(rows, table, ids, before, is_last=False)

            took[tokens] = round(1e3 * timed(read, 3))
        say(f"a pass of so many tokens with {rows} rows, {before:,} tokens before the piece, ms", took)
    for tokens in (20, 1000):
        say(f"{tokens:,} tokens read alone, ms", 1e3 * timed(partial(runner.extend, table, [5] * tokens, 0, row=0), 3))


def late_prompt(desk: Desk, tokens: int, say: Callable[[str, object], None]) -> tuple[float, float]:
    """Milliseconds that a prompt which comes while the others write waits for its first token, and they for a token."""
    passes: list[str] = []
    both, alone = desk.runner.decode_and_extend, desk.runner.decode

    def counted(rows: int, pages: Any, ids: Any, start: int, *, is_last: bool) -> Any:
        began = time.perf_counter()
        given = both(rows, pages, ids, start, is_last=is_last)
        passes.append(f"{len(ids)}+{rows}: {1e3 * (time.perf_counter() - began):.0f}")
        return given

    def decoded(rows: int) -> Any:
        began = time.perf_counter()
        given = alone(rows)
        passes.append(f"{rows}: {1e3 * (time.perf_counter() - began):.0f}")
        return given

    desk.runner.decode_and_extend, desk.runner.decode = counted, decoded  # type: ignore[method-assign]
    began = time.perf_counter()
    desk.add(tokens, 4, "late")
    moments: list[float] = []
    gaps: dict[str, float] = {}
    last: dict[str, float] = {}
    while True:
        moment, event = desk.given.get(timeout=300)
        if isinstance(event, Delta):
            if event.request_id == "late":
                moments.append(moment)
            elif event.request_id in last:
                gaps[event.request_id] = max(gaps.get(event.request_id, 0.0), moment - last[event.request_id])
            last[event.request_id] = moment
        elif event.request_id == "late":
            break
    desk.runner.decode_and_extend, desk.runner.decode = both, alone  # type: ignore[method-assign]
    say(f"passes of a late prompt of {tokens:,} tokens, tokens+rows: ms", ", ".join(passes[:24]))
    return 1e3 * (moments[0] - began), 1e3 * max(gaps.values())


def stopped(desk: Desk, name: str) -> int:
    """How many tokens still come of a stream that is stopped; its pages are free with its end."""
    while not desk.given.empty():
        desk.given.get()
    held = desk.pool.total - desk.pool.available
    desk.engine.cancel(name)
    tokens = 0
    while not isinstance(event := desk.given.get(timeout=300)[1], Finished):
        tokens += len(event.token_ids) if event.request_id == name else 0
    assert event.request_id == name, event
    assert desk.pool.total - desk.pool.available < held
    return tokens


def versions() -> str:
    """What the figures were taken with."""
    names = ("torch", "transformers", "bitsandbytes", "triton")
    return ", ".join(f"{name} {version(name)}" for name in names if find_spec(name))


# What the table at the end has: a figure, what it must reach, and the snippet's figure of the same run
ASKED: list[tuple[str, str, str]] = [
    ("1 streams, short context, tok/s", ">= 45", "snippet, 1 stream, tok/s"),
    ("8 streams, short context, tok/s", ">= 130", ""),
    ("32 streams, short context, tok/s", ">= 480", "snippet, 32 streams, tok/s"),
    ("64 streams, short context, tok/s", ">= 900", ""),
    ("GPU time of a step, 1 rows at 1k, all but the NF4 layers, ms", "<= 3.5", ""),
    ("GPU time of a step, 32 rows at 1k, all but the NF4 layers, ms", "<= 6", ""),
    ("prefill of 8,192 in pieces of 8,192, tok/s", ">= 7,000", ""),
    ("first token of a 1,024-token prompt while 31 write, worst of 3, ms", "<= 600", ""),
    ("longest gap of the 31 meanwhile, 1,024 tokens, ms", "<= 150", ""),
    ("tokens of a stopped stream after the stop", "<= 1", ""),
    ("self-test, capture and warm-up, s", "<= 60", ""),
    ("limit, tok/s", "", ""),
    ("read rate, GB/s", "", ""),
]


def table_of(figures: dict[str, Any]) -> str:
    """The figures that were asked for, as Markdown."""
    lines = ["| | must | ours | snippet, same run |", "|---|---|---|---|"]
    for name, must, other in ASKED:
        if name in figures:
            beside = f"{figures[other]:,.1f}" if other else ""
            lines.append(f"| {name} | {must} | {figures[name]:,.4g} | {beside} |")
    return "\n".join(lines)


def split_table(splits: dict[int, dict[str, float]]) -> str:
    """GPU time of a step by kind, as Markdown."""
    kinds = list(next(iter(splits.values())))
    lines = [f"| rows, at 1k tokens; ms | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for rows, split in splits.items():
        lines.append(f"| {rows} | {' | '.join(f'{split[kind]:.2f}' for kind in kinds)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    layers = given.layers or (2 if given.tiny else 64)
    shape = (TINY_SHAPE | {"vocab_size": 320}) if given.tiny else QWQ_SHAPE
    context = 2048 if given.tiny else 40960
    torch.manual_seed(0)
    start = time.perf_counter()
    figures: dict[str, Any] = {}

    def say(name: str, value: object) -> None:
        figures[name] = value
        shown = f"{value:,.3f}" if isinstance(value, float) else value
        print(f"| {name} | {shown} |", flush=True)

    name = torch.cuda.get_device_name() if IS_CUDA else "CPU"
    print(f"\n{name}, torch {torch.__version__}, transformers {transformers.__version__}, {layers} layers\n")
    print("| figure | reading |\n|---|---|", flush=True)
    model = built(shape, layers)
    wait()
    say("build, s", time.perf_counter() - start)
    rate = read_rate()
    packed = bytes_of(model)
    weights = packed + sum(
        parameter.numel() * parameter.element_size()
        for part, parameter in model.named_parameters()
        if "embed_tokens" not in part and parameter.dtype != torch.uint8
    )
    say("floor of reading the 4-bit layers, ms", 1e3 * packed / rate)
    linears = {"bitsandbytes": {rows: linears_ms(linear_calls(model, {}), rows) for rows in LINEAR_ROWS}}
    say("read rate, GB/s", rate / 1e9)
    say("weights read a token, GB", weights / 1e9)
    say("limit, tok/s", rate / weights)
    short = 16 if given.tiny else 24
    say("snippet, 1 stream, tok/s", snippet(model, 1, short))
    say("snippet, 32 streams, tok/s", snippet(model, 32, short))
    page = 16 if given.tiny else 256
    pages = 800 if given.tiny else 600
    middle = 100 if given.tiny else 1000
    start = time.perf_counter()
    joined = quicker_layers(model, Path("build/cache"), lambda *_: None)
    say("arranging the 4-bit weights, s", time.perf_counter() - start)
    calls = linear_calls(model, joined)
    if joined:
        linears["ours"] = {rows: linears_ms(calls, rows) for rows in LINEAR_ROWS}
    for whose, by_rows in linears.items():
        say(f"linear layers of a step, {whose}, ms by rows", {rows: round(ms, 2) for rows, ms in by_rows.items()})
    runner = Runner(
        model, rows=64, pages=pages, page_tokens=page, context_window=context, has_kernels=IS_CUDA, joined=joined
    )
    plan = MemoryPlan(0, 0, 0, pages, 64, context, length_of_prefill(given.tiny), page)
    stages: dict[str, float] = {}
    start = time.perf_counter()
    ready = make_ready(runner, plan, lambda stage, _: stages.update({stage: time.perf_counter() - start}))
    say("self-test, capture and warm-up, s", time.perf_counter() - start)
    say("stages ended after, s", {stage: round(at, 1) for stage, at in stages.items()})
    say("way", ready.way)
    say("tokens of the first pass with a piece beside those who write", ready.pace.tokens)
    say("what a pass with a piece takes anyway, ms", 1e3 * ready.pace.floor_s)
    if IS_CUDA:
        say("memory in use, GiB", torch.cuda.memory_allocated() / 2**30)
        say("memory reserved, GiB", torch.cuda.memory_reserved() / 2**30)
    for rows in (1, 8, 32, 64):
        set_rows(runner, rows, middle)
        say(f"step, {rows} rows at 1k, ms", 1e3 * timed(partial(runner.decode, rows), 5))
    splits = {rows: split_of_step(runner, calls, rows, middle) for rows in (1, 32)}
    for rows, split in splits.items():
        for kind, spent in split.items():
            say(f"GPU time of a step, {rows} rows at 1k, {kind}, ms", spent)
    set_rows(runner, 1, context - 2000 if not given.tiny else 500)
    say("step, 1 row at the window's end, ms", 1e3 * timed(lambda: runner.decode(1), 5))
    length = length_of_prefill(given.tiny)
    ids = torch.randint(0, 255, (length,)).tolist()
    table = list(range(1, 1 + length // page))
    for piece in (512, 1024, 2048, 4096, 8192):

        def read(piece: int = piece) -> None:
            for first in range(0, length, piece):
                runner.extend(table, ids[first : first + piece], first, row=None)

        say(f"prefill of {length:,} in pieces of {piece:,}, tok/s", length / timed(read))
    passes_with_a_piece(runner, given.tiny, say)
    start = time.perf_counter()
    store = HostPages(runner.cache, (4 << 30) if IS_CUDA else (1 << 22))
    say("RAM for pages, s a GiB", (time.perf_counter() - start) / (store.total * store.page_bytes / 2**30))
    desk = Desk(runner, ready.pace, store)
    desk.rate(2, 64, 8)
    prompt = desk.prompt(30 * page)
    say(f"first token of {len(prompt):,} tokens, read, ms", desk.again(prompt)[0])
    took_ms, ended = desk.again(prompt)
    say("the same from the cache, ms", took_ms)
    say("tokens of it from the cache", ended.usage.cached_tokens)
    # Others take all pages, so that these go to RAM
    everything = desk.pool.begin((0,))
    while desk.pool.available:
        store.begin_step(MOST_A_STEP)
        desk.pool.extend(everything, (len(everything.pages) + 1) * page)
    desk.pool.end(everything)
    took_ms, ended = desk.again(prompt)
    say("the same from RAM, ms", took_ms)
    say("tokens of it from RAM", ended.usage.cached_tokens)
    wait()
    start = time.perf_counter()
    for _ in range(8):
        runner.copy_page(1, 2)
    wait()
    say("a page copied for a fork, ms", 1e3 * (time.perf_counter() - start) / 8)
    for streams in (1, 8, 32, 64):
        say(f"{streams} streams, short context, tok/s", desk.rate(streams, 64, 96 + streams))
    for _ in range(31):
        desk.add(64, 4000 if not given.tiny else 300)
    writing: set[str] = set()
    while len(writing) < 31:
        writing.add(desk.given.get(timeout=300)[1].request_id)
    for tokens in (1024, 6000) if not given.tiny else (256,):
        tries = [late_prompt(desk, tokens, say) for _ in range(3 if tokens == 1024 else 1)]
        say(f"first token of a {tokens:,}-token prompt while 31 write, worst of {len(tries)}, ms", max(tries)[0])
        say(f"longest gap of the 31 meanwhile, {tokens:,} tokens, ms", max(gap for _, gap in tries))
    say("tokens of a stopped stream after the stop", stopped(desk, next(iter(writing))))
    desk.engine.close()
    say("peak memory, GiB", torch.cuda.max_memory_allocated() / 2**30 if IS_CUDA else 0.0)
    print(f"\n{date.today()}, {name}, {layers} layers of QwQ's widths, {versions()}\n")
    print(table_of(figures))
    print(f"\n{split_table(splits)}")
    if given.json:
        given.json.write_text(json.dumps(figures | {"on": name, "with": versions()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
