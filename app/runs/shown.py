"""What is shown of a stored message: its stored HTML, or new where the renderer has moved on or a run broke off.

Drawing anew has a thread of its own, as much of it may have been imported: nothing that sends or saves waits for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from html import escape

from app.errors import NotFound, StorageFailed
from app.history.states import OPEN_STATES
from app.history.store import Store, StoredMessage
from app.render import RENDERER_VERSION, StreamRenderer, render

_PIECE_CHARS = 32_768
_LOOK_EVERY_S = 0.5


def answer_html(message: StoredMessage) -> str:
    """The HTML of a message's text; a person's words are shown as typed."""
    if message.role == "user":
        return f'<p dir="auto">{escape(message.text)}</p>'
    return message.html if message.renderer_version == RENDERER_VERSION else render(message.text)


def reasoning_html(message: StoredMessage) -> str:
    """The HTML of a message's reasoning."""
    return message.reasoning_html if message.renderer_version == RENDERER_VERSION else render(message.reasoning)


def is_stale(message: StoredMessage) -> bool:
    """Whether its HTML is not the one of today's renderer, though nothing more will be written."""
    is_open = message.run is not None and message.run.state in OPEN_STATES
    return message.role != "user" and not is_open and message.renderer_version != RENDERER_VERSION


class ReaderGone(Exception):
    """Whoever asked has hung up; there is nobody to answer."""


@dataclass(slots=True)
class _Drawing:
    task: asyncio.Task[StoredMessage]
    readers: int = field(default=0)


class Freshener:
    """Draws stored messages anew with today's renderer, one after the other, each once however many wait for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "draw")
        self._drawings: dict[str, _Drawing] = {}

    def close(self) -> None:
        """Draw no more."""
        for drawing in self._drawings.values():
            drawing.task.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def fresh(
        self,
        store: Store,
        owner_id: str,
        messages: Sequence[StoredMessage],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> list[StoredMessage]:
        """The messages with today's HTML, which is kept; may take seconds where much was imported.

        Raises:
            ReaderGone: `is_gone` said so meanwhile; what nobody else waits for is not drawn.
        """
        return [
            await self._shared(store, owner_id, message, is_gone) if is_stale(message) else message
            for message in messages
        ]

    async def _shared(
        self, store: Store, owner_id: str, message: StoredMessage, is_gone: Callable[[], Awaitable[bool]]
    ) -> StoredMessage:
        drawing = self._drawings.get(message.id)
        if drawing is None:
            drawing = _Drawing(asyncio.create_task(self._draw(store, owner_id, message)))
            self._drawings[message.id] = drawing
        drawing.readers += 1
        try:
            while not (await asyncio.wait([drawing.task], timeout=_LOOK_EVERY_S))[0]:
                if await is_gone():
                    raise ReaderGone
            drawn = drawing.task.result()
        finally:
            drawing.readers -= 1
            if not drawing.readers:
                drawing.task.cancel()
                if self._drawings.get(message.id) is drawing:
                    del self._drawings[message.id]
        has_reasoning_here = bool(message.reasoning) or not message.has_reasoning
        return replace(
            message,
            html=drawn.html,
            reasoning_html=drawn.reasoning_html if has_reasoning_here else "",
            renderer_version=drawn.renderer_version,
        )

    async def _draw(self, store: Store, owner_id: str, message: StoredMessage) -> StoredMessage:
        if message.has_reasoning and not message.reasoning:
            with suppress(NotFound):  # deleted meanwhile: what was read of it is shown once more
                message = await asyncio.to_thread(store.message, owner_id, message.id)
        html, reasoning = await self._drawn(message.text), await self._drawn(message.reasoning)
        with suppress(StorageFailed):  # it is shown all the same, and drawn again the next time
            await asyncio.to_thread(store.keep_html, message.id, html, reasoning, RENDERER_VERSION)
        return replace(message, html=html, reasoning_html=reasoning, renderer_version=RENDERER_VERSION)

    async def _drawn(self, text: str) -> str:
        """In pieces, so that the thread is free between them, for others and to stop."""
        loop, renderer = asyncio.get_running_loop(), StreamRenderer()
        blocks: list[str] = []
        for start in range(0, len(text), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            blocks += await loop.run_in_executor(self._pool, renderer.push, piece)
        return "".join(blocks + await loop.run_in_executor(self._pool, renderer.finish))
