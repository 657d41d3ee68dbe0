"""Markdown and LaTeX to clean HTML, whole or block by block as a model writes it.

The text is a sequence of segments, cut by rules that look at no character behind the cut (`segments`). Each is drawn
for itself (`markdown`, `formulas`, `highlight`) and passes an allow-list (`clean`). `render` is by definition the
segments of the whole text in a row, so that a stream, cut anywhere, gives the same HTML; and since a segment is
bounded, the cost is linear in the text and that of the open tail is bounded.

What the page has to know: a list, quote or code block beyond about 4,000 characters goes on in a new block, whose first
element then has the class `cont`; the button `.copy` copies the code of its `.code` and of the `.code.cont` siblings
right behind.
"""

from app.render.markdown import draw
from app.render.segments import Segmenter

RENDERER_VERSION = 2
"""Rises when the same text would give other HTML; stored HTML of another version is drawn anew."""


def render(text: str) -> str:
    """The clean HTML of a whole text."""
    stream = StreamRenderer()
    return "".join(stream.push(text) + stream.finish())


class StreamRenderer:
    """Draws a text while it grows. Not for use from two threads at once."""

    def __init__(self) -> None:
        self._segmenter = Segmenter()

    def push(self, text: str) -> list[str]:
        """Take the next piece of the text; the HTML of the blocks it closed."""
        return [html for segment in self._segmenter.feed(text) if (html := draw(segment))]

    def tail(self) -> str:
        """The HTML of what is still open; changes nothing. What has only begun of a formula or a table is held back."""
        segments = self._segmenter.rest()
        return "".join(map(draw, segments[:-1])) + "".join(draw(last, is_open=True) for last in segments[-1:])

    def rest(self) -> str:
        """The HTML of what is still open, as it would be if the text ended here; changes nothing."""
        return "".join(map(draw, self._segmenter.rest()))

    @property
    def tail_chars(self) -> int:
        """How many characters are open; bounded, whatever the text."""
        return self._segmenter.open_chars

    def finish(self) -> list[str]:
        """The text is over: the HTML of what was open."""
        return [html for segment in self._segmenter.finish() if (html := draw(segment))]
