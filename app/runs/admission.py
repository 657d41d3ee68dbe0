"""What a message must pass before it is kept: its length, the line, the person's allowance, the context window.

Nothing is tokenized for what has no place.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from app.config import Settings
from app.engine.base import Engine, Message
from app.errors import (
    BadRequest,
    ConversationBusy,
    EmptyText,
    ModelUnavailable,
    QueueFull,
    TextTooLarge,
)
from app.history.states import OPEN_STATES
from app.history.storable import storable
from app.history.store import Conversation
from app.history.turns import Turn
from app.history.usage import Allowance, refuse_too_many_at_once
from app.reasoning.window import FittedPrompt, fit, refuse_hopeless
from app.runs.carrier import Carrier
from app.runs.live import Options, unavailable

# How long a send waits for the tokenizer
_COUNT_S = 10.0


class Admission:
    """Refuses what has no place, with a sentence for whoever asked."""

    def __init__(self, settings: Settings, engine: Engine, carrier: Carrier) -> None:
        self._settings = settings
        self._engine = engine
        self._carrier = carrier
        self._accepting: Counter[str] = Counter()
        self._counting: Counter[str] = Counter()
        self._locks: dict[str, asyncio.Lock] = {}

    def refuse_at_once(self, owner_id: str, address: str, allowance: Allowance) -> None:
        """Refuse what has no place, before anything is read or counted for it.

        Each store counts its own again when it accepts; only here are both seen.
        """
        line = self._carrier.line
        if self._carrier.is_closed:
            raise ModelUnavailable("Ponder is being restarted. Your text is still here; try again in a minute.")
        if len(line) >= self._settings.max_waiting_runs:
            raise QueueFull("Too many people are waiting right now. Try again in a minute; your text is kept here.")
        if address and line.waiting_from(address) >= self._settings.max_waiting_runs_per_address:
            raise QueueFull(
                "Too many questions from your network are waiting. Try again in a minute; your text is kept here."
            )
        at_once = len(self._carrier.those(lambda run: run.owner_id == owner_id and run.state in OPEN_STATES))
        refuse_too_many_at_once(at_once + self._accepting[owner_id], allowance)

    def begin_accepting(self, owner_id: str) -> None:
        """A run is on its way into the database: it counts as one that goes on."""
        self._accepting[owner_id] += 1

    def end_accepting(self, owner_id: str) -> None:
        """It is there, or will not be."""
        self._accepting[owner_id] -= 1
        if not self._accepting[owner_id]:
            del self._accepting[owner_id]

    def checked(self, text: str) -> str:
        """The text as it is kept.

        Raises:
            EmptyText, TextTooLarge, BadRequest: it cannot be.
        """
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

    async def fitted(self, owner_id: str, told: Sequence[Message], options: Options) -> FittedPrompt | None:
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
        lock = self._locks.setdefault(owner_id, asyncio.Lock())
        self._counting[owner_id] += 1
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
            self._counting[owner_id] -= 1
            if not self._counting[owner_id]:
                del self._counting[owner_id], self._locks[owner_id]


def refuse_a_second_run(conversation: Conversation) -> None:
    """Raise ConversationBusy where a run goes on."""
    if conversation.running_run_id is not None:
        raise ConversationBusy(
            "The last message is still being answered. Wait for it, or stop it.", run_id=conversation.running_run_id
        )


def chosen(options: Options) -> dict[str, Any]:
    """What is kept of the options: those that somebody chose."""
    return {name: value for name, value in asdict(options).items() if value is not None}


def told_messages(turns: Sequence[Turn]) -> list[Message]:
    """What was asked and answered, as the engine takes it."""
    return [Message(turn.role, turn.text) for turn in turns]
