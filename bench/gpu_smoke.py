"""The local engine with QwQ's widths on a CUDA GPU: `python -m bench.gpu_smoke [--layers 4] [--tiny] [--folder DIR]`.

Writes random bf16 weights in several shards, loads them through the real loader (NF4, double quantization), saves them
in 4 bits, loads that, and drives both through the real engine: streaming, cancelling in a prefill, closing and going
on. Random weights cost what trained ones cost and say nothing sensible. `--tiny` runs the same on a CPU.
"""

import argparse
import json
import queue
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from app.engine.base import Delta, Finished, Request, Sampling
from app.engine.local.engine import LocalEngine
from app.engine.model import loading
from app.engine.profiles import QWQ, ModelSpec
from tests.engine.tiny import tiny_tokenizer

QWQ_SHAPE = {
    "vocab_size": 152064,
    "hidden_size": 5120,
    "intermediate_size": 27648,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
TINY_SHAPE = QWQ_SHAPE | {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


class Desk:
    """A loaded model and what its engine gave."""

    def __init__(self, spec: ModelSpec, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        start = time.perf_counter()
        stages: list[tuple[str, float | None]] = []
        config = loading.load_config(str(folder))
        model = loading.load_model(spec, str(folder), config, lambda *stage: stages.append(stage))
        self.load_s = time.perf_counter() - start
        self.steps = len(stages)
        self.kind = type(model.model.layers[0].mlp.up_proj).__name__
        self.vocabulary = config.vocab_size
        self.given: queue.Queue[Delta | Finished] = queue.Queue()
        self.engine = LocalEngine(model, tokenizer, self.given.put)

    def prompt(self, tokens: int, seed: int = 1) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randint(0, self.vocabulary, (tokens,), generator=generator).tolist())

    def write(self, prompt: tuple[int, ...], tokens: int, cancel_after_s: float | None = None) -> dict[str, object]:
        """One request: its ids, its times, its end."""
        start = time.perf_counter()
        self.engine.add(Request("r", prompt, Sampling(temperature=0.0), (), tokens))
        if cancel_after_s is not None:
            time.sleep(cancel_after_s)
            self.engine.cancel("r")
            start = time.perf_counter()
        ids: list[int] = []
        first = 0.0
        while not isinstance(event := self.given.get(timeout=300), Finished):
            first = first or time.perf_counter() - start
            ids += event.token_ids
        seconds = time.perf_counter() - start
        rate = (len(ids) - 1) / (seconds - first) if len(ids) > 1 else 0.0
        return {"ids": ids, "first_s": first, "seconds": seconds, "rate": rate, "end": event}


def _drive(name: str, desk: Desk, long_prompt: int) -> None:
    memory = loading.used_gpu_gib()[0]
    desk.write(desk.prompt(16), 8)
    short = desk.write(desk.prompt(64, 2), 64)
    again = desk.write((*desk.prompt(64, 2), *short["ids"]), 16)  # type: ignore[misc]
    read = desk.write(desk.prompt(long_prompt, 3), 2)
    cancelled = desk.write(desk.prompt(long_prompt, 4), 2, cancel_after_s=0.02)
    after = desk.write(desk.prompt(64, 2), 64)
    ended = f"{cancelled['end'].reason}, {len(cancelled['ids'])} tokens written"  # type: ignore[attr-defined,arg-type]
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    figures = {
        "linear layers": desk.kind,
        "loaded in s (progress steps)": f"{desk.load_s:.1f} ({desk.steps})",
        "GPU memory in use / peak GiB": f"{memory:.1f} / {peak:.1f}",
        "tokens/s, one stream": f"{short['rate']:.1f}",
        "going on: cached of prompt": f"{again['end'].usage.cached_tokens} of {again['end'].usage.prompt_tokens}",  # type: ignore[attr-defined]
        f"first token after {long_prompt:,} tokens, s": f"{read['first_s']:.3f}",
        "cancel in that prefill, ms to the end": f"{cancelled['seconds'] * 1e3:.0f} ({ended})",  # type: ignore[operator]
        "same tokens after the cancel": str(after["ids"] == short["ids"]),
    }
    for figure, reading in figures.items():
        print(f"| {name} | {figure} | {reading} |", flush=True)
    desk.engine.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = TINY_SHAPE if given.tiny else QWQ_SHAPE
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(num_hidden_layers=given.layers, **shape)).to(torch.bfloat16)
    model.save_pretrained(folder / "bf16", max_shard_size="100KB" if given.tiny else "2GB")
    tokenizer.save_pretrained(folder / "bf16")
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    shards = len(list((folder / "bf16").glob("*.safetensors")))
    print(f"\ntorch {torch.__version__}, {device}, {given.layers} layers, {shards} shards: {json.dumps(shape)}\n")
    print("| checkpoint | figure | reading |\n|---|---|---|")
    spec = replace(QWQ, least_gpu_gib=0.0)
    first = Desk(spec, folder / "bf16", tokenizer)
    first.engine._model.save_pretrained(folder / "nf4")
    tokenizer.save_pretrained(folder / "nf4")
    _drive("bf16 shards", first, 256 if given.tiny else 8192)
    del first
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    _drive("saved NF4", Desk(spec, folder / "nf4", tokenizer), 256 if given.tiny else 8192)


if __name__ == "__main__":
    main()
