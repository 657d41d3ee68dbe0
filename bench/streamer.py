"""What turning a token into text costs, ours against the stock streamer: `python -m bench.streamer [tokens]`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer, TextIteratorStreamer

from app.engine.model.demo import demo_folder
from app.engine.model.streamer import TokenStreamer

_LINE = "so the next term is the sum of the two before it, and therefore "


def _tokenizer() -> object:
    folder = demo_folder(Path.home() / ".cache" / "ponder", print)
    return AutoTokenizer.from_pretrained(folder or "HuggingFaceTB/SmolLM2-135M-Instruct")


def _cost_us(make: Callable[[], TextIteratorStreamer], ids: list[int]) -> tuple[float, int]:
    """Microseconds a token, and how many pieces came out before the end."""
    streamer = make()
    tokens = [torch.tensor([token_id]) for token_id in ids]
    streamer.put(torch.tensor([[1]]))
    start = time.perf_counter()
    for token in tokens:
        streamer.put(token)
    cost = (time.perf_counter() - start) / len(ids) * 1e6
    pieces = streamer.text_queue.qsize()
    streamer.end()
    return cost, pieces


def main(count: int = 3600) -> None:
    """Print one row for words and one for text without spaces."""
    tokenizer = _tokenizer()
    print("\n| one line of | tokens | ours µs a token | stock µs a token | stock / ours | pieces ours | pieces stock |")
    print("|---|---|---|---|---|---|---|")
    for name, text in (("words", _LINE * count), ("no spaces", "0123456789abcdef" * count)):
        ids = tokenizer.encode(text)[:count]  # type: ignore[attr-defined]
        ours, our_pieces = _cost_us(lambda: TokenStreamer(tokenizer), ids)  # type: ignore[arg-type]
        stock, stock_pieces = _cost_us(lambda: TextIteratorStreamer(tokenizer, skip_prompt=True), ids)  # type: ignore[arg-type]
        figures = [name, f"{len(ids):,}", f"{ours:.1f}", f"{stock:,.0f}", f"{stock / ours:,.0f}x"]
        print("| " + " | ".join([*figures, f"{our_pieces:,}", f"{stock_pieces:,}"]) + " |")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
