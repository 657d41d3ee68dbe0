"""What is shown of a stored message: its stored HTML, or new where the renderer has moved on or a run broke off."""

from html import escape

from app.history.store import StoredMessage
from app.render import RENDERER_VERSION, render


def answer_html(message: StoredMessage) -> str:
    """The HTML of a message's text; a person's words are shown as typed."""
    if message.role == "user":
        return f'<p dir="auto">{escape(message.text)}</p>'
    return message.html if message.renderer_version == RENDERER_VERSION else render(message.text)


def reasoning_html(message: StoredMessage) -> str:
    """The HTML of a message's reasoning."""
    return message.reasoning_html if message.renderer_version == RENDERER_VERSION else render(message.reasoning)
