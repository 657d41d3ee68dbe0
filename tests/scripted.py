"""An engine that writes what a test tells it to, on the same Protocol as the real ones."""

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from app.engine.base import (
    Delta,
    EngineEvent,
    EngineStatus,
    Finished,
    FinishReason,
    Message,
    ModelProfile,
    ReasoningFormat,
    Request,
    Sampling,
    Usage,
)

CLOSE = "</think>"
CLOSE_ID = 1
STOP_ID = 0
HOLD = "\N{DOUBLE VERTICAL BAR}"
CLOSING_WORDS = "Considering the limited time, I answer now."

PROFILE = ModelProfile(
    name="scripted",
    title="Scripted model",
    about="Writes what the test says.",
    is_demo=False,
    context_window=4096,
    reasoning=ReasoningFormat(
        kind="close_token",
        close_id=CLOSE_ID,
        skipping=f"{CLOSE}\n\n",
        closing=f"\n\n{CLOSING_WORDS}\n{CLOSE}\n\n",
        closing_words=CLOSING_WORDS,
    ),
    sampling=Sampling(),
    answer_sampling=Sampling(),
    stop_ids=(STOP_ID,),
    budgets={"quick": 0, "normal": 256, "deep": 1024},
    answer_reserve=64,
)


class ScriptedEngine:
    """Each request takes the next script. A script is text; `HOLD` in it waits for `release`, whichever comes first.

    Tokens are words with the blanks before and the line ends behind them. A script that ends is a "stop", an exception
    in place of a text fails the request.
    """

    def __init__(self, profile: ModelProfile = PROFILE, pace_s: float = 0.0, batch: int = 1) -> None:
        self.profile: ModelProfile | None = profile
        self.status = EngineStatus("ready")
        self.scripts: deque[str | Exception] = deque()
        self.default_script = f"Let me think.\n{CLOSE}\n\nForty-two."
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.pace_s = pace_s
        self.batch = batch
        self._words: dict[str, int] = {"<stop>": STOP_ID, CLOSE: CLOSE_ID}
        self._queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._held: list[asyncio.Event] = []
        self._passes = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._queue.put_nowait(None)

    def encoded(self, text: str) -> tuple[int, ...]:
        words = re.findall(rf"{CLOSE}|[ \t]*(?:(?!{CLOSE})\S)+\n*|\s+", text)
        return tuple(self._words.setdefault(word, len(self._words)) for word in words)

    def decoded(self, ids: Sequence[int]) -> str:
        texts = {token_id: word for word, token_id in self._words.items()}
        return "".join(texts[token_id] for token_id in ids)

    async def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encoded("".join(f"[{message.role}] {message.text}\n" for message in messages) + "<think>\n")

    async def encode(self, text: str) -> tuple[int, ...]:
        return self.encoded(text)

    def add(self, request: Request) -> None:
        self.requests.append(request)
        script = self.scripts.popleft() if self.scripts else self.default_script
        self._tasks[request.id] = asyncio.get_running_loop().create_task(self._write(request, script))

    def cancel(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        if task is not None and not task.done():
            self.cancelled.append(request_id)
            task.cancel()

    def release(self) -> None:
        """Let the scripts that wait at a `HOLD` go on; if none has come to one yet, the next that does goes through."""
        if not self._held:
            self._passes += 1
        for gate in self._held:
            gate.set()
        self._held = []

    async def _hold(self) -> None:
        if self._passes:
            self._passes -= 1
            return
        gate = asyncio.Event()
        self._held.append(gate)
        try:
            await gate.wait()
        finally:
            if gate in self._held:
                self._held.remove(gate)

    def become(self, status: EngineStatus) -> None:
        """Change the status, as a real engine does while it loads or dies."""
        self.status = status
        self._queue.put_nowait(status)

    def with_profile(self, **changes: object) -> "ScriptedEngine":
        """Change the profile."""
        assert self.profile is not None
        self.profile = replace(self.profile, **changes)  # type: ignore[arg-type]
        return self

    async def events(self) -> AsyncIterator[list[EngineEvent]]:
        while (event := await self._queue.get()) is not None:
            batch = [event]
            while not self._queue.empty():
                following = self._queue.get_nowait()
                if following is None:
                    self._queue.put_nowait(None)
                    break
                batch.append(following)
            yield batch

    async def _write(self, request: Request, script: str | Exception) -> None:
        written = 0
        reason: FinishReason = "stop"
        problem = ""
        try:
            if isinstance(script, Exception):
                raise script
            for index, part in enumerate(script.split(HOLD)):
                if index:
                    await self._hold()
                ids = self.encoded(part)[: request.max_new_tokens - written]
                for start in range(0, len(ids), self.batch):
                    group = ids[start : start + self.batch]
                    texts = tuple(self.decoded((token_id,)) for token_id in group)
                    self._queue.put_nowait(Delta(request.id, group, texts))
                    written += len(group)
                    await asyncio.sleep(self.pace_s * len(group))
            if written == request.max_new_tokens:
                reason = "length"
        except asyncio.CancelledError:
            reason = "cancelled"
        except Exception as error:
            reason, problem = "failed", str(error)
        self._queue.put_nowait(Finished(request.id, reason, Usage(len(request.prompt), written), problem))
