import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runs import log as log_module
from app.runs.log import MOST_KEPT, Event, FarBehind, RunLog


async def read(log: RunLog, after: int = 0) -> list[Event]:
    return [event async for batch in log.follow(after) for event in batch]


def test_a_reader_gets_what_was_and_what_comes() -> None:
    async def main() -> None:
        log = RunLog()
        log.write("delta", {"n": 1})
        reader = asyncio.create_task(read(log))
        await asyncio.sleep(0)
        log.write("delta", {"n": 2})
        log.close()
        assert [(event.seq, event.content["n"]) for event in await reader] == [(1, 1), (2, 2)]

    asyncio.run(main())


def test_only_the_newest_passing_event_is_shown_to_a_late_reader() -> None:
    async def main() -> None:
        log = RunLog()
        for n in range(3):
            log.pass_on("tail", "tail", {"n": n})
        log.write("delta", {})
        reader = asyncio.create_task(read(log))
        await asyncio.sleep(0)
        log.close()
        assert [(event.name, event.seq) for event in await reader] == [("delta", 1), ("tail", None)]

    asyncio.run(main())


def test_a_silent_log_beats() -> None:
    async def main() -> None:
        log = RunLog()
        follower = log.follow(0)
        assert await anext(follower) == []
        assert log.has_readers
        await follower.aclose()
        assert not log.has_readers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_module, "HEARTBEAT_S", 0.01)
        asyncio.run(main())


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.data())
def test_readers_that_break_off_and_come_back_miss_and_repeat_nothing(actions: list[int], data: st.DataObject) -> None:
    """Interleave writes with reads that stop after any batch and go on behind the last number they saw."""

    async def main() -> None:
        log = RunLog()
        seen: list[int] = []
        for action in actions:
            if action:
                for _ in range(action):
                    log.write("delta", {})
                continue
            if log.last_seq > len(seen):
                async for batch in log.follow(len(seen)):
                    keep = data.draw(st.integers(1, len(batch)))
                    seen += [event.seq for event in batch[:keep] if event.seq]
                    break
        log.close()
        seen += [event.seq for event in await read(log, len(seen)) if event.seq]
        assert seen == list(range(1, log.last_seq + 1))

    asyncio.run(main())


def test_a_log_stays_bounded_and_a_reader_that_is_far_behind_is_told() -> None:
    async def main() -> None:
        log = RunLog()
        for number in range(5 * MOST_KEPT):
            log.write("delta", {"number": number})
        assert log.last_seq == 5 * MOST_KEPT
        assert len(log._events) <= 2 * MOST_KEPT
        log.close()
        with pytest.raises(FarBehind):
            await anext(log.follow(0))
        last = [event async for batch in log.follow(log.last_seq - 200) for event in batch]
        assert [event.seq for event in last] == list(range(log.last_seq - 199, log.last_seq + 1))

    asyncio.run(main())
