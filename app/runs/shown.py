"""What is shown of a stored message: its stored HTML, or new where the renderer has moved on or a run broke off."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from html import escape

from app.errors import StorageFailed
from app.history.store import OPEN_STATES, Store, StoredMessage
from app.render import RENDERER_VERSION, render


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


def freshened(store: Store, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
    """The messages with today's HTML, which is kept; may take seconds where much was imported."""
    return [_freshened(store, message) if is_stale(message) else message for message in messages]


def _freshened(store: Store, message: StoredMessage) -> StoredMessage:
    html, reasoning = render(message.text), render(message.reasoning)
    with suppress(StorageFailed):  # it is shown all the same, and made again the next time
        store.keep_html(message.id, html, reasoning, RENDERER_VERSION)
    return replace(message, html=html, reasoning_html=reasoning, renderer_version=RENDERER_VERSION)
