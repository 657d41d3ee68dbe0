"""An answer that ended while nobody was looking is said so, until somebody has seen it."""

import asyncio

import pytest

from app.errors import StorageFailed
from app.history.states import FINAL_STATES
from app.history.store import Changes, Ending, Written
from app.runs.service import AcceptedRun
from tests.runs.conftest import World
from tests.runs.test_service import InWorld
from tests.scripted import CLOSE, HOLD


async def ended_unseen(world: World, accepted: AcceptedRun) -> None:
    """Wait for a run's end without reading it."""
    while world.store.run(world.owner, accepted.run_id).state not in FINAL_STATES:  # noqa: ASYNC110  nobody tells us
        await asyncio.sleep(0.01)


def is_unread(world: World) -> bool:
    (listed,), _ = world.store.conversations(world.owner, None, 10)
    return listed.is_unread


@pytest.mark.parametrize("script", [f"a{CLOSE}b", RuntimeError("No.")])
def test_what_ends_unseen_is_unread_until_it_is_seen(in_world: InWorld, script: str | Exception) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(script)
        await ended_unseen(world, await world.send())
        assert is_unread(world)
        before = world.store.item(world.owner, world.conversation)
        after = world.store.change_conversation(world.owner, world.conversation, Changes(is_unread=False))
        assert not is_unread(world)
        # Another tab that changes it at the same time is not in its way
        assert after.version == before.version

    in_world(body)


def test_what_is_read_to_its_end_or_stopped_is_seen(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        accepted = await world.send()
        assert (await world.follow(accepted.run_id))[-1].name == "done"
        assert not is_unread(world)
        world.engine.scripts.append(f"a{HOLD}")
        accepted = await world.send()
        await world.runs.stop(world.owner, accepted.run_id)
        await ended_unseen(world, accepted)
        assert not is_unread(world)

    in_world(body)


def test_asking_on_has_seen_what_was_there(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        await ended_unseen(world, await world.send())
        world.engine.scripts.append(f"a{HOLD}")
        await world.send("And?")
        assert not is_unread(world)

    in_world(body)


def test_an_answer_that_a_restart_has_ended_is_unread(in_world: InWorld) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"a{HOLD}")
        accepted = await world.send()
        await world.until(accepted.run_id, "delta")
        assert world.store.interrupt_open_runs() == 1
        assert is_unread(world)

    in_world(body)


def test_who_read_the_end_has_seen_it_though_the_database_takes_it_later(
    in_world: InWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(world: World) -> None:
        world.engine.scripts.append(f"a{HOLD}{CLOSE}b")
        accepted = await world.send()
        reading = asyncio.create_task(world.follow(accepted.run_id))
        await world.until(accepted.run_id, "delta")
        save = world.store.save
        refusals = iter([True])

        def refuse_once(run_id: str, written: Written, ending: Ending | None = None) -> str | None:
            if ending is not None and next(refusals, False):
                raise StorageFailed("busy")
            return save(run_id, written, ending)

        monkeypatch.setattr(world.store, "save", refuse_once)
        world.engine.release()
        assert (await reading)[-1].name == "done"
        await world.send("And?")
        assert next(refusals, None) is None
        assert not is_unread(world)

    in_world(body)
