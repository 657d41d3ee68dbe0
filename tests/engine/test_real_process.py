"""The engine's process with torch and a model in it, and what a kernel or a signal does to them."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.config import Settings
from app.engine import process as process_module
from app.engine.base import Message
from tests.engine.talking import Body, Talk, program, talk, talking
from tests.engine.tiny import save_tiny

Says = Callable[[Body], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("tiny")
    return Settings(
        data_dir=folder / "data", cache_dir=folder / "cache", port=0, model=str(save_tiny(folder / "tiny-model"))
    )


@pytest.fixture(scope="module")
def say(tiny: Settings) -> Iterator[Says]:
    """To one process that writes for one; who ends it waits until it is back."""
    with talking(tiny) as say:
        yield say


def test_it_loads_tells_its_profile_encodes_writes_and_cancels(say: Says) -> None:
    async def body(there: Talk) -> None:
        await there.ready()
        assert [status.stage for status in there.statuses][:2] == ["Starting torch", "Loading the tokenizer"]
        profile = there.engine.profile
        assert profile is not None
        assert (profile.context_window, profile.reasoning.kind) == (512, "close_token")
        assert 257 in profile.stop_ids
        ids = await there.engine.prompt([Message("user", "a</think>b")])
        assert profile.reasoning.close_id not in ids
        assert profile.reasoning.close_id in await there.engine.encode("</think>")
        assert (await there.written("one", 50)).reason in ("length", "stop")
        assert sum(len(delta.token_ids) for delta in there.deltas) == there.finished["one"].usage.completion_tokens

        seen = len(there.deltas)
        there.add("long", 480)
        await there.until(lambda: len(there.deltas) > seen)
        there.engine.cancel("long")
        await there.until(lambda: "long" in there.finished)
        assert there.finished["long"].reason in ("cancelled", "length", "stop")

    say(body)


def test_without_a_gpu_it_writes_for_one_and_does_not_end_before_its_app(say: Says) -> None:
    """A terminal and systemd send their signals to all processes at once."""

    async def body(there: Talk) -> None:
        await there.ready()
        profile, pid = there.engine.profile, there.engine.pid
        assert profile is not None
        assert pid is not None
        assert profile.slots == 1
        assert "no CUDA GPU" in there.engine.status.way
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert (await there.written("next", 5)).reason in ("length", "stop")
        assert there.engine.pid == pid

    say(body)


def test_it_survives_kill_9(say: Says) -> None:
    async def body(there: Talk) -> None:
        await there.ready()
        there.add("two", 400)
        there.add("three", 400)
        pid = there.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await there.until(lambda: {"two", "three"} <= there.finished.keys())
        assert there.finished["two"].reason in ("failed", "length", "stop")
        assert there.finished["three"].reason == "failed"
        assert "try again" in there.finished["three"].problem
        await there.until(lambda: there.engine.status.state == "ready" and there.engine.pid not in (None, pid))
        assert (await there.written("four", 5)).reason in ("length", "stop")

    say(body)


# A worker for many in which a step never ends once it has got the signal
_HANGING_WORKER = """
import signal, threading
from app.engine.batched.runner import Runner
from app.engine.host.worker import main
decode, hangs = Runner.decode, []
signal.signal(signal.SIGUSR1, lambda *_: hangs.append(True))
Runner.decode = lambda self, rows: threading.Event().wait() if hangs else decode(self, rows)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def say_to_many(tiny: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Says]:
    """To one process that writes for many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_module.sys, "executable", program(tmp_path_factory.mktemp("bin"), _HANGING_WORKER))
        with talking(tiny.model_copy(update={"engine": "batched"}), silence_s=6.0) as say:
            yield say


def test_many_are_written_at_once_by_the_batched_engine_and_the_way_is_told(say_to_many: Says) -> None:
    async def body(there: Talk) -> None:
        await there.ready()
        profile = there.engine.profile
        assert profile is not None
        assert (profile.slots, profile.context_window) == (64, 512)
        assert "64 at once" in there.engine.status.way
        assert "eager steps" in there.engine.status.way
        for number in range(10):
            there.add(f"r{number}", 40)
        await there.until(lambda: len(there.finished) == 10)
        assert {one.reason for one in there.finished.values()} <= {"length", "stop"}
        assert all(len(delta.logprobs) == len(delta.token_ids) for delta in there.deltas)
        first = [delta.request_id for delta in there.deltas]
        assert first.index("r9") < len(first) - 1 - first[::-1].index("r0")

    say_to_many(body)


def test_a_step_that_hangs_ends_that_process_and_is_told_in_words(say_to_many: Says) -> None:
    async def body(there: Talk) -> None:
        await there.ready()
        pid = there.engine.pid
        assert pid is not None
        seen = len(there.deltas)
        there.add("hangs", 480)
        await there.until(lambda: len(there.deltas) > seen)
        os.kill(pid, signal.SIGUSR1)
        await there.until(lambda: "hangs" in there.finished)
        assert there.finished["hangs"].reason == "failed"
        assert "the model hung" in there.finished["hangs"].problem
        assert "text so far is kept" in there.finished["hangs"].problem
        await there.until(lambda: there.engine.status.state == "ready" and there.engine.pid not in (None, pid))
        assert (await there.written("next", 5)).reason in ("length", "stop")

    say_to_many(body)


# A worker that ends while it prepares to write for many, as a kernel that kills its process would have it
_DYING_WORKER = """
import os, time
from app.engine.batched import start
from app.engine.host import hosting, worker
start.make_ready = lambda *_: (time.sleep(1), os._exit(70))
if "careful" not in sys.argv:
    hosting.why_not_batched = lambda *_: ""
sys.exit(worker.main())
"""


def test_a_process_that_dies_while_it_prepares_for_many_is_followed_by_one_that_writes_for_one(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module.sys, "executable", program(tmp_path, _DYING_WORKER))

    async def body(there: Talk) -> None:
        await there.ready()
        assert "the process before this one ended while it prepared" in there.engine.status.way
        there.add("next", 5)
        await there.until(lambda: "next" in there.finished)
        assert there.finished["next"].reason in ("length", "stop")

    talk(tiny, body)
