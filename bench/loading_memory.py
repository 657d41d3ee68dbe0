"""RAM that a start takes while it quantizes: `python -m bench.loading_memory [--layers 4] [--vocabulary 8192]`.

Writes bf16 shards of QwQ's widths with random weights, one a layer, loads them in 4 bits in a process of its own as the
server does, and prints how much of that process's memory was its own at most: what it maps of the files is not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu_smoke import QWQ_SHAPE


def write_shards(folder: Path, shape: dict[str, Any], layers: int) -> list[Path]:
    """A folder as the Hub has it: a config, an index, and a shard for each layer and one for the rest."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config

    from app.engine.model.loading import empty_model

    folder.mkdir(parents=True, exist_ok=True)
    config = Qwen2Config(num_hidden_layers=layers, architectures=["Qwen2ForCausalLM"], dtype="bfloat16", **shape)
    config.save_pretrained(folder)
    places: dict[str, str] = {}
    by_shard: dict[int, list[str]] = {}
    tensors = empty_model(config).state_dict()
    for name in tensors:
        by_shard.setdefault(int(name.split(".")[2]) if ".layers." in name else layers, []).append(name)
    for number, names in sorted(by_shard.items()):
        file = f"model-{number + 1:05}-of-{len(by_shard):05}.safetensors"
        # The same weights again and again: what they are does not matter, and drawing them takes minutes
        drawn = torch.randn(1 << 20, dtype=torch.bfloat16) * 0.02
        made = {}
        for name in names:
            wanted = tensors[name].numel()
            made[name] = drawn.repeat(-(-wanted // drawn.numel()))[:wanted].view(tensors[name].shape)
        save_file(made, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sorted(folder.glob("*.safetensors"))


def load_and_tell(folder: Path) -> dict[str, int]:
    """In this process: bytes of its own memory that loading took at most, and that the model has afterwards."""
    import bitsandbytes
    import torch

    from app.engine.model import loading
    from app.engine.profiles import spec_for

    spec = replace(spec_for(str(folder), 0.0), is_four_bit=True)
    config = loading.load_config(str(folder))
    # The libraries' own code is no part of it
    bitsandbytes.functional.quantize_4bit(torch.randn(64, 64), quant_type="nf4", compress_statistics=True)
    loading.empty_model(config)
    before = own_bytes()
    peak = [before]
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(0.002):
            peak[0] = max(peak[0], own_bytes())

    watching = threading.Thread(target=look)
    watching.start()
    model = loading.load_model(spec, str(folder), config, lambda *_: None)
    is_over.set()
    watching.join()
    in_ram = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters() if not tensor.is_cuda)
    kind = type(model.model.layers[0].mlp.up_proj).__name__
    assert kind == "Linear4bit", kind
    return {"peak_bytes": peak[0] - before, "model_bytes_in_ram": in_ram}


def own_bytes() -> int:
    """Memory of this process that is in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(folder: Path) -> dict[str, int]:
    """`load_and_tell` in a fresh process."""
    command = [sys.executable, "-m", "bench.loading_memory", "--load", str(folder)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    found: dict[str, int] = json.loads(ran.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--load", type=Path)
    given = parser.parse_args()
    if given.load:
        print(json.dumps(load_and_tell(given.load)))
        return
    with tempfile.TemporaryDirectory() as place:
        files = write_shards(Path(place) / "m", QWQ_SHAPE | {"vocab_size": given.vocabulary}, given.layers)
        found = measured(Path(place) / "m")
        sizes = [file.stat().st_size for file in files]
    print(f"| {given.layers} layers of QwQ's widths, {len(files)} shards | GB |\n|---|---|")
    for name, size in (("files", sum(sizes)), ("largest shard", max(sizes)), *found.items()):
        print(f"| {name.removesuffix('_bytes').replace('_', ' ')} | {size / 1e9:.2f} |")


if __name__ == "__main__":
    main()
