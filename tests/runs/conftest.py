import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from app.config import Settings
from app.history.people import People
from app.history.store import Store, StoredMessage
from app.history.temporary import History
from app.runs import carrier
from app.runs.live import Options
from app.runs.log import Event
from app.runs.service import AcceptedRun, RunService
from tests.scripted import ScriptedEngine


@dataclass
class World:
    """A run service with its scripted engine, a real database and one guest with a conversation."""

    runs: RunService
    engine: ScriptedEngine
    store: Store
    owner: str
    conversation: str
    sent: int = 0

    async def send(self, text: str = "Why?", **options: object) -> AcceptedRun:
        self.sent += 1
        return await self.runs.accept(
            self.owner,
            self.conversation,
            text,
            parent_id=None,
            is_parent_given=False,
            client_key=f"key-number-{self.sent}",
            options=Options(**options),  # type: ignore[arg-type]
        )

    async def follow(self, run_id: str, after: int = 0) -> list[Event]:
        return [event async for batch in self.runs.follow(self.owner, run_id, after) for event in batch]

    async def until(self, run_id: str, name: str, after: int = 0, **content: object) -> Event:
        """The first event with this name and content."""
        async for batch in self.runs.follow(self.owner, run_id, after):
            for event in batch:
                if event.name == name and content.items() <= event.content.items():
                    return event
        raise AssertionError(f"the run ended without {name} {content}")

    def answer(self, accepted: AcceptedRun) -> StoredMessage:
        return self.store.message(self.owner, accepted.answer_id)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  what is waited for sets no event
        await asyncio.sleep(0.005)


Body = Callable[[World], Awaitable[None]]


@pytest.fixture
def quick_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens once a second in life happens at once in a test."""
    for name in ("_SAVE_EVERY_S", "_SHOW_EVERY_S", "_TURNS_EVERY_S", "_LOOK_EVERY_S"):
        monkeypatch.setattr(carrier, name, 0.01)


@pytest.fixture
def in_world(settings: Settings, store: Store) -> Callable[[Body], None]:
    """Run an async test body with a world of its own."""

    @asynccontextmanager
    async def world() -> AsyncIterator[World]:
        engine = ScriptedEngine()
        runs = RunService(settings, engine, History(store))
        await runs.start()
        owner = People(store.database).add_guest("a" * 64)
        yield World(runs, engine, store, owner, store.add_conversation(owner).id)
        await runs.close()

    def run(body: Body) -> None:
        async def main() -> None:
            async with asyncio.timeout(120), world() as there:
                await body(there)

        asyncio.run(main())

    return run
