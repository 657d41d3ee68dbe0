"""Tell reasoning from answer while a model writes.

Knows how models mark their reasoning (`ReasoningFormat`); knows nothing of budgets, runs or HTML. Every splitter keeps
one promise: the pieces it gave out, joined, are the text it was fed. What belongs to neither side (tags, the heading
that opens the answer, the white space around them) is a piece of the channel "marker".

Where a border turns out to lie elsewhere than was shown, a `Resplit` replaces everything given out before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from app.engine.base import ReasoningFormat
from app.reasoning.conclusion import FENCE, conclusion_at, last_box_at

Channel = Literal["reasoning", "answer", "marker"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that belongs to one channel, behind all earlier pieces."""

    channel: Channel
    text: str


@dataclass(frozen=True, slots=True)
class Resplit:
    """The border moved: these pieces replace all that came before."""

    pieces: tuple[Piece, ...]


Written = Piece | Resplit


class Splitter(Protocol):
    """Feed it what was written, in order; ask it which channel is open."""

    @property
    def is_answering(self) -> bool:
        """The answer has begun."""

    @property
    def is_unmarked(self) -> bool:
        """The text is over and nothing in it marked where the answer begins."""

    def feed(self, token_ids: Sequence[int], texts: Sequence[str]) -> list[Written]:
        """What the next tokens add; `texts[i]` became whole with `token_ids[i]`."""

    def close(self, words: str) -> list[Written]:
        """Our own words were put behind the reasoning to end it (`ReasoningFormat.closing`)."""

    def finish(self) -> list[Written]:
        """The text is over: whatever was held back."""


def splitter_for(how: ReasoningFormat, *, is_reasoning: bool = True) -> Splitter:
    """The splitter for a model's format; `is_reasoning` False where the prompt already ends behind the reasoning."""
    if not is_reasoning or how.kind == "none":
        return WholeAnswer()
    if how.kind == "close_token" and how.close_id is not None:
        return CloseTokenSplitter(how.close_id, how.open_tag, how.close_tag)
    if how.kind == "tags":
        return TagSplitter(how.open_tag, how.close_tag)
    return HeadingSplitter(take_last=how.kind == "headings")


# What may still become a mark is held back, but no longer than this: looking again at all of it for each token takes
# the square of its length, and nobody would see it grow
_MOST_HELD = 1000


class _Ledger:
    """The pieces given out so far, so that a border can be moved."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._has_answer = False

    def add(self, channel: Channel, text: str) -> list[Written]:
        if not text:
            return []
        piece = Piece(channel, text)
        self.pieces.append(piece)
        self._has_answer = self._has_answer or channel == "answer"
        return [piece]

    def add_answer(self, text: str) -> list[Written]:
        """Answer text; white space in front of its first word is a marker."""
        if self._has_answer:
            return self.add("answer", text)
        words = text.lstrip()
        return self.add("marker", text[: len(text) - len(words)]) + self.add("answer", words)

    def replace(self, *pieces: Piece) -> list[Written]:
        self.pieces = [piece for piece in pieces if piece.text]
        self._has_answer = any(piece.channel == "answer" for piece in self.pieces)
        return [Resplit(tuple(self.pieces))]

    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def _held(text: str, tags: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `tags`."""
    longest = max(len(tag) for tag in tags) - 1
    for size in range(min(longest, len(text)), 0, -1):
        ending = text[-size:]
        if any(tag.startswith(ending) for tag in tags):
            return size
    return 0


class WholeAnswer:
    """For models that do not reason, and for completions that begin behind the reasoning."""

    def __init__(self) -> None:
        self._ledger = _Ledger()

    is_answering = True
    is_unmarked = False

    def feed(self, token_ids: Sequence[int], texts: Sequence[str]) -> list[Written]:
        return self._ledger.add_answer("".join(texts))

    def close(self, words: str) -> list[Written]:
        return self._ledger.add("marker", words)

    def finish(self) -> list[Written]:
        return []


class CloseTokenSplitter:
    """The prompt ends inside the reasoning and one token id ends it; later ones of it are ordinary text.

    Source: QwQ-32B's chat template; the tag's text alone proves nothing, since a model may quote it.
    """

    is_unmarked = False

    def __init__(self, close_id: int, open_tag: str, close_tag: str) -> None:
        self._close_id = close_id
        self._open_tag = open_tag
        self._close_tag = close_tag
        self._ledger = _Ledger()
        self._beginning: str | None = ""
        self.is_answering = False

    def feed(self, token_ids: Sequence[int], texts: Sequence[str]) -> list[Written]:
        written: list[Written] = []
        for token_id, text in zip(token_ids, texts, strict=True):
            if self.is_answering:
                written += self._ledger.add_answer(text)
            elif token_id == self._close_id:
                # Bytes of a character that was never finished may stand before the tag
                written += self._reason(text.removesuffix(self._close_tag)) + self._release()
                written += self._ledger.add("marker", self._close_tag if text.endswith(self._close_tag) else "")
                self.is_answering = True
            else:
                written += self._reason(text)
        return written

    def close(self, words: str) -> list[Written]:
        if self.is_answering:
            return self._ledger.add("marker", words)
        said, tag, rest = words.partition(self._close_tag)
        self.is_answering = True
        return self._release() + self._ledger.add("reasoning", said) + self._ledger.add("marker", tag + rest)

    def finish(self) -> list[Written]:
        return self._release()

    def _reason(self, text: str) -> list[Written]:
        """Reasoning; a model that opens the tag once more at the very start has that tag set aside."""
        if self._beginning is None:
            return self._ledger.add("reasoning", text)
        self._beginning += text
        words = self._beginning.lstrip()
        if words.startswith(self._open_tag):
            rest = words.removeprefix(self._open_tag)
            body = rest.lstrip()
            if not body and len(self._beginning) < _MOST_HELD:
                return []
            opening = self._beginning[: len(self._beginning) - len(body)]
            self._beginning = None
            return self._ledger.add("marker", opening) + self._ledger.add("reasoning", body)
        if self._open_tag.startswith(words) and len(self._beginning) < _MOST_HELD:
            return []
        return self._release()

    def _release(self) -> list[Written]:
        held, self._beginning = self._beginning or "", None
        words = held.strip()
        return self._ledger.add("marker" if words in ("", self._open_tag) else "reasoning", held)


_FENCE_START = re.compile(r"^ {0,3}(`{0,2}|~{0,2})$")


class TagSplitter:
    """An open and a close tag somewhere in text that comes without trustworthy token ids.

    The first close outside of code wins, later tags are ordinary text. A close without any open means that everything
    before it was reasoning. If code never ends, a close inside it counts after all.
    """

    is_unmarked = False

    def __init__(self, open_tag: str = "<think>", close_tag: str = "</think>") -> None:
        self._open_tag = open_tag
        self._close_tag = close_tag
        self._ledger = _Ledger()
        self._state: Literal["start", "unopened", "reasoning", "answer"] = "start"
        self._buffer = ""
        self._line = ""
        self._fence = ""
        self._close_in_fence = -1
        self._position = 0
        self._opening = 0

    @property
    def is_answering(self) -> bool:
        return self._state in ("answer", "unopened")

    def feed(self, token_ids: Sequence[int], texts: Sequence[str]) -> list[Written]:
        self._buffer += "".join(texts)
        return self._read(is_last=False)

    def close(self, words: str) -> list[Written]:
        written = self._read(is_last=True)
        said, tag, rest = words.partition(self._close_tag)
        if self._state == "answer":
            return written + self._ledger.add("marker", words)
        self._state = "answer"
        return written + self._ledger.add("reasoning", said) + self._ledger.add("marker", tag + rest)

    def finish(self) -> list[Written]:
        written = self._read(is_last=True)
        if self._fence and self._close_in_fence >= 0 and self._state in ("reasoning", "unopened"):
            return written + self._split_at(self._close_in_fence)
        return written

    def _read(self, *, is_last: bool) -> list[Written]:
        written: list[Written] = []
        if self._state == "start" and not self._find_start(written, is_last=is_last):
            return written
        while self._buffer and self._state != "answer":
            at = self._buffer.find(self._close_tag)
            if at < 0:
                keep = 0 if is_last else _held(self._buffer, [self._close_tag])
                written += self._take(len(self._buffer) - keep)
                break
            written += self._take(at)
            written += self._meet_close()
        if self._state == "answer" and self._buffer:
            written += self._ledger.add_answer(self._buffer)
            self._position += len(self._buffer)
            self._buffer = ""
        return written

    def _find_start(self, written: list[Written], *, is_last: bool) -> bool:
        """Whether it is decided if the text opens with a tag; sets the tag and the white space around it aside."""
        words = self._buffer.lstrip()
        if words.startswith(self._open_tag):
            body = words.removeprefix(self._open_tag).lstrip()
            if not body and not is_last and len(self._buffer) < _MOST_HELD:
                return False
            opening = self._buffer[: len(self._buffer) - len(body)]
            written += self._ledger.add("marker", opening)
            self._opening = self._position = len(opening)
            self._buffer, self._state = body, "reasoning"
        elif self._open_tag.startswith(words) and not is_last and len(self._buffer) < _MOST_HELD:
            return False
        else:
            self._state = "unopened"
        return True

    def _take(self, size: int) -> list[Written]:
        text, self._buffer = self._buffer[:size], self._buffer[size:]
        self._position += size
        self._follow_code(text)
        return self._ledger.add("reasoning", text) if self._state == "reasoning" else self._ledger.add_answer(text)

    def _follow_code(self, text: str) -> None:
        """Keep track of code fences; they open and close at line starts."""
        *lines, last = (self._line + text).split("\n")
        for line in lines:
            fence = FENCE.match(line)
            if fence and not self._fence:
                self._fence, self._close_in_fence = fence[1], -1
            elif fence and fence[1].startswith(self._fence):
                self._fence = ""
        # Only its beginning and its last character are looked at; a long line would be copied for each token
        self._line = last if len(last) < _MOST_HELD else last[: _MOST_HELD // 2] + last[-1]

    def _meet_close(self) -> list[Written]:
        opens_fence = FENCE.match(self._line)
        if self._fence or opens_fence or self._line.endswith("`"):
            if self._fence and self._close_in_fence < 0:
                self._close_in_fence = self._position
            return self._take(len(self._close_tag))
        if self._state == "unopened":
            self._ledger.add("marker", self._close_tag)
            at, self._position = self._position, self._position + len(self._close_tag)
            self._buffer = self._buffer[len(self._close_tag) :]
            return self._split_at(at)
        self._buffer = self._buffer[len(self._close_tag) :]
        self._position += len(self._close_tag)
        self._state = "answer"
        return self._ledger.add("marker", self._close_tag)

    def _split_at(self, at: int) -> list[Written]:
        """Everything before `at` was reasoning, what stands behind the close tag there is the answer."""
        text = self._ledger.text()
        rest = text[at + len(self._close_tag) :]
        body = rest.lstrip()
        self._state = "answer"
        return self._ledger.replace(
            Piece("marker", text[: self._opening]),
            Piece("reasoning", text[self._opening : at]),
            Piece("marker", self._close_tag + rest[: len(rest) - len(body)]),
            Piece("answer", body),
        )


_HEADING_WORDS = ("final answer", "final solution", "最终答案")
_HEADING = re.compile(
    r"^[ ]{0,3}(?:"
    r"(?:\*\*|\#{1,6}[ \t]*(?:\*\*)?)[ \t]*(?:final\ (?:answer|solution)|最终答案)"
    r"[ \t]*[:：]?[ \t]*(?:\*\*)?[ \t]*[:：]?"
    r"|(?:final\ (?:answer|solution)|最终答案)[ \t]*(?:[:：]|$)"
    r")[ \t]*",
    re.IGNORECASE,
)
_LONGEST_HEADING = 48
_MOST_MOVES = 8


class HeadingSplitter:
    """No tags: the answer begins behind a line that starts with a "Final Answer" heading, outside of code.

    `take_last`: a later heading moves the border, and a text without any is split once it is over: before its last
    paragraph with a `\\boxed{}`, else before its closing words (`conclusion`), or it is all answer and `is_unmarked`
    (QwQ-32B-Preview). Else the first heading stays (two phases).
    """

    def __init__(self, *, take_last: bool) -> None:
        self._take_last = take_last
        self._ledger = _Ledger()
        self._line = ""
        self._line_is_open = False
        self._fence = ""
        self._text_length = 0
        self._heading: tuple[int, int] | None = None
        self._moves = 0
        self._is_moved = False
        self.is_answering = False
        self.is_unmarked = False

    def feed(self, token_ids: Sequence[int], texts: Sequence[str]) -> list[Written]:
        return self._read("".join(texts))

    def close(self, words: str) -> list[Written]:
        if self.is_answering:
            return self._flush() + self._ledger.add("marker", words)
        written = self._read(words) + self._flush()
        self.is_answering = True
        return written

    def finish(self) -> list[Written]:
        written = self._flush()
        if not self._take_last:
            return written
        if self._is_moved:
            return self._move_border()
        if self.is_answering:
            return written
        text = self._ledger.text()
        at = last_box_at(text)
        if at is None:
            at = conclusion_at(text)
        self.is_answering = True
        if at is None:
            self.is_unmarked = True
            return self._ledger.replace(Piece("answer", text))
        return self._ledger.replace(Piece("reasoning", text[:at]), Piece("answer", text[at:]))

    def _read(self, text: str) -> list[Written]:
        written: list[Written] = []
        for part in re.split(r"(?<=\n)", text):
            self._line += part
            if part.endswith("\n"):
                written += self._end_line()
            elif self._line_is_open:
                written += self._give(self._line)
                self._line = ""
            elif not self._may_be_marked():
                written += self._end_line(is_whole=False)
                self._line_is_open = True
        return written

    def _flush(self) -> list[Written]:
        return self._end_line() if self._line else []

    def _may_be_marked(self) -> bool:
        """Whether the line so far may still turn out to be a heading or a fence."""
        bare = self._line.lstrip(" #*").lower()
        if not bare:
            return len(self._line) < _LONGEST_HEADING
        if _FENCE_START.match(self._line) or FENCE.match(self._line):
            return len(self._line) < _MOST_HELD
        heading = _HEADING.match(self._line)
        is_decided = heading is not None and self._line[heading.end() :].lstrip("*:： \t") != ""
        if is_decided or len(self._line) > _LONGEST_HEADING:
            return False
        return any(word.startswith(bare) or bare.startswith(word) for word in _HEADING_WORDS)

    def _end_line(self, *, is_whole: bool = True) -> list[Written]:
        """The line is whole, or longer than any heading: does it begin with one?"""
        line, self._line = self._line, ""
        was_open, self._line_is_open = self._line_is_open, False
        if was_open:
            return self._give(line)
        fence = FENCE.match(line)
        if fence and not self._fence:
            self._fence = fence[1]
        elif fence and fence[1].startswith(self._fence):
            self._fence = ""
        heading = None if self._fence or fence else _HEADING.match(line.rstrip("\n"))
        if heading and not is_whole and not re.search(r"[*#:：]", heading[0]):
            heading = None  # without a mark it is a heading only when nothing else stands in its line
        if heading is None or (self.is_answering and not self._take_last):
            return self._give(line)
        return self._meet_heading(line, heading.end())

    def _meet_heading(self, line: str, size: int) -> list[Written]:
        start = self._text_length
        if not self.is_answering:
            self.is_answering = True
            self._heading = (start, start + size)
            self._text_length += len(line)
            return self._ledger.add("marker", line[:size]) + self._ledger.add_answer(line[size:])
        given = self._give(line)
        self._heading = (start, start + size)
        self._moves += 1
        # Moving the border renders everything anew; a text full of headings is settled once, at its end
        self._is_moved = self._moves > _MOST_MOVES
        return given if self._is_moved else self._move_border()

    def _move_border(self) -> list[Written]:
        assert self._heading is not None
        text, (start, end) = self._ledger.text(), self._heading
        body = text[end:].lstrip()
        return self._ledger.replace(
            Piece("reasoning", text[:start]),
            Piece("marker", text[start : len(text) - len(body)]),
            Piece("answer", body),
        )

    def _give(self, text: str) -> list[Written]:
        self._text_length += len(text)
        return self._ledger.add_answer(text) if self.is_answering else self._ledger.add("reasoning", text)
