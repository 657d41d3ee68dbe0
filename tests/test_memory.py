"""What a flood took goes back to the system."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from app import memory

ROOT = Path(__file__).parents[1]
FLOOD = """
import sys
from pathlib import Path
from app.memory import keep_small
if sys.argv[1] == "kept small":
    assert keep_small()
rss = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
before = rss()
one = b"x" * (30 << 20)
del one
bodies, between = [], []
for _ in range(100):
    bodies.append(b"x" * (1 << 20))
    between.append(b"y" * 3000)
assert rss() - before > 90
del bodies
print(rss() - before)
"""


def left_mib(how: str) -> int:
    ended = subprocess.run([sys.executable, "-c", FLOOD, how], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(ended.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's")
def test_large_bodies_among_small_things_go_back_when_they_are_freed() -> None:
    assert left_mib("kept small") < 10
    assert left_mib("left to itself") > 25


def test_free_pages_are_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    async def scene() -> None:
        often = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Glibc:
            @staticmethod
            def malloc_trim(pad: int) -> int:
                given.append(pad)
                if len(given) == 3:
                    loop.call_soon_threadsafe(often.set)
                return 1

        monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: Glibc)
        monkeypatch.setattr(memory, "_EVERY_S", 0)
        job = asyncio.create_task(memory.give_back())
        await asyncio.wait_for(often.wait(), 30)
        job.cancel()

    asyncio.run(scene())
    assert given[:3] == [0, 0, 0]


def test_where_there_is_no_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert not memory.keep_small()
    asyncio.run(memory.give_back())
