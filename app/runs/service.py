"""Runs as the rest of Ponder sees them: accept a message, order a run about, follow its events.

A run belongs to the server: it goes on when nobody reads. Who waits stands in `line`, what is saved in `keeper`.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from app.config import Settings
from app.engine.base import Delta, Engine, EngineEvent, EngineStatus, Finished, Message, ModelProfile
from app.errors import (
    BadRequest,
    ConversationBusy,
    EmptyText,
    EngineFailed,
    ModelUnavailable,
    NotFound,
    PonderError,
    QueueFull,
    StorageFailed,
    TextTooLarge,
)
from app.history.states import FINAL_STATES, OPEN_STATES
from app.history.storable import storable
from app.history.store import Accepted, Conversation, Run, StoredMessage
from app.history.temporary import History, is_temporary
from app.history.turns import Turn
from app.history.usage import Allowance, refuse_too_many_at_once
from app.reasoning.window import FittedPrompt, fit, refuse_hopeless
from app.runs.events import stored_replay
from app.runs.gauge import Gauge, WindowUse
from app.runs.keeper import Keeper
from app.runs.line import Line
from app.runs.live import LiveRun, Options, Order, run_of, unavailable
from app.runs.log import HEARTBEAT_S, Event
from app.runs.loops import Loop

_SHOW_EVERY_S = 0.2
_SAVE_EVERY_S = 1.0
_SWEEP_EVERY_S = 5.0
_KEEP_LOG_S = 60.0
_LONG_REPLAY = 200
# How long a send waits for the tokenizer
_COUNT_S = 10.0
_Result = TypeVar("_Result")
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
        self._settings = settings
        self._engine = engine
        self._history = history
        self._keeper = Keeper(history)
        self._line = Line()
        self._live: dict[str, LiveRun] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._gauge = Gauge(engine)
        self._accepting: defaultdict[str, int] = defaultdict(int)
        self._counting: dict[str, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._to_finish: set[asyncio.Task[Any]] = set()
        self._begun = asyncio.Event()
        self._is_closed = False
        self._loops = (
            Loop("pass on what the model writes", self._read_engine),
            Loop("show what the model writes", self._show, _SHOW_EVERY_S),
            Loop("save what the model writes", self._keep, _SAVE_EVERY_S),
            Loop("end temporary chats", self.end_temporary, _SWEEP_EVERY_S),
        )

    async def start(self) -> None:
        """Take up what the last process left, start the engine, begin reading its events."""
        interrupted = 0
        with suppress(StorageFailed):  # logged where it failed; what was written can be read all the same
            interrupted = await asyncio.to_thread(self._history.kept.interrupt_open_runs)
        if interrupted:
            _log.info("%d runs were interrupted when the last process ended; their text is kept", interrupted)
        await self._engine.start()
        for loop in self._loops:
            self._spawn(loop.run())

    async def close(self) -> None:
        """End every run as interrupted, its text kept, then the engine. Calling it again does nothing.

        Nothing is accepted from the moment this is called, and no reader is left waiting behind it.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._wake_readers()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, *self._to_finish, return_exceptions=True)
        # Those who wait, and a task that was cancelled before its first step
        for run in list(self._live.values()):
            if run.state in OPEN_STATES:
                self._line.leave(run)
                run.end_unstarted("interrupted")
                await self._settle(run)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.close()

    def problem(self) -> str:
        """What the service cannot do at present, for the operator; "" while all is well."""
        return " ".join(f"Ponder cannot {loop.what}; the log says why." for loop in self._loops if loop.is_failing)

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
        text = self._checked(text)
        store = self._history.of(conversation_id)
        known = store.accepted(owner_id, client_key)
        if known is not None:
            return self._as_accepted(known)
        self._refuse_at_once(owner_id, address, allowance)
        await self._keeper.save_ends_in(conversation_id)
        conversation = store.item(owner_id, conversation_id)
        _refuse_a_second_run(conversation)
        parent_id = parent_id if is_parent_given else conversation.leaf_id
        told = [*_told(store.told(owner_id, conversation_id, parent_id)), Message("user", text)]
        fitted = await self._fit_now(owner_id, told, options)
        self._refuse_at_once(owner_id, address, allowance)

        def accept() -> Accepted:
            return store.accept(
                owner_id,
                conversation_id,
                text,
                parent_id=parent_id,
                client_key=client_key,
                effort=options.effort,
                options=_chosen(options),
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
        self._refuse_at_once(owner_id, address, allowance)
        conversation_id, question_id = store.question(owner_id, message_id)
        await self._keeper.save_ends_in(conversation_id)
        _refuse_a_second_run(store.item(owner_id, conversation_id))
        told = _told(store.told(owner_id, conversation_id, question_id))
        fitted = await self._fit_now(owner_id, told, options)
        self._refuse_at_once(owner_id, address, allowance)

        def accept() -> Accepted:
            return store.retry(
                owner_id,
                message_id,
                client_key=client_key,
                effort=options.effort,
                options=_chosen(options),
                allowance=allowance,
            )

        return await self._accept(accept, owner_id, conversation_id, told, options, fitted, address)

    def _refuse_at_once(self, owner_id: str, address: str, allowance: Allowance) -> None:
        """Refuse what has no place, before anything is read or counted for it.

        Each store counts its own again when it accepts; only here are both seen.
        """
        if self._is_closed:
            raise ModelUnavailable("Ponder is being restarted. Your text is still here; try again in a minute.")
        if len(self._line) >= self._settings.max_waiting_runs:
            raise QueueFull("Too many people are waiting right now. Try again in a minute; your text is kept here.")
        if address and self._line.waiting_from(address) >= self._settings.max_waiting_runs_per_address:
            raise QueueFull(
                "Too many questions from your network are waiting. Try again in a minute; your text is kept here."
            )
        at_once = sum(run.owner_id == owner_id and run.state in OPEN_STATES for run in self._live.values())
        refuse_too_many_at_once(at_once + self._accepting[owner_id], allowance)

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
                    await self._begin(run)
                return self._as_accepted(accepted)
            finally:
                self._accepting[owner_id] -= 1
                if not self._accepting[owner_id]:
                    del self._accepting[owner_id]

        self._accepting[owner_id] += 1
        return await asyncio.shield(self._spawn(work(), self._to_finish))

    async def _begin(self, run: LiveRun) -> None:
        """What is in the database is in line, unless the service has closed meanwhile."""
        self._live[run.id] = run
        if self._is_closed:
            run.end_unstarted("interrupted")
            await self._settle(run)
        else:
            self._line.join(run)
            self._advance()
            # Its chat may have been deleted behind the commit; from here on whoever deletes finds the run
            self._spawn(self._stop_deleted([run]))
        self._wake_readers()

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
        live = self._live.get(run_id)
        if live is None or live.owner_id != owner_id:
            self._history.of(run_id).run(owner_id, run_id)
        else:
            await self._order(live, order)

    async def _order(self, run: LiveRun, order: Order) -> None:
        if run.state not in OPEN_STATES:
            return
        if order == "stop" and self._line.leave(run):
            run.end_unstarted("stopped")
            await self._settle(run)
            self._advance()
        elif run in self._line:
            run.is_answer_wanted = True  # as soon as it begins
        else:
            run.inbox.put_nowait(order)

    async def stop(self, owner_id: str, run_id: str) -> None:
        """Stop a run and wait until it is over.

        Raises:
            NotFound: no such run, or not this person's.
        """
        await self.order(owner_id, run_id, "stop")
        await self._until_over(run_id)

    async def stop_any(self, run_id: str) -> bool:
        """Stop a run whoever it belongs to, also one that the database knows no more; whether it was there."""
        run = self._live.get(run_id)
        if run is None:
            return False
        await self._stop([run])
        return True

    async def stop_all_of(self, owner_id: str) -> None:
        """Stop every run of a person and wait until all are over; their rows may be gone already."""
        await self._stop([run for run in self._live.values() if run.owner_id == owner_id])

    def move(self, from_id: str, to_id: str) -> None:
        """Runs of one person that go on are another's now, as their rows are."""
        for run in self._live.values():
            if run.owner_id == from_id:
                run.owner_id = to_id

    def place(self, run_id: str) -> int:
        """How many runs go before this one."""
        live = self._live.get(run_id)
        return max(0, live.place) if live else 0

    async def delete_conversation(self, owner_id: str, conversation_id: str) -> None:
        """Stop its run, then delete it; what is accepted there in the same moment is stopped too.

        Raises:
            NotFound: no such conversation, or not this person's.
        """
        store = self._history.of(conversation_id)
        store.item(owner_id, conversation_id)
        await self._stop(self._runs_in(conversation_id))
        await asyncio.to_thread(store.delete_conversation, owner_id, conversation_id)
        await self._stop(self._runs_in(conversation_id))

    async def delete_all_conversations(self, owner_id: str) -> tuple[str, int]:
        """Stop what runs in those that are kept, then delete them all: what the deletion is called, and how many."""
        await self._stop(self._kept_runs_of(owner_id))
        deleted = await asyncio.to_thread(self._history.kept.delete_all, owner_id)
        await self._stop_deleted(self._kept_runs_of(owner_id))
        return deleted

    async def end_temporary(self) -> None:
        """End the temporary conversations whose time has come, and what runs in them."""
        over = [conversation_id for conversation_id, _ in self._history.temporary.over()]
        for conversation_id in over:
            await self._stop(self._runs_in(conversation_id))
        if over:
            await asyncio.to_thread(self._history.temporary.end, over)
            for conversation_id in over:
                await self._stop(self._runs_in(conversation_id))

    def _runs_in(self, conversation_id: str) -> list[LiveRun]:
        return [run for run in self._live.values() if run.conversation_id == conversation_id]

    def _kept_runs_of(self, owner_id: str) -> list[LiveRun]:
        return [run for run in self._live.values() if run.owner_id == owner_id and not is_temporary(run.id)]

    async def _stop_deleted(self, runs: Sequence[LiveRun]) -> None:
        """Stop those of the runs whose conversation is not there any more."""
        for run in runs:
            try:
                await asyncio.to_thread(self._history.of(run.id).item, run.owner_id, run.conversation_id)
            except NotFound:
                await self._stop([run])
            except StorageFailed:
                return  # asked again when it starts

    async def _stop(self, runs: Sequence[LiveRun]) -> None:
        for run in runs:
            await self._order(run, "stop")
        for run in runs:
            await self._until_over(run.id)

    async def _until_over(self, run_id: str) -> None:
        task = self._running.get(run_id)
        if task is not None:
            await asyncio.wait([task])

    async def follow(self, owner_id: str, run_id: str, after: int) -> AsyncIterator[list[Event]]:
        """The run's events behind sequence number `after`, then live, until it is over; empty batches are heartbeats.

        A reader far behind, or behind a log that is gone, first gets one snapshot.

        Raises:
            NotFound: no such run, or not this person's.
        """
        stored = self._history.of(run_id).run(owner_id, run_id)
        while (run := self._live.get(run_id)) is None:
            if stored.state in FINAL_STATES:
                yield self._replay_stored(owner_id, stored, after)
                return
            if self._is_closed:
                return  # the reader comes back, to the next process
            # Between its commit and its place in line
            yield []
            with suppress(TimeoutError):
                await asyncio.wait_for(self._begun.wait(), HEARTBEAT_S)
            stored = self._history.of(run_id).run(owner_id, run_id)
        if after > run.log.last_seq or run.log.last_seq - after > _LONG_REPLAY:
            after = run.log.last_seq - (1 if run.log.is_closed else 0)
            yield [Event("snapshot", run.snapshot(), after)]
        async for batch in run.log.follow(after):
            yield batch

    def _wake_readers(self) -> None:
        """A run has begun, or none will any more."""
        self._begun.set()
        self._begun = asyncio.Event()

    async def window_use(self, owner_id: str, conversation: Conversation) -> WindowUse | None:
        """How full the window is before a conversation's next message; None while the model does not say it."""
        if conversation.running_run_id is not None or conversation.leaf_id is None:
            return None
        leaf_id, store = conversation.leaf_id, self._history.of(conversation.id)
        return await self._gauge.use(leaf_id, lambda: _told(store.told(owner_id, conversation.id, leaf_id)))

    # Inside

    def _checked(self, text: str) -> str:
        if not text.strip():
            raise EmptyText("Write something first.")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise BadRequest("The text has characters that are not Unicode text.") from error
        limit = self._settings.max_text_bytes
        if size > limit:
            raise TextTooLarge(
                f"Your message has {size / 1024:,.0f} KiB and the server takes at most {limit / 1024:,.0f} KiB. "
                "Shorten it, or split it over several messages.",
                bytes=size,
                limit_bytes=limit,
            )
        return storable(text)

    async def _fit_now(self, owner_id: str, told: Sequence[Message], options: Options) -> FittedPrompt | None:
        """The prompt, so that one too long is refused before it waits; None while there is no tokenizer.

        One at a time for a person, and never more bytes than could be tokens of the window: reading a text costs the
        engine's process time that all share.
        """
        status, profile = self._engine.status, self._engine.profile
        if status.state == "failed":
            raise unavailable(status.problem, status.remedy)
        if profile is None:
            return None
        refuse_hopeless(told[-1].text, profile)
        system = options.system_prompt if options.system_prompt is not None else profile.system_prompt
        lock = self._counting.setdefault(owner_id, asyncio.Lock())
        try:
            async with asyncio.timeout(_COUNT_S), lock:
                return await fit(self._engine, profile, system, told)
        except TimeoutError as error:
            raise ModelUnavailable(
                "The model does not respond at the moment. Your text is still here; try again in a minute."
            ) from error
        except ModelUnavailable:
            if self._engine.status.state == "ready":
                raise
            return None  # its process is being started again; the run waits for it
        finally:
            if not lock.locked():
                self._counting.pop(owner_id, None)

    def _as_accepted(self, accepted: Accepted) -> AcceptedRun:
        return AcceptedRun(accepted.message_id, accepted.answer_id, accepted.run_id, self.place(accepted.run_id))

    def _advance(self) -> None:
        """Give free slots to those who wait, and tell the others where they stand."""
        if self._is_closed:
            return
        status, profile = self._engine.status, self._engine.profile
        if status.state == "failed":
            self._fail_waiting(status)
            return
        is_ready = status.state == "ready" and profile is not None
        while is_ready and profile is not None and len(self._running) < profile.slots:
            run = self._line.next()
            if run is None:
                break
            self._running[run.id] = self._spawn(self._carry(run, profile), self._to_finish)
        for index, run in enumerate(self._line.runs()):
            run.wait(index + len(self._running), "queued", "" if is_ready else status.stage)

    def _fail_waiting(self, status: EngineStatus) -> None:
        while (run := self._line.next()) is not None:
            run.fail(unavailable(status.problem, status.remedy))
            self._spawn(self._settle(run), self._to_finish)

    async def _carry(self, run: LiveRun, profile: ModelProfile) -> None:
        """One run from its start to the database; whatever is raised on the way ends this run alone."""
        try:
            owner_id = await asyncio.to_thread(self._history.of(run.id).start_run, run.id, profile.name)
            if owner_id is None:
                run.end_unstarted("stopped")
                return
            run.owner_id = owner_id
            await run.answer(self._engine, profile)
        except asyncio.CancelledError:
            run.end_unstarted("interrupted")
            raise
        except PonderError as error:
            run.fail(error)
        except Exception:
            _log.exception("run %s could not be carried out", run.id)
            run.fail(EngineFailed("Something went wrong while answering. The text so far is kept; try again."))
        finally:
            self._running.pop(run.id, None)
            await self._settle(run)
            self._advance()

    async def _settle(self, run: LiveRun) -> None:
        """Put the end of a run into the database, tell its readers, forget it after a while."""
        is_saved = await self._keeper.save_end(run)
        run.say_done()
        if is_saved:
            asyncio.get_running_loop().call_later(_KEEP_LOG_S, self._live.pop, run.id, None)
        else:
            self._spawn(self._save_end_later(run))

    async def _save_end_later(self, run: LiveRun) -> None:
        await self._keeper.save_end_later(run)
        self._live.pop(run.id, None)

    async def _read_engine(self) -> None:
        async for batch in self._engine.events():
            for event in batch:
                self._deliver(event)
        if not self._is_closed:
            await asyncio.sleep(_SHOW_EVERY_S)  # its stream ended, so it is asked for another one

    def _deliver(self, event: EngineEvent) -> None:
        """To the run it is for; an event that cannot be delivered harms nobody else."""
        try:
            if isinstance(event, Delta | Finished):
                run = self._live.get(run_of(event.request_id))
                if run is not None:
                    run.inbox.put_nowait(event)
            else:
                self._advance()
        except Exception:
            _log.exception("an event of the engine could not be delivered")

    async def _show(self) -> None:
        """Show tails and figures, also while the database keeps writers waiting."""
        for run in self._running_now():
            run.show()

    async def _keep(self) -> None:
        """Save what runs have written."""
        for run in self._running_now():
            await self._keeper.save(run)

    def _running_now(self) -> list[LiveRun]:
        return [self._live[run_id] for run_id in list(self._running) if run_id in self._live]

    def _replay_stored(self, owner_id: str, run: Run, after: int) -> list[Event]:
        """The events of a run that is over, from the database."""
        is_behind = after < run.last_event
        return stored_replay(
            run, self._history.of(run.answer_id).message(owner_id, run.answer_id) if is_behind else None
        )

    def _spawn(
        self, work: Coroutine[Any, Any, _Result], among: set[asyncio.Task[Any]] | None = None
    ) -> asyncio.Task[_Result]:
        """A task that is held until it ends: at closing those `_to_finish` are waited for, the others cancelled."""
        tasks = self._tasks if among is None else among
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_report)
        return task


def _report(task: asyncio.Task[Any]) -> None:
    if task.cancelled() or (error := task.exception()) is None or isinstance(error, PonderError):
        return
    _log.error("a task of the run service ended", exc_info=error)


def _refuse_a_second_run(conversation: Conversation) -> None:
    if conversation.running_run_id is not None:
        raise ConversationBusy(
            "The last message is still being answered. Wait for it, or stop it.", run_id=conversation.running_run_id
        )


def _chosen(options: Options) -> dict[str, Any]:
    """What is kept of the options: those that somebody chose."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def _told(turns: Sequence[Turn]) -> list[Message]:
    return [Message(turn.role, turn.text) for turn in turns]
