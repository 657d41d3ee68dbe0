"""Keeps what runs have written: saved while they go on, ended in the database, and held here where it takes nothing.

A run whose text a database refuses ends with a sentence and with the text that was saved before; nobody else notices.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace

from app.errors import EngineFailed, StorageFailed
from app.history.states import FINAL_STATES
from app.history.store import Run, StoredMessage
from app.history.temporary import History
from app.runs.live import LiveRun

_SAVE_AGAIN_S = 5.0
_log = logging.getLogger(__name__)


class Keeper:
    """What of the runs is in the database, and what is not yet."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._unsaved: dict[str, LiveRun] = {}

    def is_over(self, run_id: str) -> bool:
        """Whether a run has ended that the database still takes for open."""
        return run_id in self._unsaved

    async def save(self, run: LiveRun) -> None:
        """Save what a run has written so far; one whose text cannot be saved is broken off."""
        saved_event = run.log.last_seq
        if run.saved_event == saved_event:
            return
        try:
            await asyncio.to_thread(self._history.of(run.id).save, run.id, run.written())
        except StorageFailed:
            return  # logged where it failed; the text is in memory, and the next second tries again
        except Exception:
            _log.exception("what run %s wrote could not be saved", run.id)
            run.break_off_soon(EngineFailed("What the model wrote could not be saved, so the answer ends here."))
            return
        run.saved_event = saved_event

    async def save_end(self, run: LiveRun) -> bool:
        """Save how a run ended. False where the database takes nothing now: the run is held here until it does."""
        is_saved = await self._try_to_save_end(run)
        if is_saved:
            self._unsaved.pop(run.id, None)
        else:
            self._unsaved[run.id] = run
        return is_saved

    async def save_end_later(self, run: LiveRun) -> None:
        """Try again until the database takes the end of a run that is held here."""
        _log.error("the end of run %s could not be saved; trying again every %g s", run.id, _SAVE_AGAIN_S)
        while run.id in self._unsaved:
            await asyncio.sleep(_SAVE_AGAIN_S)
            await self.save_end(run)
        _log.info("the end of run %s is saved", run.id)

    async def save_ends(self) -> None:
        """Try once more with every end that is held here."""
        for run in list(self._unsaved.values()):
            await self.save_end(run)

    async def save_ends_in(self, conversation_id: str) -> None:
        """Before a conversation goes on, all of it must be in the database.

        Raises:
            StorageFailed: it is not.
        """
        for run in [run for run in self._unsaved.values() if run.conversation_id == conversation_id]:
            if not await self.save_end(run):
                raise StorageFailed(
                    "The last answer could not be saved yet. Your text is still here; try again in a few seconds."
                )

    def as_written(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """The messages with the ends of runs that the database has not taken yet, from memory."""
        return [self._as_written(message) for message in messages]

    def with_end(self, stored: Run) -> Run:
        """A stored run with its end, where that is only here."""
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
            run=self.with_end(message.run),
        )

    async def _try_to_save_end(self, run: LiveRun) -> bool:
        if run.state not in FINAL_STATES:
            _log.error("run %s is to be settled in the state %s; it is called failed", run.id, run.state)
            run.fail(EngineFailed("Something went wrong while answering. The text so far is kept; try again."))
        store = self._history.of(run.id)
        try:
            await asyncio.to_thread(store.save, run.id, run.written(), run.ending())
        except StorageFailed:
            return False
        except Exception:
            _log.exception("the text of run %s cannot be saved; only its end is", run.id)
            run.lose_text()
            try:
                await asyncio.to_thread(store.end_run, run.id, run.ending())
            except Exception:
                _log.exception("the end of run %s cannot be saved", run.id)
                return False
        return True
