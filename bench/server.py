"""What an event costs the server, and how late events are: `python -m bench.server [streams] [seconds]`.

Many runs write at once, ten batches a second each; one reader a run, in another process, checks every sequence number.
"""

import asyncio
import re
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import httpx
import psutil

from bench.steady import Script, steady_ponder

OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
_EVENT = re.compile(rb"(?:id: (\d+)\n)?event: (\w+)\ndata: (.*)\n\n")


@dataclass
class Seen:
    """What the readers saw."""

    events: int = 0
    bytes: int = 0
    gaps: int = 0
    lags_s: list[float] = field(default_factory=list)
    heard_at: list[float] = field(default_factory=list)


async def read_run(url: str, cookie: str, run_id: str, seen: Seen) -> None:
    """Read a run to its end."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(
        f"GET /api/runs/{run_id}/events HTTP/1.1\r\nHost: {where.netloc}\r\nCookie: ponder={cookie}\r\n\r\n".encode()
    )
    last, rest, begun = 0, b"", time.monotonic()
    while True:
        piece = await reader.read(65536)
        if not piece:
            break
        now = time.monotonic()
        seen.bytes += len(piece)
        # Chunk sizes of the transfer encoding stand between events
        rest += re.sub(rb"\r\n[0-9a-f]+\r\n|^[0-9a-f]+\r\n|\r\n", b"", piece) if last else piece.replace(b"\r\n", b"\n")
        for match in _EVENT.finditer(rest):
            seen.events += 1
            if match[1]:
                seen.gaps += int(match[1]) != last + 1
                last = int(match[1])
            if match[2] == b"delta":
                stamps = [float(stamp) for stamp in re.findall(rb"(\d+\.\d{4}) ", match[3])]
                # What was written before this reader came is a replay, not a delay
                lags = [now - stamp for stamp in stamps if stamp > begun]
                seen.lags_s += lags
                seen.heard_at += [now] * len(lags)
            if match[2] == b"done":
                writer.close()
                return
        *_, rest = _EVENT.split(rest)


async def begin_runs(url: str, streams: int) -> tuple[str, list[str]]:
    """A guest's cookie and as many runs of theirs, all going on."""
    async with httpx.AsyncClient(base_url=url, timeout=60, headers=OWN_PAGE) as client:
        runs = []
        for number in range(streams):
            conversation = (await client.post("/api/conversations", json={})).json()["id"]
            body = {"text": "Go.", "client_key": f"bench-{number:08}"}
            runs.append((await client.post(f"/api/conversations/{conversation}/messages", json=body)).json()["run_id"])
        return client.cookies["ponder"], runs


async def _all(url: str, process: psutil.Process, streams: int) -> None:
    cookie, runs = await begin_runs(url, streams)
    seen = Seen()
    cpu_before, start = sum(process.cpu_times()[:2]), time.monotonic()
    await asyncio.gather(*(read_run(url, cookie, run_id, seen) for run_id in runs))
    cpu_s, wall_s = sum(process.cpu_times()[:2]) - cpu_before, time.monotonic() - start
    lags = sorted(seen.lags_s)
    figures = [
        f"{streams}",
        f"{seen.events / wall_s:,.0f}",
        f"{cpu_s / max(1, seen.events) * 1e6:,.0f}",
        f"{cpu_s / wall_s:.2f}",
        f"{at(lags, 0.5):.0f}",
        f"{at(lags, 0.99):.0f}",
        f"{seen.gaps}",
        f"{process.memory_info().rss / 2**20:,.0f}",
    ]
    print("| " + " | ".join(figures) + " |")


def at(values: list[float], share: float) -> float:
    """A percentile in milliseconds."""
    return values[int(share * (len(values) - 1))] * 1000 if values else 0.0


def _stamps(seconds: int) -> Script:
    return Script(stamps=seconds * 10, batch_s=0.1)


def main(streams: int = 100, seconds: int = 10) -> None:
    """Print one row a load."""
    print(
        "\n| streams, 10 batches/s each | events/s | CPU µs an event | cores | lag p50 ms | p99 ms | gaps | RSS MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for count in (1, streams):
        with steady_ponder(partial(_stamps, seconds), slots=count) as (url, pid):
            asyncio.run(_all(url, psutil.Process(pid), count))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
