"""What Ponder makes of real outputs: `python -m bench.traces FILE` (JSON lines, plain or gzip: model, source, text).

For each model: where the answer was found (by a tag, a heading, a box, closing words, or nowhere), how often a shown
border moved, whether the border is the same for every cutting of the text, how many formulas were drawn, whether the
rendering as a stream is the rendering of the whole, and what it costs. `--unmarked` prints the outputs without a
border, to be read.
"""

import argparse
import gzip
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from app.reasoning.splitter import HeadingSplitter, Resplit, Splitter, TagSplitter, Written
from app.render import StreamRenderer, render

_CLOSE = "</think>"
_FORMULA = re.compile(r"<math|latex-source")


@dataclass
class Counts:
    """What came of the outputs of one model."""

    outputs: int = 0
    found: Counter[str] = field(default_factory=Counter)
    resplits: int = 0
    other_border: int = 0
    drawn: int = 0
    as_source: int = 0
    other_stream: int = 0
    chars: int = 0
    seconds: float = 0.0


def split(text: str, pieces: list[str]) -> tuple[str, str, str, int]:
    """How the answer was found, reasoning and answer, and how often a shown border moved."""
    splitter: Splitter = TagSplitter() if _CLOSE in text else HeadingSplitter(take_last=True)
    written: list[Written] = []
    for piece in pieces:
        written += splitter.feed([0], [piece])
    is_marked = splitter.is_answering
    written += splitter.finish()
    kept, moves = [], 0
    for one in written:
        if isinstance(one, Resplit):
            moves += any(piece.channel == "answer" for piece in kept)
            kept = list(one.pieces)
        else:
            kept.append(one)
    reasoning = "".join(piece.text for piece in kept if piece.channel == "reasoning")
    answer = "".join(piece.text for piece in kept if piece.channel == "answer")
    return _how(splitter, answer, is_marked=is_marked), reasoning, answer, moves


def _how(splitter: Splitter, answer: str, *, is_marked: bool) -> str:
    if splitter.is_unmarked:
        return "unmarked"
    if isinstance(splitter, TagSplitter):
        return "tag"
    if is_marked:
        return "heading"
    return "box" if "\\boxed{" in answer else "closing words"


def cut(text: str, dice: random.Random) -> list[str]:
    """The text in pieces of 1 to 40 characters."""
    pieces, at = [], 0
    while at < len(text):
        size = dice.randint(1, 40)
        pieces.append(text[at : at + size])
        at += size
    return pieces


def measure(row: dict[str, str], counts: Counts, dice: random.Random) -> str:
    """Add what comes of one output; how its answer was found."""
    text, pieces = row["text"], cut(row["text"], dice)
    how, reasoning, answer, moves = split(text, pieces)
    counts.outputs += 1
    counts.found[how] += 1
    counts.resplits += moves
    counts.other_border += (reasoning, answer) != split(text, [text])[1:3]
    for channel in (reasoning, answer):
        began = time.process_time()
        html = render(channel)
        counts.seconds += time.process_time() - began
        counts.chars += len(channel)
        for one in _FORMULA.findall(html):
            counts.drawn += one == "<math"
            counts.as_source += one != "<math"
        stream = StreamRenderer()
        blocks = [block for piece in cut(channel, dice) for block in stream.push(piece)] + stream.finish()
        counts.other_stream += "".join(blocks) != html
    return how


def rows_of(file: Path) -> Iterator[dict[str, str]]:
    """The outputs in a file of JSON lines."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        for line in lines:
            yield json.loads(line)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--unmarked", action="store_true", help="print the ends of outputs without a border")
    parser.add_argument("--seed", type=int, default=20261127)
    given = parser.parse_args()
    dice, by_model = random.Random(given.seed), defaultdict[str, Counts](Counts)
    for number, row in enumerate(rows_of(given.file)):
        how = measure(row, by_model[row["model"]], dice)
        if how == "unmarked" and given.unmarked:
            print(f"--- {number} {row['model']} {row['source']} {len(row['text'])} characters\n{row['text'][-300:]}\n")
    ways = ("tag", "heading", "box", "closing words", "unmarked")
    print("| model | outputs |", " | ".join(ways), "| moved | cut differs | drawn | source | stream differs | ms/kB |")
    print("|---" * (len(ways) + 8) + "|")
    for model, counts in by_model.items():
        found = " | ".join(str(counts.found[way]) for way in ways)
        cost = 1e6 * counts.seconds / max(counts.chars, 1)
        print(
            f"| {model} | {counts.outputs} | {found} | {counts.resplits} | {counts.other_border} | {counts.drawn} "
            f"| {counts.as_source} | {counts.other_stream} | {cost:.2f} |"
        )


if __name__ == "__main__":
    main()
