"""A million messages: `python -m bench.history [--messages N] [--only sqlite|postgresql] [--json FILE]`.

Fills a database on SQLite and one on PostgreSQL with conversations of a release, migrates them to this one, and asks a
real server for lists, searches and long conversations. PostgreSQL is the one of the tests: memory as it comes, and it
does not wait for the disk, which only the migration would notice.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from math import ceil
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import quote

from sqlalchemy import delete, select, update

from app.history.database import Database
from app.history.migrating import head
from app.history.search import Indexer
from app.history.tables import ConversationTable, SearchEntryTable
from bench.history_filling import OPENED_MESSAGES, Filled, fill
from bench.history_load import Answer, Ask, answers, asking, served
from tests.databases import postgresql

# What the release before this one had
REVISION = "0004"
_LIST_RATE = 300.0
_SEARCH_RATE = 20.0
_OPEN_RATE = 10.0
# Every kind of query by everybody who asks: a disk may have to be read, which is told apart
_FIRST = 42
_QUERIES = {
    "a common word": ("the ", "sum ", "check ", "not "),
    "half a word": ("che", "wit", "größ", "con"),
    "two Chinese characters": ("矩阵", "概率", "收敛"),
    "several words": ("sum check not", "wir das ist", "the let have whi"),
    "a phrase": ('"we are, not: (which)"', "„dass also“, wenn", "sum; the [check]?"),
    "nothing": ("zzyzx", "the zzyzx ", "the und 矩阵 that"),
}
# Who asks: one with thousands of conversations, and people with a few
_WHO = ("thousands", "a few")

Figures = dict[str, float]
Serve = Callable[[str, Path], AbstractContextManager[str]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table with a column a database."""
    parser = argparse.ArgumentParser(prog="python -m bench.history", description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each kind of request is asked")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    kinds = (given.only,) if given.only else ("sqlite", "postgresql")
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(prefix="ponder-bench-") as folder:
        urls = {
            kind: postgresql().empty() if kind == "postgresql" else f"sqlite:///{folder}/ponder.sqlite"
            for kind in kinds
        }
        filled = _fill_at_once(urls, given.messages)
        for kind, url in urls.items():
            found[kind] = measure(url, Path(folder) / kind, filled[kind], given.seconds)
    _print(found, filled[kinds[0]])
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def _fill_at_once(urls: dict[str, str], messages: int) -> dict[str, Filled]:
    with ProcessPoolExecutor(len(urls), mp_context=get_context("spawn")) as pool:
        filling = {kind: pool.submit(fill, url, messages, REVISION) for kind, url in urls.items()}
        return {kind: future.result() for kind, future in filling.items()}


def measure(url: str, folder: Path, filled: Filled, seconds: float, serve: Serve = served) -> Figures:
    """Every figure of one database."""
    database = Database(url)
    began = time.monotonic()
    database.migrate()
    found = {"migration_s": time.monotonic() - began}
    pieces = _indexing_s(database)
    found |= {"indexing_ms": 1000 * statistics.median(pieces), "indexing_worst_ms": 1000 * max(pieces)}
    database.close()
    dice = random.Random(3)
    with serve(url, folder) as address, asking() as client:
        answers(client, address, _lists(filled, dice, 20), 40)
        first = answers(client, address, _searches(filled, dice, _FIRST), _SEARCH_RATE / 2)
        found["first_search_ms"] = 1000 * max(answer.took_s for answer in first)
        for name, asks, rate in (
            ("list", _lists(filled, dice, int(seconds * _LIST_RATE)), _LIST_RATE),
            ("search", _searches(filled, dice, max(21, int(seconds * _SEARCH_RATE))), _SEARCH_RATE),
            ("open", _opens(filled, dice, int(seconds * _OPEN_RATE)), _OPEN_RATE),
        ):
            came = answers(client, address, asks, rate)
            found |= _figures(name, came)
            for kind in dict.fromkeys(ask.kind for ask in asks):
                if kind != name:
                    found |= _figures(f"{name}: {kind}", [answer for answer in came if answer.kind == kind])
    return found


def _indexing_s(database: Database) -> list[float]:
    """How long pieces of the indexing in the background take, of conversations that are as if they were imported."""
    with database.writing() as db:
        ids = db.scalars(select(ConversationTable.id).limit(20)).all()
        db.execute(delete(SearchEntryTable).where(SearchEntryTable.conversation_id.in_(ids)))
        db.execute(update(ConversationTable).where(ConversationTable.id.in_(ids)).values(search_version=0))
    indexer = Indexer(database)
    took = []
    while True:
        began = time.monotonic()
        if not indexer.index_some():
            return took
        took.append(time.monotonic() - began)


def _who(filled: Filled, dice: random.Random, number: int) -> tuple[str, str]:
    """Every third request is of the one with thousands of conversations."""
    return (_WHO[1], dice.choice(filled.others)) if number % 3 else (_WHO[0], filled.big)


def _lists(filled: Filled, dice: random.Random, count: int) -> list[Ask]:
    asks = []
    for number in range(count):
        _, cookie = _who(filled, dice, number)
        asks.append(Ask("list", cookie, "/api/conversations"))
    return asks


def _searches(filled: Filled, dice: random.Random, count: int) -> list[Ask]:
    asks = []
    kinds = ("a rare word", *_QUERIES)
    for number in range(count):
        who, cookie = _who(filled, dice, number)
        kind = kinds[number % len(kinds)]
        words = dice.choice(filled.rare.get(cookie, ["zq"]) if kind == "a rare word" else _QUERIES[kind])
        asks.append(Ask(f"{kind}, {who}", cookie, f"/api/conversations?q={quote(words)}"))
    return asks


def _opens(filled: Filled, dice: random.Random, count: int) -> list[Ask]:
    asks = []
    for _ in range(count):
        cookie, conversation_id = dice.choice(filled.opened).split()
        asks.append(Ask("open", cookie, f"/api/conversations/{conversation_id}"))
    return asks


def _figures(name: str, came: Sequence[Answer]) -> Figures:
    took = sorted(answer.took_s for answer in came) or [0.0]
    return {
        f"{name} p50": 1000 * took[ceil(0.5 * len(took)) - 1],
        f"{name} p99": 1000 * took[ceil(0.99 * len(took)) - 1],
        f"{name} worst": 1000 * took[-1],
        f"{name} refused": sum(answer.status != 200 for answer in came),
        f"{name} kB": statistics.fmean(answer.bytes for answer in came) / 1000 if came else 0.0,
    }


def _print(found: dict[str, Figures], filled: Filled) -> None:
    print(
        f"\n{filled.messages:,} messages in {filled.conversations:,} conversations, {filled.big_conversations:,} "
        f"of them one person's; head is {head()}; load of the machine {os.getloadavg()[0]:.1f}\n"
    )
    print("| | must | " + " | ".join(found) + " |")
    print("|---|---|" + "---|" * len(found))
    figures = list(found.values())
    _row(f"migration {REVISION} to head, s", "60", [f"{one['migration_s']:.1f}" for one in figures])
    kinds = [f"{kind}, {who}" for who in _WHO for kind in ("a rare word", *_QUERIES)]
    for name, title, must in (
        ("list", f"list, {_LIST_RATE:g} requests/s", "100"),
        ("search", f"search, {_SEARCH_RATE:g}/s", "200"),
        *((f"search: {kind}", f"– {kind}", "") for kind in kinds),
        ("open", f"opening {OPENED_MESSAGES} messages, {_OPEN_RATE:g}/s", "150"),
    ):
        cells = [_times(one, name) for one in figures]
        _row(f"{title}: p50 / p99 / worst ms", must, cells)
    _row("the first searches after the start: worst ms", "", [f"{one['first_search_ms']:.0f}" for one in figures])
    _row(
        "a piece of the indexing: p50 / worst ms",
        "50",
        [f"{one['indexing_ms']:.0f} / {one['indexing_worst_ms']:.0f}" for one in figures],
    )
    _row(
        "a list, a search, a conversation, kB",
        "",
        [" / ".join(f"{one[f'{name} kB']:.1f}" for name in ("list", "search", "open")) for one in figures],
    )
    _row(
        "answered with an error",
        "0",
        [
            f"{sum(value for name, value in one.items() if name.endswith('refused') and ':' not in name):.0f}"
            for one in figures
        ],
    )


def _times(figures: Figures, name: str) -> str:
    parts = [figures.get(f"{name} {part}") for part in ("p50", "p99", "worst")]
    return " / ".join("–" if part is None else f"{part:.0f}" for part in parts)


def _row(title: str, must: str, cells: list[str]) -> None:
    print(f"| {title} | {must} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
