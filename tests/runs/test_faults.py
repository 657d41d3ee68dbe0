"""A fault in one run ends that run alone: the loops, everybody's saving and the other readers go on."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.engine.base import Delta, EngineEvent, EngineStatus, Finished
from app.errors import BadRequest, ModelUnavailable, NotFound, StorageFailed
from app.history.people import People
from app.history.states import FINAL_STATES
from app.history.store import Ending, Store, Written
from app.runs import carrier, service
from app.runs.live import LiveRun, Options
from app.runs.loops import Loop
from app.runs.transcript import Transcript
from tests.runs.conftest import Body, World, until
from tests.scripted import CLOSE, CLOSING_WORDS, HOLD

InWorld = Callable[[Body], None]
_TEXT = "calm text"
pytestmark = pytest.mark.usefixtures("quick_loops")


async def other(world: World) -> Any:
    """A run of somebody else, held in mid-sentence."""
    world.engine.with_profile(slots=4)
    owner = People(world.store.database).add_guest("b" * 64)
    conversation = world.store.add_conversation(owner).id
    world.engine.scripts.append(f"fine{HOLD} and on{CLOSE}good")
    accepted = await world.runs.accept(
        owner,
        conversation,
        "And?",
        parent_id=None,
        is_parent_given=False,
        client_key="key-of-another",
        options=Options(),
    )
    await until(lambda: world.store.message(owner, accepted.answer_id).reasoning == "fine")
    return owner, accepted


async def goes_on(world: World, somebody: Any) -> None:
    """The other run is saved, shown and ended as if nothing had happened."""
    owner, accepted = somebody
    world.engine.release()
    events = [event async for batch in world.runs.follow(owner, accepted.run_id, 0) for event in batch]
    assert events[-1].content["state"] == "done"
    assert world.store.message(owner, accepted.answer_id).text == "good"
    assert world.runs.problem() == ""


@pytest.mark.parametrize("bad", ["\x00", "\ud83d", "a\x00b\x00"])
def test_text_that_no_database_takes_is_replaced_and_kept(in_world: InWorld, bad: str) -> None:
    async def body(world: World) -> None:
        somebody = await other(world)
        world.engine.scripts.append(f"so{bad}far{HOLD}{CLOSE}yes{bad}")
        accepted = await world.send()
        await until(lambda: world.answer(accepted).reasoning)
        world.engine.release()
        events = await world.follow(accepted.run_id)
        clean = "".join("\ufffd" if char in "\x00\ud83d\udc00" else char for char in bad)
        answer = world.answer(accepted)
        assert (answer.reasoning, answer.text) == (f"so{clean}far", f"yes{clean}")
        assert events[-1].content["state"] == "done"
        await goes_on(world, somebody)

    in_world(body)


def fails_for(world: World, accepted: Any, error: Exception) -> Callable[..., Any]:
    """`Store.save` as it is, but for one run."""
    save = world.store.save

    def failing(run_id: str, written: Written, ending: Ending | None = None) -> str | None:
        if run_id == accepted.run_id:
            raise error
        return save(run_id, written, ending)

    return failing


@pytest.mark.parametrize("error", [BadRequest("no"), RuntimeError("no"), RecursionError(), UnicodeError("no")])
def test_a_run_whose_text_cannot_be_saved_ends_alone_with_its_end_saved(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def body(world: World) -> None:
        somebody = await other(world)
        world.engine.scripts.append(f"{_TEXT}{HOLD} never")
        accepted = await world.send()
        await until(lambda: world.answer(accepted).reasoning == _TEXT)
        monkeypatch.setattr(world.store, "save", fails_for(world, accepted, error))
        live = world.runs._carrier._live[accepted.run_id]

        def is_over() -> bool:
            live.saved_event = 0  # as if more had been written
            return live.state in FINAL_STATES

        await until(is_over)
        events = await world.follow(accepted.run_id)
        assert events[-1].name == "done"
        assert events[-1].content["state"] == "failed"
        assert "could not be saved" in events[-1].content["error"]["message"]
        answer = world.answer(accepted)
        assert answer.run is not None
        assert (answer.run.state, answer.reasoning) == ("failed", _TEXT)
        assert accepted.run_id + ".1" in world.engine.cancelled
        monkeypatch.undo()
        await goes_on(world, somebody)
        assert (await world.send("Once more")).run_id != accepted.run_id

    in_world(body)


@pytest.mark.parametrize("method", ["write", "show_tails", "close_reasoning", "finish"])
@pytest.mark.parametrize("error", [RuntimeError("no"), RecursionError(), ValueError("no")])
def test_a_run_whose_text_cannot_be_drawn_ends_alone(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch, method: str, error: Exception
) -> None:
    async def body(world: World) -> None:
        somebody = await other(world)
        world.engine.scripts.append(f"{_TEXT}{HOLD} more{CLOSE}yes")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        mine, drawn = world.runs._carrier._live[accepted.run_id].transcript, getattr(Transcript, method)

        def failing(self: Transcript, *given: Any) -> Any:
            if self is mine:
                raise error
            return drawn(self, *given)

        monkeypatch.setattr(Transcript, method, failing)
        world.engine.release()
        events = await world.follow(accepted.run_id)
        assert events[-1].name == "done"
        assert events[-1].content["state"] in FINAL_STATES
        assert world.answer(accepted).run.state in FINAL_STATES  # type: ignore[union-attr]
        assert accepted.run_id not in world.runs._carrier._running
        monkeypatch.undo()
        await goes_on(world, somebody)

    in_world(body)


def test_an_engine_that_raises_at_every_call_leaves_no_run_open(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("no")

        world.engine.scripts.append(f"one{HOLD}")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        monkeypatch.setattr(world.engine, "cancel", broken)
        await world.runs.stop(world.owner, accepted.run_id)
        assert (await world.follow(accepted.run_id))[-1].content["state"] in FINAL_STATES
        monkeypatch.setattr(world.engine, "add", broken)
        second = await world.send("And?")
        events = await world.follow(second.run_id)
        assert events[-1].content["error"]["code"] == "engine_failed"

    in_world(body)


def test_an_event_that_cannot_be_delivered_stops_no_other(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        somebody = await other(world)
        bad = Delta("nobody", (1,), ("x",))
        object.__setattr__(bad, "request_id", None)
        world.engine._queue.put_nowait(bad)
        await goes_on(world, somebody)

    in_world(body)


def test_an_engine_whose_events_break_is_read_again(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        events, broken = world.engine.events, asyncio.Event()

        async def once_broken() -> AsyncIterator[list[EngineEvent]]:
            if not broken.is_set():
                broken.set()
                raise RuntimeError("no")
            async for batch in events():
                yield batch

        monkeypatch.setattr(world.engine, "events", once_broken)
        world.engine.become(EngineStatus("ready"))
        world.engine._queue.put_nowait(None)
        await broken.wait()
        accepted = await world.send()
        assert (await world.follow(accepted.run_id))[-1].content["state"] == "done"

    in_world(body)


def test_a_loop_goes_on_after_what_its_round_raises_and_says_when_it_does_not_recover() -> None:
    raised = [RuntimeError("no")] * 7 + [None]
    rounds: list[bool] = []

    async def step() -> None:
        error = raised[len(rounds)]
        rounds.append(error is None)
        if error:
            raise error

    async def main() -> None:
        loop = Loop("do it", step)
        failing = []
        for _ in raised:
            await loop.round()
            failing.append(loop.is_failing)
        assert failing == [False] * 4 + [True] * 3 + [False]

    asyncio.run(main())


def test_a_loop_that_keeps_failing_is_a_problem_until_it_recovers(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("no")

        monkeypatch.setattr(carrier.Carrier, "_running_now", broken)
        await until(lambda: "save" in world.runs.problem() and "show" in world.runs.problem())
        monkeypatch.undo()
        await until(lambda: world.runs.problem() == "")

    in_world(body)


def test_a_failure_to_start_ends_the_run_alone(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("no")

        monkeypatch.setattr(world.store, "start_run", broken)
        accepted = await world.send()
        assert (await world.follow(accepted.run_id))[-1].content["state"] == "failed"
        monkeypatch.undo()
        assert (await world.follow((await world.send("And?")).run_id))[-1].content["state"] == "done"

    in_world(body)


@pytest.mark.parametrize("moment", ["waiting", "starting", "writing", "unstepped"])
def test_closing_leaves_no_reader_and_no_row_open(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async def body(world: World) -> None:
        started, may_go = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        if moment == "waiting":
            world.engine.status = EngineStatus("loading")
        if moment == "starting":
            start_run = world.store.start_run

            def slow(run_id: str, model: str) -> str | None:
                loop.call_soon_threadsafe(started.set)
                asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(15)
                return start_run(run_id, model)

            monkeypatch.setattr(world.store, "start_run", slow)
        world.engine.scripts.append(f"one{HOLD} two")
        accepted = await world.send()
        reader = asyncio.create_task(world.follow(accepted.run_id))
        if moment == "starting":
            await started.wait()
        elif moment == "writing":
            await world.until(accepted.run_id, "delta")
        closing = asyncio.create_task(world.runs.close())
        await asyncio.sleep(0)
        may_go.set()
        await closing
        events = await reader
        assert events[-1].name == "done"
        assert events[-1].content["state"] == "interrupted"
        assert world.answer(accepted).run.state == "interrupted"  # type: ignore[union-attr]

    in_world(body)


def test_nothing_is_accepted_after_closing_began(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        await world.runs.close()
        with pytest.raises(ModelUnavailable, match="restarted"):
            await world.send()
        assert world.store.conversation(world.owner, world.conversation)[1] == []

    in_world(body)


def test_what_is_committed_while_closing_begins_is_interrupted(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        committed, may_go = asyncio.Event(), asyncio.Event()
        loop, accept = asyncio.get_running_loop(), world.store.accept

        def slow(*given: Any, **named: Any) -> Any:
            accepted = accept(*given, **named)
            loop.call_soon_threadsafe(committed.set)
            asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(15)
            return accepted

        monkeypatch.setattr(world.store, "accept", slow)
        sending = asyncio.create_task(world.send())
        await committed.wait()
        closing = asyncio.create_task(world.runs.close())
        await asyncio.sleep(0)
        may_go.set()
        await closing
        accepted = await sending
        assert world.answer(accepted).run.state == "interrupted"  # type: ignore[union-attr]

    in_world(body)


def test_a_sender_who_hangs_up_behind_the_commit_leaves_a_run_that_goes_on(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        committed, may_go = asyncio.Event(), asyncio.Event()
        loop, accept = asyncio.get_running_loop(), world.store.accept
        made: list[Any] = []

        def slow(*given: Any, **named: Any) -> Any:
            made.append(accept(*given, **named))
            loop.call_soon_threadsafe(committed.set)
            asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(15)
            return made[0]

        monkeypatch.setattr(world.store, "accept", slow)
        sending = asyncio.create_task(world.send())
        await committed.wait()
        reader = asyncio.create_task(world.follow(made[0].run_id))
        sending.cancel()
        may_go.set()
        events = await reader
        assert events[-1].content["state"] == "done"

    in_world(body)


def test_a_reader_between_commit_and_start_waits_for_the_run(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        accepted = world.store.accept(
            world.owner,
            world.conversation,
            "Why?",
            parent_id=None,
            client_key="key-of-the-test",
            effort="normal",
            options={},
            allowance=service._NO_LIMIT,
        )
        stream = world.runs.follow(world.owner, accepted.run_id, 0)
        assert await anext(stream) == []
        following = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        run = LiveRun(
            id=accepted.run_id,
            owner_id=world.owner,
            conversation_id=world.conversation,
            answer_id=accepted.answer_id,
            messages=[],
            options=Options(),
        )
        await world.runs._carrier.begin(run)
        assert (await following)[0].name == "state"

    in_world(body)


def test_answer_now_is_obeyed_by_a_run_that_waits(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.status = EngineStatus("loading")
        world.engine.scripts.append(" ".join(f"word{number}" for number in range(60)))
        world.engine.scripts.append("yes")
        accepted = await world.send()
        await world.runs.order(world.owner, accepted.run_id, "answer_now")
        world.engine.become(EngineStatus("ready"))
        events = await world.follow(accepted.run_id)
        answer = world.answer(accepted)
        assert answer.text == "yes"
        assert answer.run is not None
        assert answer.run.usage["reasoning_tokens"] == 1
        assert [note["kind"] for note in answer.run.notes] == ["answer_now"]
        assert CLOSING_WORDS in answer.reasoning
        assert events[-1].content["state"] == "done"

    in_world(body)


def test_an_engine_that_gives_no_token_twice_ends_the_run(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        def nothing(request: Any) -> None:
            world.engine.requests.append(request)
            world.engine._queue.put_nowait(Finished(request.id, "length"))

        world.engine.add = nothing  # type: ignore[method-assign]
        accepted = await world.send()
        events = await world.follow(accepted.run_id)
        assert len(world.engine.requests) == 2
        assert events[-1].content["state"] == "failed"
        assert "without writing anything" in events[-1].content["error"]["message"]

    in_world(body)


def test_the_note_of_a_stop_comes_behind_the_last_block(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"{CLOSE}First.\n\nSecond{HOLD} never")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta", text="Second")
        await world.runs.stop(world.owner, accepted.run_id)
        events = await world.follow(accepted.run_id)
        names = [event.name for event in events if event.name in ("block", "note")]
        assert names[-1] == "note"
        assert names.count("block") == 2

    in_world(body)


def test_a_run_in_a_chat_that_is_deleted_behind_its_commit_is_stopped(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        committed, may_go = asyncio.Event(), asyncio.Event()
        loop, accept = asyncio.get_running_loop(), world.store.accept

        def slow(*given: Any, **named: Any) -> Any:
            accepted = accept(*given, **named)
            loop.call_soon_threadsafe(committed.set)
            asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(15)
            return accepted

        monkeypatch.setattr(world.store, "accept", slow)
        world.engine.default_script = f"one{HOLD}"
        sending = asyncio.create_task(world.send())
        await committed.wait()
        await world.runs.delete_conversation(world.owner, world.conversation)
        may_go.set()
        accepted = await sending
        await until(lambda: world.runs._carrier._live[accepted.run_id].state in FINAL_STATES)
        await until(lambda: not world.runs._carrier._running)
        assert len(world.runs._carrier.line) == 0

    in_world(body)


@pytest.mark.parametrize("way", ["one", "all"])
def test_a_deletion_stops_what_began_meanwhile(in_world: InWorld, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    async def body(world: World) -> None:
        deleting, may_go = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        name = {"one": "delete_conversation", "all": "delete_all"}[way]
        delete = getattr(world.store, name)

        def slow(*given: Any) -> Any:
            loop.call_soon_threadsafe(deleting.set)
            asyncio.run_coroutine_threadsafe(may_go.wait(), loop).result(15)
            return delete(*given)

        monkeypatch.setattr(world.store, name, slow)
        world.engine.default_script = f"one{HOLD}"
        calls = {
            "one": lambda: world.runs.delete_conversation(world.owner, world.conversation),
            "all": lambda: world.runs.delete_all_conversations(world.owner),
        }
        removal = asyncio.create_task(calls[way]())
        await deleting.wait()
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        may_go.set()
        await removal
        assert world.runs._carrier._live[accepted.run_id].state == "stopped"
        with pytest.raises(NotFound):
            world.store.run(world.owner, accepted.run_id)

    in_world(body)


def test_stopping_needs_no_database(in_world: InWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(world: World) -> None:
        def away(*_: object, **__: object) -> None:
            raise StorageFailed("away")

        world.engine.scripts.append(f"one{HOLD}")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        monkeypatch.setattr(Store, "run", away)
        await world.runs.order(world.owner, accepted.run_id, "stop")
        await until(lambda: world.runs._carrier._live[accepted.run_id].state == "stopped")
        assert not await world.runs.stop_any("nobody")
        with pytest.raises(StorageFailed):
            await world.runs.order("somebody else", accepted.run_id, "stop")

    in_world(body)


def test_a_reader_that_reads_too_slowly_gets_a_snapshot_and_no_event_twice(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.with_profile(context_window=100_000, budgets={"normal": 50_000})
        steps = "\n\n".join(f"step {number}" for number in range(1500))
        world.engine.scripts.append(f"begin{HOLD}\n\n{steps}\n{CLOSE}\n\nyes")
        accepted = await world.send()
        stream = world.runs.follow(world.owner, accepted.run_id, 0)
        events = list(await anext(stream))
        world.engine.release()
        await until(lambda: world.answer(accepted).run.state == "done")  # type: ignore[union-attr]
        events += [event async for batch in stream for event in batch]
        numbers = [event.seq for event in events if event.seq is not None]
        assert numbers == sorted(set(numbers))
        assert "snapshot" in [event.name for event in events]
        assert events[-1].name == "done"

    in_world(body)


def test_the_admin_stops_a_run_that_the_database_knows_no_more(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"one{HOLD}")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        world.store.delete_conversation(world.owner, world.conversation)
        assert await world.runs.stop_any(accepted.run_id)
        assert world.runs.live_state(accepted.run_id) == "stopped"

    in_world(body)
