"""From a loaded model to an engine that is known to be right: the runner, its self-test, graphs and warm-up.

What does not compute what the model's own forward computes is taken back step by step; the last step is not ours to
take: `CannotBatch` says that this model is to be written by `generate`, one request after the other.
"""

import logging
import os
import shutil
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from app.engine.batched import selftest
from app.engine.batched.graphs import joined_shapes
from app.engine.batched.nf4.linear import Joined
from app.engine.batched.pace import Pace
from app.engine.batched.runner import Runner
from app.engine.batched.selftest import CannotBatch
from app.engine.model.memory import GIB, MOST_RECORDED, MemoryPlan, ModelShape

_WARM_TOKENS = (65, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
_LONGEST_JOINED_S = 0.25
_log = logging.getLogger(__name__)
# What is being done, and how far it is, 0 to 1
Tell = Callable[[str, float], None]


@dataclass(slots=True)
class Ready:
    """Which way steps are taken, in words, and how much of a prompt is first read beside those who write."""

    way: str
    pace: Pace
    taken_back: list[str] = field(default_factory=list)


def unsuitable(config: PretrainedConfig) -> str:
    """Why a model of this configuration cannot be batched here; empty if it can be tried."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"it has layers of another kind ({', '.join(sorted(kinds))})"
    if getattr(text, "sliding_window", None) and getattr(text, "use_sliding_window", True):
        return "its attention sees a window only"
    if getattr(text, "attn_logit_softcapping", None):
        return "its attention is capped"
    if getattr(config, "is_encoder_decoder", False) or not getattr(text, "num_attention_heads", None):
        return "it is no decoder with attention"
    return ""


def shape_of(model: PreTrainedModel, *, weight_bytes: int | None = None, is_four_bit: bool = False) -> ModelShape:
    """What of a model, loaded or on the meta device, decides how much memory it takes."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    is_four_bit = is_four_bit or any(type(module).__name__ == "Linear4bit" for module in model.modules())
    if weight_bytes is None:
        weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return ModelShape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocabulary=config.vocab_size,
        weight_bytes=weight_bytes,
        is_four_bit=is_four_bit,
        element_bytes=model.dtype.itemsize,
    )


def quicker_layers(model: PreTrainedModel, cache_dir: Path | None, tell: Tell) -> dict[torch.nn.Module, Joined]:
    """Put our own 4-bit layers into the model, where they are right here; those that are multiplied at once.

    Without them bitsandbytes' stay, which the log says once.
    """
    from app.engine.batched.nf4.repack import repack

    tell("Arranging the 4-bit weights", 0.0)
    folder = cache_dir / "kernels" if cache_dir is not None else None
    joined, why = repack(model, folder, lambda share: tell("Arranging the 4-bit weights", share))
    if why:
        _log.info("4-bit layers are bitsandbytes' own: %s", why)
    return dict(joined)


def runner_for(
    model: PreTrainedModel,
    plan: MemoryPlan,
    joined: Mapping[torch.nn.Module, Joined] | None = None,
) -> Runner:
    """A runner with the plan's pages and rows; `joined` comes from `quicker_layers`.

    Raises:
        torch.OutOfMemoryError: the plan was wrong.
    """
    return Runner(
        model,
        rows=plan.rows,
        pages=plan.pages,
        page_tokens=plan.page_tokens,
        context_window=plan.window,
        has_kernels=model.device.type == "cuda" and find_spec("triton") is not None,
        joined=joined,
    )


def make_ready(runner: Runner, plan: MemoryPlan, tell: Tell) -> Ready:
    """Test, capture and warm up; on the thread that will own the model. Nothing may be in the rows or pages.

    Raises:
        CannotBatch: not even the plainest way computes what the model does, or does it here.
        Exception: the GPU is gone.
    """
    try:
        return _made_ready(runner, plan, tell)
    except CannotBatch:
        raise
    except Exception as error:
        if runner.is_lost():
            raise
        raise CannotBatch(selftest.said_by(error)) from error


def _made_ready(runner: Runner, plan: MemoryPlan, tell: Tell) -> Ready:
    started = time.monotonic()
    tell("Testing the engine", 0.0)
    problem = selftest.against_model(runner)
    if problem:
        raise CannotBatch(problem)
    tell("Testing the engine", 0.5)
    taken_back = selftest.choose(runner)
    if runner.device.type == "cuda" and not runner.has_kernels and (why := why_no_kernels()):
        taken_back.append(why)
    has_graphs = False
    pace = Pace(largest=plan.largest_piece)
    if runner.device.type == "cuda":
        has_graphs = _capture(runner, plan, tell, taken_back)
        pace = _warm_up(runner, plan, tell)
    for sentence in taken_back:
        _log.warning("%s", sentence)
    _log.info("tested, captured and warmed up in %.1f s", time.monotonic() - started)
    return Ready(_way_of(runner, plan, has_graphs, taken_back), pace, taken_back)


def _capture(runner: Runner, plan: MemoryPlan, tell: Tell, taken_back: list[str]) -> bool:
    """Record the graphs and compare them with the steps they were recorded from; whether they stay."""
    if not runner.has_kernels:
        taken_back.append("CUDA graphs are off: they need the attention kernel")
        return False
    sizes = [1 << power for power in range(plan.rows.bit_length())]
    joined = joined_shapes(plan.rows, _most_at_once(plan)) if runner.is_joined else []
    try:
        # Before there are graphs: this loads their kernels, and there may be no memory for both at the same time
        plain = selftest.steps_of(runner, sizes, joined)
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        runner.capture(sizes, joined, lambda share: tell("Recording CUDA graphs", share))
        _log.info("CUDA graphs took %.2f GiB", (free - torch.cuda.mem_get_info()[0]) / GIB)
        problem = selftest.recorded_problem(runner, sizes, joined, plain)
    except Exception as error:
        problem = selftest.said_by(error)
        if runner.is_lost():
            raise
    if problem:
        runner.forget_graphs()
        taken_back.append(f"CUDA graphs are off: {problem}")
    return not problem


def _warm_up(runner: Runner, plan: MemoryPlan, tell: Tell) -> Pace:
    """Take passes of all sizes once, so that no person waits for kernels to be loaded; what passes cost here."""
    recorded = runner.joined_tokens
    longer = [tokens for tokens in _WARM_TOKENS if max(recorded, default=0) < tokens <= _most_at_once(plan)]
    sizes = [*recorded, *longer]
    took_s: dict[int, float] = {}
    selftest.set_rows(runner, plan.rows)
    largest = plan.largest_piece
    if recorded and largest <= MOST_RECORDED:
        # There is memory for what is recorded, and for nothing beside it
        largest = runner.longest_recorded
    for number, tokens in enumerate(sizes):
        try:
            _read(runner, plan, tokens, rows=0)
            is_slow = max(took_s.values(), default=0.0) > _LONGEST_JOINED_S
            if tokens in recorded or (runner.is_joined and not recorded and not is_slow):
                took_s[tokens] = max(_read(runner, plan, tokens, rows=rows) for rows in {1, plan.rows})
        except torch.OutOfMemoryError:
            if number == 0:
                raise
            before = sizes[number - 1]
            largest = min(largest, runner.longest_piece(before, 0) if before in recorded else before)
            _log.warning("there is no room for pieces of %d tokens; %d is the longest", tokens, largest)
            break
        tell("Warming up", (number + 1) / len(sizes))
    runner.wait()
    shown = ", ".join(f"{tokens}: {1e3 * seconds:.0f}" for tokens, seconds in took_s.items())
    _log.info("ms of a pass of so many tokens, one of each of %d rows among them: %s", plan.rows, shown)
    return Pace.of(took_s, largest, recorded)


def _read(runner: Runner, plan: MemoryPlan, tokens: int, *, rows: int) -> float:
    """Seconds of a pass of so many tokens, the rows' among them, taken for the second time."""
    pages = list(range(1, plan.pages))
    is_alone = not rows and tokens not in runner.joined_tokens
    ids = [tokens % runner.vocabulary] * (tokens if is_alone else min(tokens, runner.longest_piece(tokens, rows)))
    took_s = 0.0
    for _ in range(2 if rows else 1):
        runner.set_all_lengths(1)
        started = time.monotonic()
        if rows:
            runner.decode_and_extend(rows, pages, ids, 0, is_last=False)
        else:
            runner.extend(pages, ids, 0, row=0)
        took_s = time.monotonic() - started
    return took_s


def _most_at_once(plan: MemoryPlan) -> int:
    """Tokens of the longest piece that is ever read here."""
    return min(plan.largest_piece, plan.kv_tokens // 2, plan.window)


def _way_of(runner: Runner, plan: MemoryPlan, has_graphs: bool, taken_back: list[str]) -> str:
    parts = [
        "CUDA graphs" if has_graphs else "eager steps",
        "fused kernels" if runner.is_fused else "the model's own modules",
        "paged attention in Triton" if runner.has_kernels else "sdpa over gathered pages",
    ]
    off = f" ({'; '.join(taken_back)})" if taken_back else ""
    return (
        f"{plan.rows} at once, {plan.kv_tokens:,} tokens of KV cache, {plan.window:,} for one; {', '.join(parts)}{off}"
    )


def why_no_kernels() -> str:
    """What Triton may lack here to compile our kernels, and what to do; empty for nothing."""
    if find_spec("triton") is None:
        return "Triton is not installed; torch for CUDA on Linux brings it"
    has_headers = (Path(sysconfig.get_paths("posix_prefix")["include"]) / "Python.h").exists()
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")) or not has_headers:
        return "Triton needs a C compiler and Python's headers: apt-get install gcc python3-dev"
    return ""
