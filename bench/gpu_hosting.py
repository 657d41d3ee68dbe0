"""What cards of other sizes would do, tried on a larger one: `python -m bench.gpu_hosting [--cards 23.6,31.4]`.

Saves random NF4 weights of QwQ's shapes once, then starts the real engine process on them with the GPU's memory capped
to each size, fills its KV cache with prompts, and reads the driver's own count of used memory all the while. Prints a
row for each card. `--tiny` tries it on a CPU.
"""

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from app.config import Settings
from app.engine.base import Delta, EngineStatus, Finished, Request, Sampling
from app.engine.model.memory import CARDS_GIB
from app.engine.process import EngineProcess
from bench.gpu import IS_CUDA, built
from bench.gpu_smoke import QWQ_SHAPE, TINY_SHAPE
from tests.engine.tiny import tiny_tokenizer

_SHARD_BYTES = 5 << 30
_DRAWN = Sampling(temperature=0.6, top_p=0.95, top_k=40)


def save(folder: Path, shape: dict[str, Any], layers: int) -> None:
    """A folder with random weights in NF4, in shards, and the tests' tokenizer."""
    model = built(shape, layers)
    config = model.config
    config.dtype = torch.bfloat16
    config.quantization_config = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
    }
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written["architectures"] = ["Qwen2ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(written))
    tiny_tokenizer().save_pretrained(folder)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in model.state_dict().items():
        kept = tensor.detach().to("cpu").contiguous()
        size += kept.numel() * kept.element_size()
        if size > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = kept
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


class Watch:
    """The driver's count of used memory, every tenth of a second."""

    def __init__(self) -> None:
        self.peak_gib = 0.0
        self.idle_gib = used_gib()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._is_over.wait(0.1):
            self.peak_gib = max(self.peak_gib, used_gib())

    def end(self) -> float:
        """The most that was used since the start."""
        self._is_over.set()
        self._thread.join()
        return self.peak_gib


def used_gib() -> float:
    """Memory of the first GPU in use by all programs, as nvidia-smi says."""
    if not IS_CUDA:
        return 0.0
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
    return float(subprocess.run(asked, capture_output=True, check=True, text=True).stdout.split()[0]) / 1024


async def try_card(folder: Path, card: float, vocabulary: int, window: int) -> dict[str, Any]:
    """Start the engine process on a card of so many GiB, fill it, end it; what came of it."""
    settings = Settings(
        model=str(folder),
        cache_dir=folder.parent / "cache",
        gpu_memory_gib=card,
        engine="batched",
        max_context_tokens=window,
        kv_ram_gib=1 if IS_CUDA else 0,
    )
    engine = EngineProcess(settings)
    watch = Watch()
    found: dict[str, Any] = {"card, GiB": card}
    started = time.perf_counter()
    stages: dict[str, float] = {}
    pending: set[str] = set()
    first: dict[str, float] = {}
    asked: dict[str, float] = {}
    counted = {"tokens": 0}
    failed: list[str] = []
    steps: list[str] = []

    def add(name: str, prompt_tokens: int, new_tokens: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        prompt = tuple(torch.randint(0, vocabulary, (prompt_tokens,), generator=generator).tolist())
        pending.add(name)
        asked[name] = time.perf_counter()
        engine.add(Request(name, prompt, _DRAWN, (), new_tokens))

    await engine.start()
    async for batch in engine.events():
        for event in batch:
            if isinstance(event, EngineStatus):
                stages.setdefault(event.stage or event.state, time.perf_counter() - started)
                if event.state == "failed":
                    found["problem"] = f"{event.problem} {event.remedy}"
                    steps.append("over")
                if event.state == "ready":
                    profile = engine.profile
                    assert profile is not None
                    found |= {"ready, s": time.perf_counter() - started, "way": event.way}
                    found |= {"at once": profile.slots, "window": profile.context_window}
                    found["memory in use when ready, GiB"] = used_gib()
                    found["stages, s"] = {stage: round(at, 1) for stage, at in stages.items()}
                    add("longest", profile.context_window - 40, 32, 1)
            elif isinstance(event, Delta):
                first.setdefault(event.request_id, time.perf_counter())
                counted["tokens"] += len(event.token_ids)
            elif isinstance(event, Finished):
                pending.discard(event.request_id)
                if event.reason != "length":
                    failed.append(f"{event.request_id}: {event.reason} {event.problem}")
                if event.request_id == "longest":
                    profile = engine.profile
                    assert profile is not None
                    found["longest prompt read, s"] = first.get("longest", 0.0) - asked["longest"]
                    # Twice as many tokens as there is room for, where that is not too much to read
                    room = int(found["way"].split(" tokens of KV")[0].split(", ")[-1].replace(",", ""))
                    share = min(600, 2 * room // profile.slots, profile.context_window // 2)
                    for number in range(profile.slots):
                        add(f"r{number}", share, min(64, profile.context_window // 4), 10 + number)
                    counted["from"], counted["tokens"] = time.perf_counter(), 0  # type: ignore[assignment]
                elif not pending and not steps:
                    seconds = time.perf_counter() - counted["from"]
                    found["all at once, tok/s with their reading"] = counted["tokens"] / seconds
                    steps.append("over")
        if steps:
            break
    found["peak by the driver, GiB"] = watch.end()
    found["used before, GiB"] = watch.idle_gib
    found["failed"] = failed
    await engine.close()
    return found


def main() -> None:
    """Print a row for each card."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--cards", default=",".join(str(gib) for gib in CARDS_GIB.values()), help="GiB of each")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-save", action="store_true", help="write the weights and end, as nothing else is to")
    given = parser.parse_args()
    place = given.folder or Path(tempfile.mkdtemp())
    shape = (TINY_SHAPE | {"vocab_size": 320}) if given.tiny else QWQ_SHAPE
    folder = place / ("random" if given.tiny else "qwq-32b-random")
    started = time.perf_counter()
    if given.only_save:
        save(folder, shape, given.layers or (2 if given.tiny else 64))
        return
    if not (folder / "model.safetensors.index.json").exists():
        # In a process of its own, so that no memory of the GPU stays with this one
        passed = [*(["--tiny"] if given.tiny else []), "--layers", str(given.layers), "--folder", str(place)]
        subprocess.run([sys.executable, "-m", "bench.gpu_hosting", "--only-save", *passed], check=True)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
    print(f"{size:.1f} GiB written in {time.perf_counter() - started:.0f} s", flush=True)
    every = []
    for card in [0.0] if given.tiny else [float(card) for card in given.cards.split(",")]:
        found = asyncio.run(try_card(folder, card, shape["vocab_size"], 1024 if given.tiny else 32768))
        every.append(found)
        print(json.dumps(found, default=str), flush=True)
        if given.json:
            given.json.write_text(json.dumps(every, indent=2, default=str) + "\n")
    if not given.folder:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
