"""Loops that carry all runs at once: a fault in one round is logged and the next round goes on.

A loop that fails again and again is reported, so that `/readyz` can say so.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

_FAILURES_TOLD = 5
_PAUSE_S = 0.2
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Loop:
    """One thing that is done again and again; `what` completes the sentence "Ponder cannot …"."""

    what: str
    step: Callable[[], Awaitable[None]]
    every_s: float = 0.0
    failures: int = field(default=0, init=False)

    @property
    def is_failing(self) -> bool:
        """It has failed several times in a row and not succeeded since."""
        return self.failures >= _FAILURES_TOLD

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            if self.every_s:
                await asyncio.sleep(self.every_s)
            await self.round()
            if self.failures:
                await asyncio.sleep(_PAUSE_S)

    async def round(self) -> None:
        """Once; whatever it raises is counted and logged, never passed on."""
        try:
            await self.step()
        except Exception:
            self.failures += 1
            # Once when it begins, and once when it is told to others: a loop runs five times a second
            if self.failures in (1, _FAILURES_TOLD):
                _log.exception("could not %s (%d times in a row)", self.what, self.failures)
        else:
            self.failures = 0
