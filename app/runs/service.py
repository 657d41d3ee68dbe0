"""Runs as the rest of Ponder sees them: accept a message, order a run about, follow its events.

A run belongs to the server: it goes on when nobody reads. What may be asked stands in `admission`, how runs go on in
`carrier`, what is saved of them in `keeper`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from app.config import Settings
from app.engine.base import Engine, Message
from app.errors import StorageFailed
from app.history.states import FINAL_STATES
from app.history.store import Accepted, Conversation, Run, StoredMessage
from app.history.temporary import History, is_temporary
from app.history.usage import Allowance
from app.reasoning.window import FittedPrompt
from app.runs.admission import Admission, chosen, refuse_a_second_run, told_messages
from app.runs.carrier import Carrier
from app.runs.events import stored_replay
from app.runs.gauge import Gauge, WindowUse
from app.runs.keeper import Keeper
from app.runs.live import LiveRun, Options, Order
from app.runs.log import Event, FarBehind
from app.runs.loops import Loop

_SWEEP_EVERY_S = 5.0
_LONG_REPLAY = 200
_NO_LIMIT = Allowance()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AcceptedRun:
    """A message that was taken; `place` is how many runs go before its own."""

    message_id: str
    answer_id: str
    run_id: str
    place: int


class RunService:
    """All runs of this process. Use it on one event loop, between `start` and `close`."""

    def __init__(self, settings: Settings, engine: Engine, history: History) -> None:
        self._history = history
        self._keeper = Keeper(history)
        sweep = Loop("end temporary chats", self.end_temporary, _SWEEP_EVERY_S)
        self._carrier = Carrier(engine, history, self._keeper, sweep)
        self._admission = Admission(settings, engine, self._carrier)
        self._gauge = Gauge(engine)

    async def start(self) -> None:
        """Take up what the last process left, start the engine, begin reading its events."""
        interrupted = 0
        with suppress(StorageFailed):  # logged where it failed; what was written can be read all the same
            interrupted = await asyncio.to_thread(self._history.kept.interrupt_open_runs)
        if interrupted:
            _log.info("%d runs were interrupted when the last process ended; their text is kept", interrupted)
        await self._carrier.start()

    async def close(self) -> None:
        """End every run as interrupted, its text kept, then the engine. Calling it again does nothing.

        Nothing is accepted from the moment this is called, and no reader is left waiting behind it.
        """
        await self._carrier.close()

    def problem(self) -> str:
        """What the service cannot do at present, for the operator; "" while all is well."""
        return self._carrier.problem()

    # What people do

    async def accept(
        self,
        owner_id: str,
        conversation_id: str,
        text: str,
        *,
        parent_id: str | None,
        is_parent_given: bool,
        client_key: str,
        options: Options,
        allowance: Allowance = _NO_LIMIT,
        address: str = "",
    ) -> AcceptedRun:
        """Take a message: it is in the database, and its run in line, when this returns.

        `is_parent_given` False means the end of the shown branch. The same `client_key` again is the same message.

        Raises:
            EmptyText, TextTooLarge, PromptTooLong: nothing was kept of it.
            NotFound: no such conversation or parent, or not this person's.
            ConversationBusy: a run is open there.
            TooManyRuns, QuotaUsedUp: the person's allowance has no room for it.
            QueueFull, ModelUnavailable, StorageFailed: not now.
        """
        text = self._admission.checked(text)
        store = self._history.of(conversation_id)
        known = store.accepted(owner_id, client_key)
        if known is not None:
            return self._as_accepted(known)
        self._admission.refuse_at_once(owner_id, address, allowance)
        await self._keeper.save_ends_in(conversation_id)
        conversation = store.item(owner_id, conversation_id)
        refuse_a_second_run(conversation)
        parent_id = parent_id if is_parent_given else conversation.leaf_id
        told = [*told_messages(store.told(owner_id, conversation_id, parent_id)), Message("user", text)]
        fitted = await self._admission.fitted(owner_id, told, options)
        self._admission.refuse_at_once(owner_id, address, allowance)

        def accept() -> Accepted:
            return store.accept(
                owner_id,
                conversation_id,
                text,
                parent_id=parent_id,
                client_key=client_key,
                effort=options.effort,
                options=chosen(options),
                allowance=allowance,
            )

        return await self._accept(accept, owner_id, conversation_id, told, options, fitted, address)

    async def retry(
        self,
        owner_id: str,
        message_id: str,
        *,
        client_key: str,
        options: Options,
        allowance: Allowance = _NO_LIMIT,
        address: str = "",
    ) -> AcceptedRun:
        """Answer a question once more, beside the answers it has; `message_id` is the question or one of them.

        Raises:
            NotFound: no such message, or not this person's.
            BadRequest: it answers no question.
            PromptTooLong, ConversationBusy, TooManyRuns, QuotaUsedUp, QueueFull, ModelUnavailable, StorageFailed:
                as in `accept`.
        """
        store = self._history.of(message_id)
        known = store.accepted(owner_id, client_key)
        if known is not None:
            return self._as_accepted(known)
        self._admission.refuse_at_once(owner_id, address, allowance)
        conversation_id, question_id = store.question(owner_id, message_id)
        await self._keeper.save_ends_in(conversation_id)
        refuse_a_second_run(store.item(owner_id, conversation_id))
        told = told_messages(store.told(owner_id, conversation_id, question_id))
        fitted = await self._admission.fitted(owner_id, told, options)
        self._admission.refuse_at_once(owner_id, address, allowance)

        def accept() -> Accepted:
            return store.retry(
                owner_id,
                message_id,
                client_key=client_key,
                effort=options.effort,
                options=chosen(options),
                allowance=allowance,
            )

        return await self._accept(accept, owner_id, conversation_id, told, options, fitted, address)

    async def _accept(
        self,
        accept: Callable[[], Accepted],
        owner_id: str,
        conversation_id: str,
        told: Sequence[Message],
        options: Options,
        fitted: FittedPrompt | None,
        address: str,
    ) -> AcceptedRun:
        """Into the database and into the line: both or neither, also when whoever asked is gone meanwhile."""

        async def work() -> AcceptedRun:
            try:
                accepted = await asyncio.to_thread(accept)
                if accepted.is_new:
                    run = LiveRun(
                        id=accepted.run_id,
                        owner_id=owner_id,
                        conversation_id=conversation_id,
                        answer_id=accepted.answer_id,
                        messages=told,
                        options=options,
                        fitted=fitted,
                        address=address,
                    )
                    await self._carrier.begin(run)
                return self._as_accepted(accepted)
            finally:
                self._admission.end_accepting(owner_id)

        self._admission.begin_accepting(owner_id)
        return await asyncio.shield(self._carrier.finish(work()))

    def run(self, owner_id: str, run_id: str) -> tuple[Run, int]:
        """A run and its place in line.

        Raises:
            NotFound: no such run, or not this person's.
        """
        return self._keeper.with_end(self._history.of(run_id).run(owner_id, run_id)), self.place(run_id)

    def is_over(self, run_id: str) -> bool:
        """Whether a run has ended that the database still takes for open."""
        return self._keeper.is_over(run_id)

    def as_written(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """The messages with the ends of runs that the database has not taken yet, from memory."""
        return self._keeper.as_written(messages)

    async def order(self, owner_id: str, run_id: str, order: Order) -> None:
        """Stop a run, or have it answer now. Orders that come too late are ignored; none needs the database.

        Raises:
            NotFound: no such run, or not this person's.
        """
        live = self._carrier.live(run_id)
        if live is None or live.owner_id != owner_id:
            self._history.of(run_id).run(owner_id, run_id)
        else:
            await self._carrier.order(live, order)

    async def stop(self, owner_id: str, run_id: str) -> None:
        """Stop a run and wait until it is over.

        Raises:
            NotFound: no such run, or not this person's.
        """
        await self.order(owner_id, run_id, "stop")
        if (run := self._carrier.live(run_id)) is not None:
            await run.log.until_closed()

    def live_state(self, run_id: str) -> str | None:
        """The state of a run that is in memory, which needs no database."""
        run = self._carrier.live(run_id)
        return run.state if run is not None else None

    async def stop_any(self, run_id: str) -> bool:
        """Stop a run whoever it belongs to, also one that the database knows no more; whether it was there."""
        run = self._carrier.live(run_id)
        if run is None:
            return False
        await self._carrier.stop([run])
        return True

    async def stop_all_of(self, owner_id: str) -> None:
        """Stop every run of a person and wait until all are over; their rows may be gone already."""
        await self._carrier.stop(self._carrier.those(lambda run: run.owner_id == owner_id))

    def move(self, from_id: str, to_id: str) -> None:
        """Runs of one person that go on are another's now, as their rows are."""
        for run in self._carrier.those(lambda run: run.owner_id == from_id):
            run.owner_id = to_id

    def place(self, run_id: str) -> int:
        """How many runs go before this one."""
        return self._carrier.place(run_id)

    async def delete_conversation(self, owner_id: str, conversation_id: str) -> None:
        """Stop its run, then delete it; what is accepted there in the same moment is stopped too.

        Raises:
            NotFound: no such conversation, or not this person's.
        """
        store = self._history.of(conversation_id)
        store.item(owner_id, conversation_id)
        await self._carrier.stop(self._runs_in(conversation_id))
        await asyncio.to_thread(store.delete_conversation, owner_id, conversation_id)
        await self._carrier.stop(self._runs_in(conversation_id))

    async def delete_all_conversations(self, owner_id: str) -> tuple[str, int]:
        """Stop what runs in those that are kept, then delete them all: what the deletion is called, and how many."""
        await self._carrier.stop(self._kept_runs_of(owner_id))
        deleted = await asyncio.to_thread(self._history.kept.delete_all, owner_id)
        await self._carrier.stop_deleted(self._kept_runs_of(owner_id))
        return deleted

    async def end_temporary(self) -> None:
        """End the temporary conversations whose time has come, and what runs in them."""
        over = [conversation_id for conversation_id, _ in self._history.temporary.over()]
        for conversation_id in over:
            await self._carrier.stop(self._runs_in(conversation_id))
        if over:
            await asyncio.to_thread(self._history.temporary.end, over)
            for conversation_id in over:
                await self._carrier.stop(self._runs_in(conversation_id))

    def _runs_in(self, conversation_id: str) -> list[LiveRun]:
        return self._carrier.those(lambda run: run.conversation_id == conversation_id)

    def _kept_runs_of(self, owner_id: str) -> list[LiveRun]:
        return self._carrier.those(lambda run: run.owner_id == owner_id and not is_temporary(run.id))

    async def follow(self, owner_id: str, run_id: str, after: int) -> AsyncIterator[list[Event]]:
        """The run's events behind sequence number `after`, then live, until it is over; empty batches are heartbeats.

        A reader far behind, or behind a log that is gone, first gets one snapshot.

        Raises:
            NotFound: no such run, or not this person's.
        """
        stored = self._history.of(run_id).run(owner_id, run_id)
        while (run := self._carrier.live(run_id)) is None:
            if stored.state in FINAL_STATES:
                yield self._replay_stored(owner_id, stored, after)
                return
            if self._carrier.is_closed:
                return  # the reader comes back, to the next process
            # Between its commit and its place in line
            yield []
            await self._carrier.until_one_begins()
            stored = self._history.of(run_id).run(owner_id, run_id)
        is_behind = after > run.log.last_seq or run.log.last_seq - after > _LONG_REPLAY
        while True:
            if is_behind:
                after = run.log.last_seq - (1 if run.log.is_closed else 0)
                yield [Event("snapshot", run.snapshot(), after)]
            try:
                async for batch in run.log.follow(after):
                    after = max([after, *(event.seq for event in batch if event.seq is not None)])
                    yield batch
                return
            except FarBehind:
                is_behind = True

    async def window_use(self, owner_id: str, conversation: Conversation) -> WindowUse | None:
        """How full the window is before a conversation's next message; None while the model does not say it."""
        if conversation.running_run_id is not None or conversation.leaf_id is None:
            return None
        leaf_id, store = conversation.leaf_id, self._history.of(conversation.id)
        return await self._gauge.use(leaf_id, lambda: told_messages(store.told(owner_id, conversation.id, leaf_id)))

    # Inside

    def _as_accepted(self, accepted: Accepted) -> AcceptedRun:
        return AcceptedRun(accepted.message_id, accepted.answer_id, accepted.run_id, self.place(accepted.run_id))

    def _replay_stored(self, owner_id: str, run: Run, after: int) -> list[Event]:
        """The events of a run that is over, from the database."""
        is_behind = after < run.last_event
        return stored_replay(
            run, self._history.of(run.answer_id).message(owner_id, run.answer_id) if is_behind else None
        )
