"""How long signing in takes, and what it does to live streams: `python -m bench.login [streams] [logins a second]`.

One server, one run of figures: the streams alone, then with people signing in, then alone again.
"""

import asyncio
import sys
import time

import httpx

from bench.server import OWN_PAGE, Seen, at, begin_runs, read_run
from bench.steady import Script, steady_ponder

_PHASE_S = 12
_PASSWORD = "seven green bicycles"
_PEOPLE = 10


async def _register(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, headers=OWN_PAGE, timeout=60) as client:
        for number in range(_PEOPLE):
            await client.post("/auth/register", json={"username": f"person{number}", "password": _PASSWORD})
            client.cookies.clear()


async def _sign_in(client: httpx.AsyncClient, number: int, took_s: list[float], refused: list[int]) -> None:
    client.cookies.clear()
    start = time.monotonic()
    body = {"username": f"person{number % _PEOPLE}", "password": _PASSWORD}
    response = await client.post("/auth/login", json=body)
    took_s.append(time.monotonic() - start)
    if response.status_code != 200:
        refused.append(response.status_code)


async def _sign_in_at(url: str, rate: float, seconds: float) -> tuple[list[float], list[int]]:
    """Sign in at a fixed rate, whether or not the last one is done."""
    took_s: list[float] = []
    refused: list[int] = []
    start = time.monotonic()
    async with httpx.AsyncClient(base_url=url, headers=OWN_PAGE, timeout=60) as client, asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
            group.create_task(_sign_in(client, number, took_s, refused))
    return took_s, refused


async def _all(url: str, streams: int, rate: float) -> None:
    await _register(url)
    cookie, runs = await begin_runs(url, streams)
    seen = Seen()
    readers = asyncio.gather(*(read_run(url, cookie, run_id, seen) for run_id in runs))
    await asyncio.sleep(2)
    borders = [time.monotonic()]
    await asyncio.sleep(_PHASE_S)
    borders.append(time.monotonic())
    took_s, refused = await _sign_in_at(url, rate, _PHASE_S)
    borders.append(time.monotonic())
    await asyncio.sleep(_PHASE_S)
    borders.append(time.monotonic())
    await readers
    for name, begin, end in zip(("before", f"{rate:g} logins/s", "after"), borders, borders[1:], strict=False):
        lags = sorted(lag for lag, when in zip(seen.lags_s, seen.heard_at, strict=True) if begin <= when < end)
        took = sorted(took_s) if "logins" in name else []
        login = f"{at(took, 0.5):.0f} | {at(took, 0.99):.0f}" if took else "– | –"
        print(f"| {name} | {at(lags, 0.5):.0f} | {at(lags, 0.99):.0f} | {login} | {len(refused) if took else 0} |")
    print(f"\n({streams} streams of 10 batches a second; {seen.gaps} gaps)")


def _stamps() -> Script:
    return Script(stamps=10 * (3 * _PHASE_S + 12), batch_s=0.1)


def main(streams: int = 100, rate: float = 5.0) -> None:
    """Print one row a phase."""
    print("\n| phase | stream lag p50 ms | p99 ms | login p50 ms | p99 ms | refused |")
    print("|---|---|---|---|---|---|")
    with steady_ponder(_stamps, slots=streams) as (url, _):
        asyncio.run(_all(url, streams, rate))


if __name__ == "__main__":
    main(*(float(argument) if index else int(argument) for index, argument in enumerate(sys.argv[1:])))  # type: ignore[arg-type]
