"""Every run comes to its end: whatever is asked of it, at whatever moment, and whatever hangs meanwhile."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from app.engine.base import EngineStatus
from app.errors import StorageFailed, TooManyRuns
from app.history.states import FINAL_STATES
from app.history.store import Ending, Store, Written, now
from app.history.tables import RunTable
from app.history.usage import Allowance
from app.runs import carrier, keeper
from app.runs.live import LiveRun, Options
from app.runs.transcript import Transcript
from tests.runs.conftest import Body, World, until
from tests.scripted import CLOSE, HOLD

InWorld = Callable[[Body], None]
pytestmark = pytest.mark.usefixtures("quick_loops")


def live(world: World, run_id: str) -> LiveRun:
    run = world.runs._carrier.live(run_id)
    assert run is not None
    return run


def make_old(world: World, run_id: str) -> None:
    with world.store.database.writing() as db:
        long_ago = now() - timedelta(minutes=2)
        db.execute(update(RunTable).where(RunTable.id == run_id).values(created_at=long_ago))


async def never(_: object) -> tuple[int, ...]:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("way", ["stop", "delete", "close"])
def test_a_run_is_stopped_while_the_engine_does_not_answer_at_its_start(in_world: InWorld, way: str) -> None:
    async def body(world: World) -> None:
        world.engine.encode = never  # type: ignore[method-assign]
        accepted = await world.send()
        await world.until(accepted.run_id, "state", state="running")
        if way == "stop":
            await world.runs.stop(world.owner, accepted.run_id)
        elif way == "delete":
            await world.runs.delete_conversation(world.owner, world.conversation)
        else:
            await world.runs.close()
        assert live(world, accepted.run_id).state == ("interrupted" if way == "close" else "stopped")
        assert world.engine.requests == []

    in_world(body)


def test_a_run_that_was_committed_though_it_seemed_to_fail_is_ended_and_its_chat_goes_on(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        made: list[Any] = []
        accept = world.store.accept

        def in_doubt(*given: Any, **named: Any) -> Any:
            made.append(accept(*given, **named))
            raise StorageFailed("Was it?")

        monkeypatch.setattr(world.store, "accept", in_doubt)
        with pytest.raises(StorageFailed):
            await world.send()
        monkeypatch.undo()
        (accepted,) = made
        assert await anext(world.runs.follow(world.owner, accepted.run_id, 0)) == []
        make_old(world, accepted.run_id)
        assert (await world.follow(accepted.run_id))[-1].content["state"] == "interrupted"
        world.engine.scripts.append(f"one{HOLD}{CLOSE}two")
        second = await world.send("Once more")
        await world.until(second.run_id, "delta")
        make_old(world, second.run_id)
        await world.runs._carrier._end_left_open()
        assert world.store.run(world.owner, second.run_id).state == "running"
        world.engine.release()
        assert (await world.follow(second.run_id))[-1].content["state"] == "done"

    in_world(body)


def slow_saves(world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, threading.Event]:
    """Ends are saved when the second is set; the first is set when one is to be."""
    saving, may_go, loop, save = asyncio.Event(), threading.Event(), asyncio.get_running_loop(), world.store.save

    def slow(run_id: str, written: Written, ending: Ending | None = None) -> str | None:
        if ending is not None:
            loop.call_soon_threadsafe(saving.set)
            assert may_go.wait(60)
        return save(run_id, written, ending)

    monkeypatch.setattr(world.store, "save", slow)
    return saving, may_go


@pytest.mark.parametrize("moment", ["waiting", "writing"])
def test_who_stops_a_run_and_hangs_up_leaves_no_reader_behind_and_the_next_waits_until_it_is_saved(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"one{HOLD}")
        if moment == "waiting":
            world.engine.status = EngineStatus("loading")
        accepted = await world.send()
        if moment == "writing":
            await world.until(accepted.run_id, "delta")
        saving, may_go = slow_saves(world, monkeypatch)
        reader = asyncio.create_task(world.follow(accepted.run_id))
        gone = asyncio.create_task(world.runs.stop(world.owner, accepted.run_id))
        await saving.wait()
        gone.cancel()
        second = asyncio.create_task(world.runs.stop(world.owner, accepted.run_id))
        await asyncio.sleep(0)
        assert not second.done()
        assert not reader.done()
        may_go.set()
        await second
        assert world.store.run(world.owner, accepted.run_id).state == "stopped"
        assert (await reader)[-1].content["state"] == "stopped"

    in_world(body)


def test_a_reader_is_let_go_when_even_the_last_event_cannot_be_made(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        def broken(_: LiveRun) -> None:
            raise RuntimeError("no")

        world.engine.scripts.append(f"one{HOLD}")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        reader = asyncio.create_task(world.follow(accepted.run_id))
        monkeypatch.setattr(LiveRun, "written", broken)
        await world.runs.stop(world.owner, accepted.run_id)
        assert all(event.name != "done" for event in await reader)
        monkeypatch.undo()
        assert world.store.run(world.owner, accepted.run_id).state in FINAL_STATES

    in_world(body)


def test_a_run_that_fails_by_a_fault_of_ours_stops_the_engine_and_keeps_what_was_held_back(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        # Held back, as it may become a tag that opens the reasoning once more
        world.engine.scripts.append(f"<th{HOLD} never")
        accepted = await world.send()
        run = live(world, accepted.run_id)
        await until(lambda: run._course is not None and run._course.counts.reasoning == 1)
        assert world.answer(accepted).reasoning == ""

        def broken(*_: object) -> None:
            raise RuntimeError("no")

        with monkeypatch.context() as patched:
            patched.setattr(run._course.__class__, "answer_now", broken)
            await world.runs.order(world.owner, accepted.run_id, "answer_now")
            done = (await world.follow(accepted.run_id))[-1].content
        assert done["state"] == "failed"
        assert done["error"] == {
            "code": "engine_failed",
            "message": "Something went wrong while answering. The text so far is kept; try again.",
        }
        assert world.answer(accepted).reasoning == "<th"
        assert world.engine.cancelled == [f"{accepted.run_id}.1"]

    in_world(body)


def test_closing_stops_the_engine_and_keeps_what_was_held_back(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"<th{HOLD} never")
        accepted = await world.send()
        run = live(world, accepted.run_id)
        await until(lambda: run._course is not None and run._course.counts.reasoning == 1)
        await world.runs.close()
        assert world.answer(accepted).reasoning == "<th"
        assert world.engine.cancelled == [f"{accepted.run_id}.1"]

    in_world(body)


def test_a_run_that_the_database_cannot_start_says_so(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        def full(*_: object) -> None:
            raise StorageFailed("The disk is full.")

        monkeypatch.setattr(world.store, "start_run", full)
        accepted = await world.send()
        done = (await world.follow(accepted.run_id))[-1].content
        assert done["error"] == {"code": "storage_failed", "message": "The disk is full."}

    in_world(body)


def test_a_run_that_is_over_is_forgotten_after_a_while_and_no_sooner(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        first = await world.send()
        await world.follow(first.run_id)
        assert [run.id for run in world.runs._carrier.those(lambda _: True)] == [first.run_id]
        monkeypatch.setattr(carrier, "_KEEP_LOG_S", 0.0)
        second = await world.send("And?")
        await world.follow(second.run_id)
        await until(lambda: world.runs._carrier.live(second.run_id) is None)
        assert world.runs._carrier.live(first.run_id) is not None

    in_world(body)


@pytest.mark.parametrize("first", ["kept", "temporary"])
def test_the_limit_of_runs_at_once_holds_over_both_kinds_of_chats(in_world: InWorld, first: str) -> None:
    async def body(world: World) -> None:
        world.engine.default_script = f"one{HOLD}"
        temporary = world.runs._history.temporary.add_conversation(world.owner).id
        chats = [world.conversation, temporary] if first == "kept" else [temporary, world.conversation]

        numbers = itertools.count()

        async def send(conversation_id: str) -> None:
            await world.runs.accept(
                world.owner,
                conversation_id,
                "Why?",
                parent_id=None,
                is_parent_given=False,
                client_key=f"key-number-{next(numbers)}",
                options=Options(),
                allowance=Allowance(runs_at_once=1),
            )

        await send(chats[0])
        with pytest.raises(TooManyRuns):
            await send(chats[1])
        await world.runs.stop_all_of(world.owner)
        both = await asyncio.gather(*map(send, chats), return_exceptions=True)
        assert [type(one) for one in both].count(TooManyRuns) == 1

    in_world(body)


@pytest.mark.parametrize("name", ["push", "finish"])
def test_text_that_cannot_be_drawn_is_shown_as_it_was_written(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"fine{CLOSE}1 < 2{HOLD} and on")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta", channel="answer", text=" 2")
        renderer = live(world, accepted.run_id).transcript.channels["answer"].renderer

        def broken(*_: object) -> None:
            raise RecursionError

        monkeypatch.setattr(renderer, name, broken)
        world.engine.release()
        await world.follow(accepted.run_id)
        answer = world.answer(accepted)
        assert "fine" in answer.reasoning_html
        assert answer.text.startswith("1 < 2")
        assert answer.html == f"<pre><code>{answer.text.replace('<', '&lt;')}</code></pre>"
        assert answer.run is not None
        assert answer.run.state in FINAL_STATES

    in_world(body)


def test_an_end_that_is_held_in_memory_is_saved_at_the_close(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        def full(*_: object) -> None:
            raise StorageFailed("The disk is full.")

        monkeypatch.setattr(keeper, "_SAVE_AGAIN_S", 3600.0)
        monkeypatch.setattr(Store, "save", full)
        accepted = await world.send()
        assert (await world.follow(accepted.run_id))[-1].content["state"] == "done"
        monkeypatch.undo()
        assert world.answer(accepted).text == ""
        await world.runs.close()
        assert world.answer(accepted).text == "Forty-two."

    in_world(body)


def test_a_turn_that_nobody_gave_is_given_all_the_same(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(carrier.Carrier, "_advance", lambda _: None)
            accepted = await world.send()
        assert (await world.follow(accepted.run_id))[-1].content["state"] == "done"

    in_world(body)


def test_html_that_no_reader_could_be_sent_is_not_given_out() -> None:
    class Renderer:
        def push(self, _: str) -> list[str]:
            return ["<p>a\x00b</p>"]

        def tail(self) -> str:
            return "c\ud800"

        def finish(self) -> list[str]:
            return []

    run = LiveRun("r", "o", "c", "a", [], Options())
    transcript = Transcript(run.log)
    transcript.channels["answer"].renderer = Renderer()  # type: ignore[assignment]
    transcript._render("answer", "x")
    transcript.show_tails()
    assert [event.content["html"] for event in run.log._events] == ["<p>a\ufffdb</p>"]
    assert run.log._passing["tail-answer"][1].content["html"] == "c\ufffd"


def test_the_state_of_a_run_that_goes_on_is_no_ending() -> None:
    run = LiveRun("r", "o", "c", "a", [], Options())
    with pytest.raises(RuntimeError, match="queued"):
        run.ending()
    assert replace(run.written(), text="x").text == "x"
