"""How full a conversation's window is, for whoever opens it. Never waits for an engine that does not answer."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app.engine.base import Engine, Message
from app.errors import PonderError
from app.reasoning.window import fit

_NEXT_MESSAGE_TOKENS = 200
_WAIT_S = 1.0
_MOST_KEPT = 1000


@dataclass(frozen=True, slots=True)
class WindowUse:
    """How full the context window is, and how many turns the next message would push out of it."""

    used_tokens: int
    window_tokens: int
    turns_left_out_next: int


class Gauge:
    """Counts what the next question of a branch would find in the window, once for each leaf and model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[tuple[str, str], WindowUse] = {}

    async def use(self, leaf_id: str, told: Callable[[], Sequence[Message]]) -> WindowUse | None:
        """The use behind a leaf; `told` reads its branch. None while the model is not there or slow to say."""
        profile = self._engine.profile
        if profile is None:
            return None
        key = (leaf_id, profile.name)
        if key not in self._known:
            messages = [*await asyncio.to_thread(told), Message("user", "")]
            try:
                async with asyncio.timeout(_WAIT_S):
                    fitted = await fit(
                        self._engine, profile, profile.system_prompt, messages, spare_tokens=_NEXT_MESSAGE_TOKENS
                    )
            except (PonderError, TimeoutError):
                return None
            if len(self._known) >= _MOST_KEPT:
                self._known.clear()
            self._known[key] = WindowUse(len(fitted.ids), profile.context_window, fitted.turns_left_out)
        return self._known[key]
