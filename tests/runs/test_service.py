from collections.abc import Callable

import pytest

from app.engine.base import EngineStatus
from app.errors import ConversationBusy, EmptyText, ModelUnavailable, NotFound, PromptTooLong, QueueFull, TextTooLarge
from app.history.people import People
from app.runs.log import Event
from tests.runs.conftest import Body, World, until
from tests.scripted import CLOSE, CLOSING_WORDS, HOLD

InWorld = Callable[[Body], None]


def texts(events: list[Event], channel: str) -> str:
    return "".join(e.content["text"] for e in events if e.name == "delta" and e.content["channel"] == channel)


def html(events: list[Event], channel: str) -> str:
    return "".join(e.content["html"] for e in events if e.name == "block" and e.content["channel"] == channel)


def test_a_question_is_reasoned_about_and_answered(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"First.\n\nSecond.\n{CLOSE}\n\nBecause.")
        accepted = await world.send("Why?")
        assert world.answer(accepted).text == ""
        events = await world.follow(accepted.run_id)
        assert texts(events, "reasoning") == "First.\n\nSecond.\n"
        assert texts(events, "answer") == "Because."
        assert html(events, "answer") == '<p dir="auto">Because.</p>\n'
        assert events[-1].name == "done"
        assert events[-1].content["state"] == "done"
        answer = world.answer(accepted)
        assert (answer.text, answer.reasoning) == ("Because.", "First.\n\nSecond.\n")
        assert answer.html == '<p dir="auto">Because.</p>\n'
        assert answer.run is not None
        assert answer.run.usage["answer_tokens"] == 2

    in_world(body)


def test_the_numbers_of_events_have_no_gap(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        events = await world.follow((await world.send()).run_id)
        numbers = [event.seq for event in events if event.seq is not None]
        assert numbers == list(range(1, len(numbers) + 1))

    in_world(body)


def test_a_reader_that_comes_back_goes_on_where_it_was(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"one{HOLD} two{CLOSE}three")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta", text="one")
        after = 2
        world.engine.release()
        whole = await world.follow(accepted.run_id)
        rest = await world.follow(accepted.run_id, after)
        logged = [event for event in whole if event.seq is not None]
        assert [event for event in rest if event.seq is not None] == logged[after:]

    in_world(body)


def test_a_run_goes_on_when_nobody_reads(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"one{HOLD} two{CLOSE}three")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        world.engine.release()
        await world.until(accepted.run_id, "done")
        assert world.answer(accepted).text == "three"

    in_world(body)


def test_a_reader_after_the_log_is_gone_gets_the_stored_text(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        accepted = await world.send()
        events = await world.follow(accepted.run_id)
        world.runs._carrier._live.clear()
        snapshot, done = await world.follow(accepted.run_id)
        assert snapshot.name == "snapshot"
        assert snapshot.content["answer"]["blocks"] == [html(events, "answer")]
        assert (done.name, done.seq) == ("done", events[-1].seq)
        assert [event.name for event in await world.follow(accepted.run_id, snapshot.seq or 0)] == ["done"]

    in_world(body)


def test_a_reader_far_behind_gets_a_snapshot_that_equals_the_events(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        script = "\n\n".join(f"step {number}" for number in range(300))
        world.engine.with_profile(context_window=100_000, budgets={"normal": 50_000})
        world.engine.scripts.append(f"{script}\n{CLOSE}\n\nyes")
        accepted = await world.send()
        await world.until(accepted.run_id, "done")
        events = await world.follow(accepted.run_id)
        assert [event.name for event in events] == ["snapshot", "done"]
        blocks = events[0].content["reasoning"]["blocks"]
        assert "".join(blocks) == world.answer(accepted).reasoning_html
        assert len(blocks) == 300

    in_world(body)


def test_stop_ends_the_run_and_keeps_the_text(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"so far{HOLD} never")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        await world.runs.order(world.owner, accepted.run_id, "stop")
        done = await world.until(accepted.run_id, "done")
        assert done.content["state"] == "stopped"
        assert world.answer(accepted).reasoning == "so far"
        assert world.engine.cancelled == [f"{accepted.run_id}.1"]
        await world.runs.order(world.owner, accepted.run_id, "stop")
        assert (await world.send("again")).place == 0

    in_world(body)


def test_answer_now_has_the_answer_written_from_the_reasoning_so_far(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.extend([f"line one\n{HOLD} line two\n more and more", "So: 42."])
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        await world.runs.order(world.owner, accepted.run_id, "answer_now")
        await world.until(accepted.run_id, "state", state="running")
        world.engine.release()
        done = await world.until(accepted.run_id, "done")
        assert done.content["state"] == "done"
        answer = world.answer(accepted)
        assert answer.text == "So: 42."
        assert answer.reasoning.endswith(f"{CLOSING_WORDS}\n")
        assert "more" not in answer.reasoning
        assert [note["kind"] for note in done.content["notes"]] == ["answer_now"]
        events = await world.follow(accepted.run_id)
        blocks = [e.seq or 0 for e in events if e.name == "block" and e.content["channel"] == "reasoning"]
        (note,) = [e.seq or 0 for e in events if e.name == "note"]
        assert max(blocks) < note
        second = world.engine.requests[1]
        assert world.engine.decoded(second.prompt).endswith(f"line two\n\n\n{CLOSING_WORDS}\n{CLOSE}\n\n")

    in_world(body)


def test_a_second_message_while_one_runs_is_refused_with_the_runs_id(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(HOLD)
        accepted = await world.send()
        with pytest.raises(ConversationBusy) as busy:
            await world.send("and?")
        assert busy.value.details == {"run_id": accepted.run_id}

    in_world(body)


def test_the_same_key_is_one_message_and_one_run(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        first = await world.send("Why?")
        await world.until(first.run_id, "done")
        world.sent -= 1
        second = await world.send("Why?")
        assert (first.run_id, first.message_id) == (second.run_id, second.message_id)
        assert len(world.engine.requests) == 1

    in_world(body)


def test_runs_wait_in_line_and_know_their_place(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"{HOLD}{CLOSE}a")
        first = await world.send()
        conversations = [world.store.add_conversation(world.owner).id for _ in range(2)]
        waiting = []
        for world.conversation in conversations:
            waiting.append(await world.send("me too"))
        assert [run.place for run in waiting] == [1, 2]
        await world.runs.order(world.owner, waiting[0].run_id, "stop")
        assert (await world.until(waiting[0].run_id, "done")).content["state"] == "stopped"
        await world.until(waiting[1].run_id, "state", place=1)
        world.engine.release()
        assert (await world.until(waiting[1].run_id, "done")).content["state"] == "done"
        await world.until(first.run_id, "done")

    in_world(body)


def test_the_line_has_an_end(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.become(EngineStatus("loading", "Loading weights"))
        world.runs._admission._settings = world.runs._admission._settings.model_copy(update={"max_waiting_runs": 1})
        await world.send()
        world.conversation = world.store.add_conversation(world.owner).id
        with pytest.raises(QueueFull):
            await world.send()
        assert world.store.conversation(world.owner, world.conversation)[1] == []

    in_world(body)


def test_a_message_sent_while_the_model_loads_is_answered_when_it_is_ready(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        profile, world.engine.profile = world.engine.profile, None
        world.engine.become(EngineStatus("loading", "Loading weights", 0.5))
        accepted = await world.send()
        await world.until(accepted.run_id, "state", state="queued", stage="Loading weights")
        world.engine.profile = profile
        world.engine.become(EngineStatus("ready"))
        assert (await world.until(accepted.run_id, "done")).content["state"] == "done"

    in_world(body)


def test_a_message_sent_while_the_model_process_is_restarted_waits_for_it(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        encode = world.engine.prompt

        async def gone(_: object) -> tuple[int, ...]:
            raise ModelUnavailable("The model process is not running.")

        world.engine.prompt = gone  # type: ignore[assignment, method-assign]
        world.engine.become(EngineStatus("starting", "Starting it again"))
        accepted = await world.send()
        world.engine.prompt = encode  # type: ignore[method-assign]
        world.engine.become(EngineStatus("ready"))
        assert (await world.until(accepted.run_id, "done")).content["state"] == "done"

    in_world(body)


def test_a_model_that_cannot_be_loaded_fails_those_who_wait_and_refuses_the_next(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.become(EngineStatus("loading"))
        accepted = await world.send()
        world.engine.become(EngineStatus("failed", problem="There is no GPU.", remedy="Set PONDER_MODEL=demo."))
        done = await world.until(accepted.run_id, "done")
        assert done.content["error"] == {
            "code": "model_unavailable",
            "message": "There is no GPU. Set PONDER_MODEL=demo.",
        }
        with pytest.raises(ModelUnavailable, match="PONDER_MODEL=demo"):
            await world.send("again")

    in_world(body)


def test_an_engine_that_fails_in_the_middle_fails_the_run_and_keeps_its_text(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(RuntimeError("The model process ended."))
        accepted = await world.send()
        done = await world.until(accepted.run_id, "done")
        assert done.content["state"] == "failed"
        assert done.content["error"] == {"code": "engine_failed", "message": "The model process ended."}
        assert world.store.run(world.owner, accepted.run_id).state == "failed"
        assert (await world.until((await world.send("next")).run_id, "done")).content["state"] == "done"

    in_world(body)


def test_closing_the_service_interrupts_runs_and_keeps_their_text(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"so far{HOLD} never")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        await world.runs.close()
        answer = world.answer(accepted)
        assert answer.reasoning == "so far"
        assert answer.run is not None
        assert answer.run.state == "interrupted"

    in_world(body)


@pytest.mark.usefixtures("quick_loops")
def test_the_text_is_in_the_database_while_the_run_goes_on(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"so far{HOLD}")
        accepted = await world.send()
        await until(lambda: world.answer(accepted).reasoning == "so far")
        assert world.store.run(world.owner, accepted.run_id).state == "running"

    in_world(body)


def test_deleting_a_conversation_ends_its_run(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(HOLD)
        accepted = await world.send()
        await world.until(accepted.run_id, "state", state="running")
        await world.runs.delete_conversation(world.owner, world.conversation)
        with pytest.raises(NotFound):
            world.store.run(world.owner, accepted.run_id)
        assert world.engine.cancelled

    in_world(body)


@pytest.mark.parametrize("order", ["stop", "answer_now"])
def test_nobody_orders_or_follows_another_persons_run(in_world: InWorld, order: str) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"{HOLD}{CLOSE}mine")
        accepted = await world.send()
        await world.until(accepted.run_id, "state", state="running")
        stranger = People(world.store.database).add_guest("b" * 64)
        with pytest.raises(NotFound):
            await world.runs.order(stranger, accepted.run_id, order)  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            await anext(world.runs.follow(stranger, accepted.run_id, 0))
        world.engine.release()
        assert (await world.until(accepted.run_id, "done")).content["state"] == "done"

    in_world(body)


@pytest.mark.parametrize("text", ["", "  \n\t ", "\u00a0"])
def test_an_empty_text_is_refused(in_world: InWorld, text: str) -> None:
    async def body(world: World) -> None:
        with pytest.raises(EmptyText):
            await world.send(text)

    in_world(body)


def test_a_text_of_too_many_bytes_is_refused_with_both_numbers(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        with pytest.raises(TextTooLarge) as refused:
            await world.send("é" * 131_073)
        assert refused.value.details == {"bytes": 262_146, "limit_bytes": 262_144}

    in_world(body)


def test_a_text_longer_than_the_window_is_refused_with_both_numbers_and_nothing_is_kept(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        with pytest.raises(PromptTooLong) as refused:
            await world.send("word " * 5000)
        tokens, limit = refused.value.details["tokens"], refused.value.details["limit_tokens"]
        assert f"{tokens:,}" in refused.value.message
        assert f"{limit:,}" in refused.value.message
        assert world.store.conversation(world.owner, world.conversation)[1] == []

    in_world(body)


def test_a_conversation_that_outgrows_the_window_leaves_out_its_oldest_turns_and_says_so_before(
    in_world: InWorld,
) -> None:
    async def body(world: World) -> None:
        world.engine.with_profile(context_window=2000)
        announced = 0
        for number in range(5):
            accepted = await world.send(f"question {number} " + "word " * 400)
            done = await world.until(accepted.run_id, "done")
            notes = [note["kind"] for note in done.content["notes"]]
            assert notes == (["turns_left_out"] if announced else [])
            use = await world.runs.window_use(world.owner, world.store.item(world.owner, world.conversation))
            assert use is not None
            announced = use.turns_left_out_next
        assert announced
        assert "question 0" not in world.engine.decoded(world.engine.requests[-1].prompt)
        assert "question 4" in world.engine.decoded(world.engine.requests[-1].prompt)

    in_world(body)


def test_earlier_reasoning_is_never_told_to_the_model(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"SECRET THOUGHT{CLOSE}yes")
        await world.until((await world.send("one")).run_id, "done")
        await world.until((await world.send("two")).run_id, "done")
        prompt = world.engine.decoded(world.engine.requests[-1].prompt)
        assert "SECRET" not in prompt
        assert "[assistant] yes" in prompt

    in_world(body)


def test_what_a_person_chose_reaches_the_engine(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        accepted = await world.send(temperature=0.1, seed=7, thinking_tokens=3, system_prompt="Be brief.")
        await world.until(accepted.run_id, "done")
        request = world.engine.requests[0]
        assert (request.sampling.temperature, request.sampling.seed, request.sampling.top_k) == (0.1, 7, 40)
        assert "[system] Be brief." in world.engine.decoded(request.prompt)

    in_world(body)
