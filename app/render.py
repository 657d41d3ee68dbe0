"""Placeholder until the renderer lands."""

from html import escape

RENDERER_VERSION = 0


def render(text: str) -> str:
    """Paragraphs."""
    stream = StreamRenderer()
    return "".join(stream.push(text) + stream.finish())


class StreamRenderer:
    """Paragraphs."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str) -> list[str]:
        """Feed."""
        *closed, self._text = (self._text + text).split("\n\n")
        return [f"<p>{escape(one)}</p>" for one in closed if one.strip()]

    def tail(self) -> str:
        """Open piece."""
        return f"<p>{escape(self._text)}</p>" if self._text.strip() else ""

    def finish(self) -> list[str]:
        """Close."""
        tail, self._text = self.tail(), ""
        return [tail] if tail else []
