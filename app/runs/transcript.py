"""What a run has written: two channels of text, rendered block by block as they grow.

The model's text becomes ours here: what no database takes is replaced.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Literal

from app.history.storable import storable
from app.reasoning.splitter import Piece, Resplit, Written
from app.render import StreamRenderer
from app.runs.log import RunLog

ChannelName = Literal["reasoning", "answer"]
_CHANNELS: tuple[ChannelName, ...] = ("reasoning", "answer")


@dataclass(slots=True)
class Channel:
    """One channel's text, its closed blocks of HTML and the renderer that holds the open one."""

    texts: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    renderer: StreamRenderer = field(default_factory=StreamRenderer)
    is_tail_old: bool = False
    is_undrawn: bool = False

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def html(self) -> str:
        if self.is_undrawn:
            return f"<pre><code>{escape(self.text)}</code></pre>"
        return "".join(self.blocks)

    def draw(self, work: Callable[[], list[str]]) -> list[str]:
        """Blocks that the renderer makes; where it fails, the text is shown as it is."""
        try:
            return [storable(html) for html in work()]
        except Exception:
            self.is_undrawn = True
            raise


class Transcript:
    """Writes a run's text into its log, as deltas and as finished blocks."""

    def __init__(self, log: RunLog) -> None:
        self._log = log
        self.channels: dict[ChannelName, Channel] = {name: Channel() for name in _CHANNELS}

    def write(self, written: Iterable[Written]) -> None:
        """Log what was written, in order."""
        pieces: list[Piece] = []
        for one in written:
            if isinstance(one, Resplit):
                self._append(pieces)
                pieces = []
                self._start_again(one)
            else:
                pieces.append(one)
        self._append(pieces)

    def finish(self) -> None:
        """Close what is open, each channel also where the other cannot be."""
        failed: list[Exception] = []
        for name in _CHANNELS:
            try:
                self._close(name, self.channels[name].renderer.finish)
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def close_reasoning(self) -> None:
        """The answer begins: the reasoning's last piece is whole, so that notes come behind it."""
        channel = self.channels["reasoning"]
        channel.is_tail_old = False
        self._close("reasoning", channel.renderer.finish)

    def show_tails(self) -> None:
        """Show the open pieces as they are now; costs nothing where nothing changed."""
        for name, channel in self.channels.items():
            if channel.is_tail_old:
                channel.is_tail_old = False
                content = {"channel": name, "index": len(channel.blocks), "html": storable(channel.renderer.tail())}
                self._log.pass_on(f"tail-{name}", "tail", content)

    def _append(self, pieces: list[Piece]) -> None:
        """Neighbouring pieces of a channel are one delta."""
        for name in _CHANNELS:
            text = storable("".join(piece.text for piece in pieces if piece.channel == name))
            if text:
                self._log.write("delta", {"channel": name, "text": text})
                self._render(name, text)

    def _render(self, name: ChannelName, text: str) -> None:
        channel = self.channels[name]
        channel.texts.append(text)
        channel.is_tail_old = True
        self._close(name, lambda: channel.renderer.push(text))

    def _close(self, name: ChannelName, work: Callable[[], list[str]]) -> None:
        channel = self.channels[name]
        for html in channel.draw(work):
            self._log.forget(f"tail-{name}")
            self._log.write("block", {"channel": name, "index": len(channel.blocks), "html": html})
            channel.blocks.append(html)

    def _start_again(self, resplit: Resplit) -> None:
        """The border moved: both channels are rendered anew from their first character."""
        self.channels = {name: Channel() for name in _CHANNELS}
        texts = {
            name: storable("".join(piece.text for piece in resplit.pieces if piece.channel == name))
            for name in _CHANNELS
        }
        for name in _CHANNELS:
            self._log.forget(f"tail-{name}")
        self._log.write("resplit", {f"{name}_chars": len(texts[name]) for name in _CHANNELS})
        for name in _CHANNELS:
            if texts[name]:
                self._render(name, texts[name])
