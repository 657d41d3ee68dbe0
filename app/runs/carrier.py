"""Carries the runs that were accepted: gives them slots, passes on what the engine writes, ends each in the database.

Knows no conversation and no allowance: what may be asked, and by whom, is decided before a run comes here.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from app.engine.base import Delta, Engine, EngineEvent, EngineStatus, Finished, ModelProfile
from app.errors import EngineFailed, NotFound, PonderError, StorageFailed
from app.history.states import OPEN_STATES, FinalState
from app.history.temporary import History
from app.runs.keeper import Keeper
from app.runs.line import Line
from app.runs.live import LiveRun, Order, run_of, unavailable
from app.runs.log import HEARTBEAT_S
from app.runs.loops import Loop

_SHOW_EVERY_S = 0.2
_SAVE_EVERY_S = 1.0
_TURNS_EVERY_S = 5.0
_KEEP_LOG_S = 60.0
_LOOK_EVERY_S = 30.0
# Longer than a run is on its way from the database into the line
_LEFT_OPEN = timedelta(seconds=60)
_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class Carrier:
    """All runs of this process that wait, go on, or ended a moment ago. Use it on one event loop."""

    def __init__(self, engine: Engine, history: History, keeper: Keeper, *more_loops: Loop) -> None:
        self._engine = engine
        self._history = history
        self._keeper = keeper
        self.line = Line()
        self.is_closed = False
        self._live: dict[str, LiveRun] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._to_finish: set[asyncio.Task[Any]] = set()
        self._begun = asyncio.Event()
        self._loops = (
            Loop("pass on what the model writes", self._read_engine),
            Loop("give those who wait their turn", self._give_turns, _TURNS_EVERY_S),
            Loop("show what the model writes", self._show, _SHOW_EVERY_S),
            Loop("save what the model writes", self._keep, _SAVE_EVERY_S),
            Loop("end runs that were left open", self._end_left_open, _LOOK_EVERY_S),
            *more_loops,
        )

    async def start(self) -> None:
        """Start the engine, begin reading its events."""
        await self._engine.start()
        for loop in self._loops:
            self._spawn(loop.run())

    async def close(self) -> None:
        """End every run as interrupted, its text kept, then the engine. Calling it again does nothing."""
        if self.is_closed:
            return
        self.is_closed = True
        self._wake_readers()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        while self._to_finish:
            await asyncio.gather(*self._to_finish, return_exceptions=True)
        # Those who wait, and a task that was cancelled before its first step
        for run in list(self._live.values()):
            if not run.log.is_closed:
                self.line.leave(run)
                run.end_unstarted("interrupted")
                await self._settle(run)
        await self._keeper.save_ends()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._engine.close()

    def problem(self) -> str:
        """What cannot be done for the runs at present, for the operator; "" while all is well."""
        return " ".join(f"Ponder cannot {loop.what}; the log says why." for loop in self._loops if loop.is_failing)

    # Which runs there are

    def live(self, run_id: str) -> LiveRun | None:
        """A run that waits, goes on, or ended a moment ago."""
        return self._live.get(run_id)

    def those(self, is_meant: Callable[[LiveRun], bool]) -> list[LiveRun]:
        """The runs that are meant, also those that ended a moment ago."""
        return [run for run in self._live.values() if is_meant(run)]

    def place(self, run_id: str) -> int:
        """How many runs go before this one."""
        live = self._live.get(run_id)
        return max(0, live.place) if live else 0

    async def until_one_begins(self) -> None:
        """Wait until a run has begun or will not any more, but no longer than readers go without a sign of life."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), HEARTBEAT_S)

    # What is done with them

    def finish(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Have something done that closing waits for."""
        return self._spawn(work, self._to_finish)

    async def begin(self, run: LiveRun) -> None:
        """What is in the database is in line, unless the service has closed meanwhile."""
        self._live[run.id] = run
        if self.is_closed:
            await self._end_unstarted(run, "interrupted")
        else:
            self.line.join(run)
            self._advance()
            # Its chat may have been deleted behind the commit; from here on whoever deletes finds the run
            self._spawn(self.stop_deleted([run]))
        self._wake_readers()

    async def order(self, run: LiveRun, order: Order) -> None:
        """Stop a run, or have it answer now. Orders that come too late are ignored."""
        if run.state not in OPEN_STATES:
            return
        if order == "stop" and self.line.leave(run):
            await self._end_unstarted(run, "stopped")
        elif run in self.line:
            run.is_answer_wanted = True  # as soon as it begins
        else:
            run.give(order)

    async def stop(self, runs: Sequence[LiveRun]) -> None:
        """Stop runs and wait until all are over."""
        for run in runs:
            await self.order(run, "stop")
        for run in runs:
            await run.log.until_closed()

    async def stop_deleted(self, runs: Sequence[LiveRun]) -> None:
        """Stop those of the runs whose conversation is not there any more."""
        for run in runs:
            try:
                await asyncio.to_thread(self._history.of(run.id).item, run.owner_id, run.conversation_id)
            except NotFound:
                await self.stop([run])
            except StorageFailed:
                return  # asked again when it starts

    # Inside

    def _wake_readers(self) -> None:
        """A run has begun, or will not any more."""
        self._begun.set()
        self._begun = asyncio.Event()

    def _advance(self) -> None:
        """Give free slots to those who wait, and tell the others where they stand."""
        if self.is_closed:
            return
        status, profile = self._engine.status, self._engine.profile
        if status.state == "failed":
            self._fail_waiting(status)
            return
        is_ready = status.state == "ready" and profile is not None
        while is_ready and profile is not None and len(self._running) < profile.slots:
            run = self.line.next()
            if run is None:
                break
            self._running[run.id] = self.finish(self._carry(run, profile))
        for index, run in enumerate(self.line.runs()):
            run.wait(index + len(self._running), "queued", "" if is_ready else status.stage)

    async def _give_turns(self) -> None:
        """Whoever ends gives the turn on at once; this is for the day on which one does not."""
        self._advance()

    def _fail_waiting(self, status: EngineStatus) -> None:
        while (run := self.line.next()) is not None:
            run.fail(unavailable(status.problem, status.remedy))
            self.finish(self._settle(run))

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

    async def _end_unstarted(self, run: LiveRun, state: FinalState) -> None:
        """End a run that has no slot, also when whoever asked for it hangs up meanwhile."""
        run.end_unstarted(state)
        await asyncio.shield(self.finish(self._settle(run)))

    async def _settle(self, run: LiveRun) -> None:
        """Put the end of a run into the database, tell its readers, forget it after a while; its slot is free."""
        try:
            is_saved = await self._keeper.save_end(run)
        finally:
            run.say_done()
        if is_saved:
            asyncio.get_running_loop().call_later(_KEEP_LOG_S, self._live.pop, run.id, None)
        else:
            self._spawn(self._save_end_later(run))
        self._advance()

    async def _save_end_later(self, run: LiveRun) -> None:
        await self._keeper.save_end_later(run)
        self._live.pop(run.id, None)

    async def _read_engine(self) -> None:
        async for batch in self._engine.events():
            for event in batch:
                self._deliver(event)
        if not self.is_closed:
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

    async def _end_left_open(self) -> None:
        """End what the database takes for open and nobody carries.

        A commit may have been made though it seemed to fail, and at the start the database may have been away.
        """
        for store in self._history.stores:
            left = await asyncio.to_thread(store.interrupt_open_runs, but_not=list(self._live), older_than=_LEFT_OPEN)
            if left:
                _log.warning("%d runs that nobody carried on were ended", left)
                self._wake_readers()

    def _running_now(self) -> list[LiveRun]:
        return [self._live[run_id] for run_id in list(self._running) if run_id in self._live]

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
