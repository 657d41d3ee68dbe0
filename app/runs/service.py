"""Runs as the rest of Ponder sees them: accept a message, order a run about, follow its events.

A run belongs to the server: it goes on when nobody reads. The engine's slots are given out first come, first served.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.config import Settings
from app.engine.base import Delta, Engine, EngineEvent, EngineStatus, Finished, Message
from app.errors import (
    BadRequest,
    ConversationBusy,
    EmptyText,
    ModelUnavailable,
    PonderError,
    QueueFull,
    StorageFailed,
    TextTooLarge,
)
from app.history.store import OPEN_STATES, Accepted, Conversation, Run, StoredMessage
from app.history.temporary import History, is_temporary
from app.history.tree import branch
from app.history.usage import Allowance, refuse_too_many_at_once
from app.reasoning.window import FittedPrompt, fit
from app.runs.live import LiveRun, Options, Order, run_of, unavailable
from app.runs.log import Event
from app.runs.shown import answer_html, reasoning_html

_SHOW_EVERY_S = 0.2
_SAVE_EVERY_S = 1.0
_SAVES_PER_SWEEP = 5
_KEEP_LOG_S = 60.0
_SAVE_AGAIN_S = 5.0
_LONG_REPLAY = 200
_NEXT_MESSAGE_TOKENS = 200
_NO_LIMIT = Allowance()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AcceptedRun:
    """A message that was taken; `place` is how many runs go before its own."""

    message_id: str
    answer_id: str
    run_id: str
    place: int


@dataclass(frozen=True, slots=True)
class WindowUse:
    """How full the context window is, and how many turns the next message would push out of it."""

    used_tokens: int
    window_tokens: int
    turns_left_out_next: int


class RunService:
    """All runs of this process. Use it on one event loop, between `start` and `close`."""

    def __init__(self, settings: Settings, engine: Engine, history: History) -> None:
        self._settings = settings
        self._engine = engine
        self._history = history
        self._live: dict[str, LiveRun] = {}
        self._waiting: deque[LiveRun] = deque()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._unsaved: dict[str, LiveRun] = {}
        self._window_use: dict[tuple[str, str], WindowUse] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def start(self) -> None:
        """Take up what the last process left, start the engine, begin reading its events."""
        interrupted = 0
        with suppress(StorageFailed):  # logged where it failed; what was written can be read all the same
            interrupted = await asyncio.to_thread(self._history.kept.interrupt_open_runs)
        if interrupted:
            _log.info("%d runs were interrupted when the last process ended; their text is kept", interrupted)
        await self._engine.start()
        self._spawn(self._read_engine())
        self._spawn(self._show())
        self._spawn(self._keep())

    async def close(self) -> None:
        """End every run as interrupted, its text kept, then the engine. Calling it again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        for run in list(self._waiting):
            run.end_unstarted("interrupted")
            await self._settle(run)
        self._waiting.clear()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.close()

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
        await self._save_ends_in(conversation_id)
        conversation, messages = store.conversation(owner_id, conversation_id)
        _refuse_a_second_run(conversation)
        parent_id = parent_id if is_parent_given else conversation.leaf_id
        told = [*_told(branch(messages, parent_id)), Message("user", text)]
        fitted = await self._admit(owner_id, told, options, allowance)
        accepted = await asyncio.to_thread(
            store.accept,
            owner_id,
            conversation_id,
            text,
            parent_id=parent_id,
            client_key=client_key,
            effort=options.effort,
            options=_chosen(options),
            allowance=allowance,
        )
        return self._begin(accepted, owner_id, conversation_id, told, options, fitted)

    async def retry(
        self,
        owner_id: str,
        message_id: str,
        *,
        client_key: str,
        options: Options,
        allowance: Allowance = _NO_LIMIT,
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
        conversation_id = store.conversation_of(owner_id, message_id)
        await self._save_ends_in(conversation_id)
        conversation, messages = store.conversation(owner_id, conversation_id)
        _refuse_a_second_run(conversation)
        to_question = branch(messages, message_id)
        if to_question[-1].role != "user":
            to_question.pop()
        told = _told(to_question)
        if not told or told[-1].role != "user":
            raise BadRequest("There is no question before this answer, so it cannot be asked again.")
        fitted = await self._admit(owner_id, told, options, allowance)
        accepted = await asyncio.to_thread(
            store.retry,
            owner_id,
            message_id,
            client_key=client_key,
            effort=options.effort,
            options=_chosen(options),
            allowance=allowance,
        )
        return self._begin(accepted, owner_id, conversation.id, told, options, fitted)

    async def _admit(
        self, owner_id: str, told: Sequence[Message], options: Options, allowance: Allowance
    ) -> FittedPrompt | None:
        """Refuse what cannot be answered before anything is kept of it."""
        fitted = await self._fit_now(told, options)
        if len(self._waiting) >= self._settings.max_waiting_runs:
            raise QueueFull("Too many people are waiting right now. Try again in a minute; your text is kept here.")
        # Each store counts its own again when it accepts; only here are both seen
        at_once = sum(run.owner_id == owner_id and run.state in OPEN_STATES for run in self._live.values())
        refuse_too_many_at_once(at_once, allowance)
        return fitted

    def _begin(
        self,
        accepted: Accepted,
        owner_id: str,
        conversation_id: str,
        told: Sequence[Message],
        options: Options,
        fitted: FittedPrompt | None,
    ) -> AcceptedRun:
        """What is in the database is in line."""
        if accepted.is_new:
            run = LiveRun(
                id=accepted.run_id,
                owner_id=owner_id,
                conversation_id=conversation_id,
                answer_id=accepted.answer_id,
                messages=told,
                options=options,
                fitted=fitted,
            )
            self._live[run.id] = run
            self._waiting.append(run)
            self._advance()
        return self._as_accepted(accepted)

    def run(self, owner_id: str, run_id: str) -> tuple[Run, int]:
        """A run and its place in line.

        Raises:
            NotFound: no such run, or not this person's.
        """
        return self._with_end(self._history.of(run_id).run(owner_id, run_id)), self.place(run_id)

    def is_over(self, run_id: str) -> bool:
        """Whether a run has ended that the database still takes for open."""
        return run_id in self._unsaved

    def as_written(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """The messages with the ends of runs that the database has not taken yet, from memory."""
        return [self._as_written(message) for message in messages]

    async def order(self, owner_id: str, run_id: str, order: Order) -> None:
        """Stop a run, or have it answer now. Orders that come too late are ignored.

        Raises:
            NotFound: no such run, or not this person's.
        """
        self._history.of(run_id).run(owner_id, run_id)
        await self._order(run_id, order)

    async def _order(self, run_id: str, order: Order) -> None:
        run = self._live.get(run_id)
        if run is None or run.state not in OPEN_STATES:
            return
        if run in self._waiting:
            if order == "stop":
                self._waiting.remove(run)
                run.end_unstarted("stopped")
                await self._settle(run)
                self._advance()
            return
        run.inbox.put_nowait(order)

    async def stop(self, owner_id: str, run_id: str) -> None:
        """Stop a run and wait until it is over.

        Raises:
            NotFound: no such run, or not this person's.
        """
        self._history.of(run_id).run(owner_id, run_id)
        await self._stop(run_id)

    async def stop_all_of(self, owner_id: str) -> None:
        """Stop every run of a person and wait until all are over; their rows may be gone already."""
        for run in list(self._live.values()):
            if run.owner_id == owner_id:
                await self._stop(run.id)

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
        """Stop its run, then delete it.

        Raises:
            NotFound: no such conversation, or not this person's.
        """
        store = self._history.of(conversation_id)
        conversation = store.item(owner_id, conversation_id)
        if conversation.running_run_id is not None:
            await self.stop(owner_id, conversation.running_run_id)
        await asyncio.to_thread(store.delete_conversation, owner_id, conversation_id)

    async def delete_all_conversations(self, owner_id: str) -> tuple[str, int]:
        """Stop what runs in those that are kept, then delete them all: what the deletion is called, and how many."""
        for run in list(self._live.values()):
            if run.owner_id == owner_id and not is_temporary(run.id):
                await self._stop(run.id)
        return await asyncio.to_thread(self._history.kept.delete_all, owner_id)

    async def end_temporary(self) -> None:
        """End the temporary conversations whose time has come, and what runs in them."""
        over = self._history.temporary.over()
        for _, run_id in over:
            if run_id is not None:
                await self._stop(run_id)
        if over:
            await asyncio.to_thread(self._history.temporary.end, [conversation_id for conversation_id, _ in over])

    async def follow(self, owner_id: str, run_id: str, after: int) -> AsyncIterator[list[Event]]:
        """The run's events behind sequence number `after`, then live, until it is over; empty batches are heartbeats.

        A reader far behind, or behind a log that is gone, first gets one snapshot.

        Raises:
            NotFound: no such run, or not this person's.
        """
        stored = self._history.of(run_id).run(owner_id, run_id)
        run = self._live.get(run_id)
        if run is None:
            yield self._replay_stored(owner_id, stored, after)
            return
        if after > run.log.last_seq or run.log.last_seq - after > _LONG_REPLAY:
            after = run.log.last_seq - (1 if run.log.is_closed else 0)
            yield [Event("snapshot", run.snapshot(), after)]
        async for batch in run.log.follow(after):
            yield batch

    async def window_use(self, conversation: Conversation, messages: Sequence[StoredMessage]) -> WindowUse | None:
        """How full the window is before a conversation's next message; None while the model is not there."""
        profile = self._engine.profile
        if profile is None or conversation.running_run_id is not None or conversation.leaf_id is None:
            return None
        key = (conversation.leaf_id, profile.name)
        if key not in self._window_use:
            told = [*_told(branch(messages, conversation.leaf_id)), Message("user", "")]
            try:
                fitted = await fit(
                    self._engine, profile, profile.system_prompt, told, spare_tokens=_NEXT_MESSAGE_TOKENS
                )
            except PonderError:
                return None
            if len(self._window_use) > 1000:
                self._window_use.clear()
            self._window_use[key] = WindowUse(len(fitted.ids), profile.context_window, fitted.turns_left_out)
        return self._window_use[key]

    # Inside

    async def _stop(self, run_id: str) -> None:
        await self._order(run_id, "stop")
        task = self._running.get(run_id)
        if task is not None:
            await asyncio.wait([task])

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
        return text.replace("\x00", "\N{REPLACEMENT CHARACTER}")

    async def _fit_now(self, told: Sequence[Message], options: Options) -> FittedPrompt | None:
        """The prompt, so that one too long is refused before it waits; None while there is no tokenizer."""
        status, profile = self._engine.status, self._engine.profile
        if status.state == "failed":
            raise unavailable(status.problem, status.remedy)
        if profile is None:
            return None
        system = options.system_prompt if options.system_prompt is not None else profile.system_prompt
        try:
            return await fit(self._engine, profile, system, told)
        except ModelUnavailable:
            if self._engine.status.state == "ready":
                raise
            return None  # its process is being started again; the run waits for it

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
        while is_ready and profile is not None and self._waiting and len(self._running) < profile.slots:
            run = self._waiting.popleft()
            self._running[run.id] = asyncio.create_task(self._carry(run))
        for index, run in enumerate(self._waiting):
            ahead = index + len(self._running)
            run.wait(ahead, "queued", "" if is_ready else status.stage)

    def _fail_waiting(self, status: EngineStatus) -> None:
        while self._waiting:
            run = self._waiting.popleft()
            run.fail(unavailable(status.problem, status.remedy))
            self._spawn(self._settle(run))

    async def _carry(self, run: LiveRun) -> None:
        """One run from its start to the database."""
        profile = self._engine.profile
        assert profile is not None
        try:
            owner_id = await asyncio.to_thread(self._history.of(run.id).start_run, run.id, profile.name)
            if owner_id is None:
                run.end_unstarted("stopped")
                return
            run.owner_id = owner_id
            await run.answer(self._engine, profile)
        except StorageFailed as error:
            run.fail(error)
        finally:
            self._running.pop(run.id, None)
            await self._settle(run)
            self._advance()

    async def _settle(self, run: LiveRun) -> None:
        """Put the end of a run into the database, tell its readers, forget it after a while."""
        is_saved = await self._save_end(run)
        if not is_saved:
            self._unsaved[run.id] = run
        run.say_done()
        if is_saved:
            asyncio.get_running_loop().call_later(_KEEP_LOG_S, self._live.pop, run.id, None)
        else:
            self._spawn(self._save_end_later(run))

    async def _save_end(self, run: LiveRun) -> bool:
        try:
            await asyncio.to_thread(self._history.of(run.id).save, run.id, run.written(), run.ending())
        except StorageFailed:
            return False
        return True

    async def _save_end_later(self, run: LiveRun) -> None:
        """The database did not take the end of a run: it stays in memory until it does."""
        _log.error("the end of run %s could not be saved; trying again every %g s", run.id, _SAVE_AGAIN_S)
        while run.id in self._unsaved:
            await asyncio.sleep(_SAVE_AGAIN_S)
            if await self._save_end(run):
                self._unsaved.pop(run.id, None)
        _log.info("the end of run %s is saved", run.id)
        self._live.pop(run.id, None)

    async def _save_ends_in(self, conversation_id: str) -> None:
        """Before a conversation goes on, all of it must be in the database."""
        for run in [run for run in self._unsaved.values() if run.conversation_id == conversation_id]:
            if not await self._save_end(run):
                raise StorageFailed(
                    "The last answer could not be saved yet. Your text is still here; try again in a few seconds."
                )
            self._unsaved.pop(run.id, None)

    def _as_written(self, message: StoredMessage) -> StoredMessage:
        run = self._unsaved.get(message.run.id) if message.run else None
        if run is None or message.run is None:
            return message
        written, ending = run.written(), run.ending()
        return replace(
            message,
            text=written.text,
            reasoning=written.reasoning,
            html=ending.html,
            reasoning_html=ending.reasoning_html,
            renderer_version=ending.renderer_version,
            run=self._with_end(message.run),
        )

    def _with_end(self, stored: Run) -> Run:
        run = self._unsaved.get(stored.id)
        if run is None:
            return stored
        written, ending = run.written(), run.ending()
        return replace(
            stored,
            state=ending.state,
            model=run.model or stored.model,
            notes=written.notes,
            usage=written.usage,
            timing=written.timing,
            error_code=ending.error_code,
            error_message=ending.error_message,
            last_event=written.last_event,
        )

    async def _read_engine(self) -> None:
        async for batch in self._engine.events():
            for event in batch:
                self._deliver(event)

    def _deliver(self, event: EngineEvent) -> None:
        if isinstance(event, Delta | Finished):
            run = self._live.get(run_of(event.request_id))
            if run is not None:
                run.inbox.put_nowait(event)
        else:
            self._advance()

    async def _show(self) -> None:
        """Show tails and figures five times a second, also while the database keeps writers waiting."""
        while True:
            await asyncio.sleep(_SHOW_EVERY_S)
            for run in self._running_now():
                run.show()

    async def _keep(self) -> None:
        """Save the text once a second; now and then end temporary conversations."""
        count = 0
        while True:
            await asyncio.sleep(_SAVE_EVERY_S)
            count += 1
            for run in self._running_now():
                if run.saved_event != run.log.last_seq:
                    await self._save(run)
            if count % _SAVES_PER_SWEEP == 0:
                await self.end_temporary()

    def _running_now(self) -> list[LiveRun]:
        return [self._live[run_id] for run_id in list(self._running) if run_id in self._live]

    async def _save(self, run: LiveRun) -> None:
        saved_event = run.log.last_seq
        try:
            await asyncio.to_thread(self._history.of(run.id).save, run.id, run.written())
        except StorageFailed:
            return  # logged where it failed; the text is in memory, and the next second tries again
        run.saved_event = saved_event

    def _replay_stored(self, owner_id: str, run: Run, after: int) -> list[Event]:
        """The events of a run that is over, from the database."""
        error = {"code": run.error_code, "message": run.error_message} if run.error_code else None
        done = Event(
            "done",
            {
                "state": run.state,
                "answer_id": run.answer_id,
                "error": error,
                "usage": run.usage,
                "timing": run.timing,
                "notes": run.notes,
            },
            run.last_event + 1,
        )
        if after >= run.last_event:
            return [done]
        message = self._history.of(run.answer_id).message(owner_id, run.answer_id)
        content: dict[str, Any] = {
            "state": run.state,
            "place": 0,
            "stage": "",
            "notes": run.notes,
            "progress": None,
            "reasoning": {"blocks": [reasoning_html(message)]},
            "answer": {"blocks": [answer_html(message)]},
        }
        return [Event("snapshot", content, run.last_event), done]

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_report)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.error("a task of the run service ended", exc_info=task.exception())


def _refuse_a_second_run(conversation: Conversation) -> None:
    if conversation.running_run_id is not None:
        raise ConversationBusy(
            "The last message is still being answered. Wait for it, or stop it.", run_id=conversation.running_run_id
        )


def _chosen(options: Options) -> dict[str, Any]:
    """What is kept of the options: those that somebody chose."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def _told(messages: Sequence[StoredMessage]) -> list[Message]:
    """What the model is told of earlier turns: questions and answers, never reasoning."""
    return [
        Message("user" if message.role == "user" else "assistant", message.text) for message in messages if message.text
    ]
