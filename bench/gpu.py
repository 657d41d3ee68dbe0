"""What QwQ's shapes do on this GPU: `python -m bench.gpu [--tiny] [--layers 64] [--json FILE]`.

Random weights in NF4 with double quantization cost what trained ones cost. Prints the batched engine, the simplest way
(transformers' `generate`), and the limit that the GPU's own read rate sets, taken in one run, as Markdown.
"""

import argparse
import json
import queue
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from app.engine.base import Delta, Finished, Request, Sampling
from app.engine.batched.engine import BatchedEngine
from app.engine.batched.pages import PagePool
from app.engine.batched.runner import Runner
from app.engine.batched.selftest import against_reading, choose
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

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.pool = PagePool(runner.cache.keys[0].shape[0], runner.page_tokens)
        self.given: queue.Queue[tuple[float, Delta | Finished]] = queue.Queue()
        self.engine = BatchedEngine(
            runner, self.pool, tiny_tokenizer(), lambda event: self.given.put((time.perf_counter(), event))
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


def set_rows(runner: Runner, rows: int, context: int) -> None:
    """Rows that stand in the middle of a text of so many tokens."""
    pages = -(-(context + 64) // runner.page_tokens)
    for row in range(rows):
        runner.put(row, DRAWN, row)
        runner.place(row, list(range(1 + row * pages, 1 + (row + 1) * pages)))
        runner.set_next(row, 7, context)


WAYS = [("fused", True, True), ("plain modules, our attention", True, False), ("sdpa", False, False)]
KINDS = {
    "nf4": ("4bit", "nf4", "dequant", "gemv", "kgemm"),
    "attention": ("_partial_attention", "_joined_attention", "_rotate_and_write", "flash", "fmha", "index_copy"),
    "head": ("gemm", "cutlass", "cublas", "gemvx", "nvjet", "splitk"),
    "norm and activation": ("_add_norm", "_silu_mul"),
}


def split_of_step(runner: Runner, rows: int, context: int) -> dict[str, float]:
    """Milliseconds of GPU time of one step, by kind of kernel."""
    set_rows(runner, rows, context)
    runner.decode(rows)
    activities = [torch.profiler.ProfilerActivity.CUDA if IS_CUDA else torch.profiler.ProfilerActivity.CPU]
    steps = 4
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            runner.decode(rows)
        wait()
    found = dict.fromkeys([*KINDS, "sampler and rest"], 0.0)
    rest: dict[str, float] = {}
    for event in profile.key_averages():
        time_ms = (event.self_device_time_total if IS_CUDA else event.self_cpu_time_total) / 1000 / steps
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "sampler and rest")
        found[kind] += time_ms
        if kind == "sampler and rest" and time_ms > 0.01:
            rest[event.key[:90]] = round(time_ms, 3)
    found["in all"] = sum(found.values())
    print(f"  rest at {rows} rows: {sorted(rest.items(), key=lambda one: -one[1])[:12]}", flush=True)
    return found


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
    weights = sum(
        parameter.numel() * parameter.element_size()
        for part, parameter in model.named_parameters()
        if "embed_tokens" not in part
    )
    say("read rate, GB/s", rate / 1e9)
    say("weights read a token, GB", weights / 1e9)
    say("limit, tok/s", rate / weights)
    short = 16 if given.tiny else 24
    say("snippet, 1 stream, tok/s", snippet(model, 1, short))
    say("snippet, 32 streams, tok/s", snippet(model, 32, short))
    page = 16 if given.tiny else 256
    pages = 1000
    middle = 100 if given.tiny else 1000
    runner = Runner(model, rows=64, pages=pages, page_tokens=page, context_window=context, has_kernels=IS_CUDA)
    for way, has_kernels, is_fused in WAYS if IS_CUDA else WAYS[-1:]:
        runner.has_kernels, runner.is_fused = has_kernels, is_fused
        found = against_reading(runner)
        say(f"decode against reading, {way}", f"{found.difference:.4f}, {found.flipped} of {found.tokens} tokens lost")
        for rows in (1, 32) if has_kernels else (1,):
            set_rows(runner, rows, middle)
            say(f"eager step, {way}, {rows} rows at 1k, ms", 1e3 * timed(partial(runner.decode, rows), 3))
    runner.has_kernels = runner.is_fused = IS_CUDA
    say("self-test took back", "; ".join(choose(runner)) or "nothing")
    if IS_CUDA:
        start = time.perf_counter()
        runner.capture([1, 2, 4, 8, 16, 32, 64])
        wait()
        say("capture, s", time.perf_counter() - start)
        say("memory in use, GiB", torch.cuda.memory_allocated() / 2**30)
        say("memory reserved, GiB", torch.cuda.memory_reserved() / 2**30)
    for rows in (1, 8, 32, 64):
        set_rows(runner, rows, middle)
        say(f"step, {rows} rows at 1k, ms", 1e3 * timed(partial(runner.decode, rows), 5))
    for rows in (1, 32):
        for kind, spent in split_of_step(runner, rows, middle).items():
            say(f"GPU time of a step, {rows} rows at 1k, {kind}, ms", spent)
    set_rows(runner, 1, context - 2000 if not given.tiny else 500)
    say("step, 1 row at the window's end, ms", 1e3 * timed(lambda: runner.decode(1), 5))
    length = 512 if given.tiny else 8192
    ids = torch.randint(0, 255, (length,)).tolist()
    table = list(range(1, 1 + length // page))
    for piece in (512, 1024, 2048, 4096, 8192):

        def read(piece: int = piece) -> None:
            for first in range(0, length, piece):
                runner.extend(table, ids[first : first + piece], first, row=None)

        say(f"prefill of {length:,} in pieces of {piece:,}, tok/s", length / timed(read))
    desk = Desk(runner)
    desk.rate(2, 64, 8)
    for streams in (1, 8, 32, 64):
        say(f"{streams} streams, short context, tok/s", desk.rate(streams, 64, 64 if given.tiny else 160 + 2 * streams))
    for _ in range(31):
        desk.add(64, 4000 if not given.tiny else 300)
    writing: set[str] = set()
    while len(writing) < 31:
        writing.add(desk.given.get(timeout=300)[1].request_id)
    began = time.perf_counter()
    desk.add(1024 if not given.tiny else 256, 4, "late")
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
    say("first token of a 1k prompt while 31 write, ms", 1e3 * (moments[0] - began))
    say("longest gap of the 31 meanwhile, ms", 1e3 * max(gaps.values()))
    before = desk.pool.available
    began = time.perf_counter()
    desk.engine.cancel(next(iter(writing)))
    while not isinstance(event := desk.given.get(timeout=300)[1], Finished):
        pass
    say("stop to end, ms", 1e3 * (time.perf_counter() - began))
    say("pages that a stop freed", desk.pool.available - before)
    desk.engine.close()
    say("peak memory, GiB", torch.cuda.max_memory_allocated() / 2**30 if IS_CUDA else 0.0)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
